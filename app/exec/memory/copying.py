"""Guest memory by copies, where pages cannot be shared: another tracer has the program, or ``--memory copy``.

Before and after every KVM_RUN each page that one side has changed since is copied to the other. It costs a look at
every page that was ever touched, and of two stores to one page, by guest and program between two runs, one is lost.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from kickstand.exec.host import linux
from kickstand.exec.host.maps import PAGE, touched
from kickstand.exec.host.process import Process

_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True, eq=False)
class Copy:
    """A copy of ``size`` bytes of the program from ``start`` on: the guest's, and what both sides had last."""

    start: int
    size: int
    address: int
    agreed: int

    @classmethod
    def of(cls, start: int, size: int) -> Copy:
        """Make one, of zeros. ``OSError``: no memory."""
        return cls(start, size, linux.map_private(size), linux.map_private(size))

    @property
    def view(self) -> memoryview:
        """The guest's bytes."""
        return linux.view_of(self.address, self.size)

    def synchronize(self, process: Process, scratch: bytearray) -> None:
        """Bring what the program has changed to the guest, and the other way round."""
        for low, high in self._looked_at(process):
            for at in range(low, high, _CHUNK):
                self._chunk(process, at, min(_CHUNK, high - at), scratch)

    def _looked_at(self, process: Process) -> list[tuple[int, int]]:
        """Offsets of pages that either side has ever touched."""
        theirs = _offsets(process.tgid, self.start, self.size)
        return merged([*theirs, *_offsets(os.getpid(), self.address, self.size)])

    def _chunk(self, process: Process, at: int, length: int, scratch: bytearray) -> None:
        there = process.read_into(self.start + at, memoryview(scratch)[:length]) // PAGE * PAGE
        theirs = linux.address_of(scratch)
        if linux.same(theirs, self.agreed + at, there) and linux.same(self.address + at, self.agreed + at, there):
            return
        for page in range(0, there, PAGE):
            ours, agreed = self.address + at + page, self.agreed + at + page
            if not linux.same(theirs + page, agreed, PAGE):
                linux.copy(ours, theirs + page, PAGE)
            elif not linux.same(ours, agreed, PAGE):
                process.write(self.start + at + page, bytes(linux.view_of(ours, PAGE)))
            else:
                continue
            linux.copy(agreed, ours, PAGE)

    def close(self) -> None:
        """Give it back."""
        linux.unmap(self.address, self.size)
        linux.unmap(self.agreed, self.size)


class Copies:
    """All copies of one process."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._copies: list[Copy] = []
        self._scratch = bytearray(_CHUNK)

    def __bool__(self) -> bool:
        return bool(self._copies)

    def __iter__(self) -> Iterator[Copy]:
        return iter(tuple(self._copies))

    def add(self, start: int, size: int, *, of_file: bool) -> Copy:
        """Copy these addresses from now on. Pages ``of_file`` hold something before anybody touches them."""
        made = Copy.of(start, size)
        self._copies.append(made)
        if of_file:
            self._process.read_into(start, made.view)
            linux.copy(made.agreed, made.address, size)
        return made

    def at(self, address: int) -> Copy | None:
        """The copy whose guest's bytes lie at an address of this process."""
        return next((copy for copy in self._copies if copy.address <= address < copy.address + copy.size), None)

    def remove(self, copy: Copy) -> None:
        """It is not needed any more."""
        self._copies.remove(copy)
        copy.close()

    def synchronize(self) -> None:
        """Bring both sides together; called while no guest runs."""
        for copy in self._copies:
            copy.synchronize(self._process, self._scratch)


def _offsets(pid: int, start: int, size: int) -> list[tuple[int, int]]:
    return [(low - start, high - start) for low, high in touched(pid, start, start + size)]


def merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges in order, those that touch joined."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined
