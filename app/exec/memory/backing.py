"""The files behind shared memory: those made for private memory, and those of the program, found and opened here."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from kickstand.exec.host import linux
from kickstand.exec.host.maps import PAGE, Area


@dataclass(slots=True, eq=False)
class Backing:
    """A file that is mapped here as a whole: ``size`` bytes at ``address``.

    ``start``: where in the program the memory lies that it was made for, None for a file of the program's own.
    ``anonymous``: pages that are discarded are zero again.
    """

    descriptor: int
    address: int
    size: int
    start: int | None = None
    anonymous: bool = True
    used: list[tuple[int, int]] = field(default_factory=list)  # addresses in the program that it ever backed
    view: memoryview = field(init=False)

    def __post_init__(self) -> None:
        self.view = linux.view_of(self.address, self.size)

    def holds(self, address: int) -> bool:
        """An address of this process lies in it."""
        return self.address <= address < self.address + self.size

    def free_for(self, start: int, end: int) -> bool:
        """The range lies in the area that this was made for, and none of it was ever backed by it."""
        if self.start is None or start < self.start or end > self.start + self.size:
            return False
        return not any(low < end and start < high for low, high in self.used)

    def close(self) -> None:
        """Unmap it; no arena may use it any more."""
        self.view = memoryview(b"")
        linux.unmap(self.address, self.size)
        os.close(self.descriptor)


def seal(descriptor: int) -> None:
    """Keep the program from making a file smaller that is mapped here."""
    fcntl.fcntl(descriptor, linux.F_ADD_SEALS, linux.F_SEAL_SHRINK | linux.F_SEAL_GROW | linux.F_SEAL_SEAL)


def length(descriptor: int) -> int:
    """Bytes of a file, in whole pages."""
    return -(-os.fstat(descriptor).st_size // PAGE) * PAGE


def reopened(tgid: int, area: Area) -> tuple[int, bool] | None:
    """Open the file behind an area: (descriptor, it may be written). None: there is no way to it.

    By a descriptor that the program still has; through ``map_files``, which takes a privilege; by its name.
    """
    for path in _ways_to(tgid, area):
        for flags in (os.O_RDWR, os.O_RDONLY):
            with contextlib.suppress(OSError):
                status = os.stat(path)
                if (status.st_dev, status.st_ino) == area.key and stat.S_ISREG(status.st_mode):
                    return os.open(path, flags | os.O_CLOEXEC), flags == os.O_RDWR
    return None


def _ways_to(tgid: int, area: Area) -> Iterator[str]:
    with contextlib.suppress(OSError):
        yield from (f"/proc/{tgid}/fd/{number}" for number in os.listdir(f"/proc/{tgid}/fd"))
    yield f"/proc/{tgid}/map_files/{area.start:x}-{area.end:x}"
    if area.name.startswith("/"):
        yield f"/proc/{tgid}/root{area.name}"
