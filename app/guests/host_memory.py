"""Host memory: what a VMM would mmap and back its slots with.

Addresses are made here and start at a fixed base, so that the same calls give the same addresses and no
address of this process leaves it; a guest reaches only bytes of an arena.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from app.core.errors import KvmError
from app.core.uapi import PAGE_SIZE

BASE = 0x7F00_0000_0000
GUARD = 16 * PAGE_SIZE  # never backed, so that running off an arena is a fault
DISK_FULL = (errno.ENOSPC, errno.EROFS)
MAX_NAME = 64


@dataclass(frozen=True, slots=True)
class Arena:
    """One allocation: ``size`` zeroed bytes (a multiple of the page size) at host address ``base``."""

    base: int
    size: int
    name: str
    buffer: mmap.mmap
    address: int  # of ``buffer`` in this process, for engines


@dataclass(frozen=True, slots=True)
class Run:
    """A stretch of host addresses, backed at ``address`` in this process or by nothing."""

    hva: int
    size: int
    address: int | None


class HostMemory:
    """All arenas of one VMM. ``limit`` bounds their total size in bytes; ``back`` maps zeroed bytes for an arena."""

    def __init__(self, limit: int = 1 << 40) -> None:
        self.limit = limit
        self.back: Callable[[str, int], mmap.mmap] = _map
        self.arenas: list[Arena] = []
        self._bases: list[int] = []
        self._next = BASE

    @property
    def allocated(self) -> int:
        """Bytes in all arenas."""
        return sum(arena.size for arena in self.arenas)

    def allocate(self, size: int, name: str = "") -> Arena:
        """Allocate ``size`` zeroed bytes, rounded up to pages.

        EINVAL: not positive, or a name that cannot be told; EEXIST: the name is taken; ENOMEM: over the limit, or
        the host has no more; ENOSPC, EROFS: its file cannot be made.
        """
        if size <= 0:
            raise KvmError(errno.EINVAL, "mmap", f"size {size} is not positive", field="size")
        if len(name) > MAX_NAME or not name.isprintable():
            raise KvmError(errno.EINVAL, "mmap", f"name has at most {MAX_NAME} characters, all printable", field="name")
        if name and any(arena.name == name for arena in self.arenas):
            raise KvmError(errno.EEXIST, "mmap", f"there is host memory named {name!r} already", field="name")
        size = -(-size // PAGE_SIZE) * PAGE_SIZE
        if self.allocated + size > self.limit:
            raise KvmError(
                errno.ENOMEM, "mmap", f"{size} bytes more would pass the limit of {self.limit}", field="size"
            )
        try:
            buffer = self.back(name, size)
        except (OSError, OverflowError) as error:
            code = getattr(error, "errno", None)
            code = code if code in DISK_FULL else errno.ENOMEM
            raise KvmError(code, "mmap", f"the host cannot give {size} bytes: {error}", field="size") from error
        return self.adopt(self._next, name, buffer)

    def adopt(self, base: int, name: str, buffer: mmap.mmap) -> Arena:
        """Add memory that exists already, at host address ``base``, which is above all others."""
        arena = Arena(base, len(buffer), name, buffer, ctypes.addressof(ctypes.c_char.from_buffer(buffer)))
        self._next = base + arena.size + GUARD
        self.arenas.append(arena)
        self._bases.append(base)
        return arena

    def find(self, hva: int) -> Arena | None:
        """The arena that holds ``hva``."""
        at = bisect_right(self._bases, hva) - 1
        if at < 0 or hva >= self.arenas[at].base + self.arenas[at].size:
            return None
        return self.arenas[at]

    def read(self, hva: int, length: int) -> bytes:
        """Return ``length`` bytes. EFAULT: not all of them are backed; EINVAL: negative length."""
        if length < 0:
            raise KvmError(errno.EINVAL, "read", f"length {length} is negative", field="length")
        arena = self._backed(hva, length)
        return arena.buffer[hva - arena.base : hva - arena.base + length]

    def write(self, hva: int, data: bytes) -> None:
        """Write ``data``. EFAULT: not all of the range is backed; nothing is written then."""
        arena = self._backed(hva, len(data))
        arena.buffer[hva - arena.base : hva - arena.base + len(data)] = data

    def runs(self, hva: int, size: int) -> Iterator[Run]:
        """Cut a range of host addresses where its backing changes."""
        end = hva + size
        while hva < end:
            arena = self.find(hva)
            if arena is not None:
                stop = min(end, arena.base + arena.size)
                yield Run(hva, stop - hva, arena.address + hva - arena.base)
            else:
                at = bisect_right(self._bases, hva)
                stop = min(end, self._bases[at]) if at < len(self._bases) else end
                yield Run(hva, stop - hva, None)
            hva = stop

    def _backed(self, hva: int, length: int) -> Arena:
        arena = self.find(hva)
        if arena is None or hva + length > arena.base + arena.size:
            raise KvmError(
                errno.EFAULT, "host memory", f"{length} bytes at {hva:#x} are not all backed", field="userspace_addr"
            )
        return arena


def _map(name: str, size: int) -> mmap.mmap:
    """Map memory that could be handed to another process (memfd), where the host has such."""
    if not hasattr(os, "memfd_create"):
        return mmap.mmap(-1, size)
    label = ascii(f"kickstand-{name}")[1:-1][:200]
    descriptor = os.memfd_create(label, os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, size)
        return mmap.mmap(descriptor, size)
    finally:
        os.close(descriptor)
