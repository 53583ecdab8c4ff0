"""Host memory: what a VMM would mmap and back its slots with.

Addresses are made here and start at a fixed base, so that the same calls give the same addresses and no
address of this process leaves it; a guest reaches only bytes of an arena.
"""

from __future__ import annotations

import errno
import mmap
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kickstand.core.errors import KvmError
from kickstand.core.uapi import PAGE_SIZE
from kickstand.guests.mapping import address_of, anonymous

BASE = 0x7F00_0000_0000
GUARD = 16 * PAGE_SIZE  # never backed, so that running off an arena is a fault
TOLD = (errno.ENOSPC, errno.EROFS, errno.EMFILE, errno.ENFILE)  # any other failure is a lack of memory
MAX_NAME = 64
MOST_ARENAS = 1 << 12  # of one VM; what is kept of it has room for no more
BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Arena:
    """One allocation: ``size`` zeroed bytes (a multiple of the page size) at host address ``base``."""

    base: int
    size: int
    name: str
    buffer: mmap.mmap | memoryview
    address: int  # of ``buffer`` in this process, for engines


@dataclass(frozen=True, slots=True)
class Run:
    """A stretch of host addresses, backed at ``address`` in this process or by nothing."""

    hva: int
    size: int
    address: int | None


class Budget:
    """What all VMs of a server have together: bytes, and allocations, each of which is a mapping of the kernel's."""

    def __init__(self, size: int = 1 << 46, per_vm: int = 1 << 40, arenas: int = 1 << 15) -> None:
        self.size = size
        self.per_vm = per_vm
        self.arenas = arenas
        self.used = 0
        self.count = 0

    def check(self, size: int, arenas: int = 1) -> None:
        """Refuse (ENOMEM) what does not fit any more."""
        if self.used + size > self.size:
            detail = f"{size} bytes more would pass the {self.size} of all virtual machines together (memory)"
            raise KvmError(errno.ENOMEM, "mmap", detail, field="size")
        if self.count + arenas > self.arenas:
            detail = f"all virtual machines together have at most {self.arenas} pieces of host memory"
            raise KvmError(errno.ENOMEM, "mmap", detail)

    def take(self, size: int, arenas: int = 1) -> None:
        """Count memory that is there; a negative size and number give it back."""
        self.used += size
        self.count += arenas


class HostMemory:
    """All arenas of one VMM. ``budget`` bounds their size; ``back`` maps zeroed bytes for an arena."""

    def __init__(self, budget: Budget | None = None) -> None:
        self.budget = budget or Budget()
        self.back: Callable[[str, int], mmap.mmap] = anonymous
        self.arenas: list[Arena] = []
        self.allocated = 0
        """Bytes in all arenas."""
        self._bases: list[int] = []
        self._next = BASE
        self.version = 0
        """Counts the changes of ``arenas``."""

    def allocate(self, size: int, name: str = "", unit: bytes = b"") -> Arena:
        """Allocate ``size`` bytes, rounded up to pages: zeros, or ``unit`` again and again.

        EINVAL: not positive, or a name that cannot be told; EEXIST: the name is taken; ENOMEM: over a limit, or
        the host has no more; ENOSPC, EROFS: its file cannot be made.
        """
        size = self.check(size, name)
        return self.hand_out(name, self.mapped(name, size, unit), unit)

    def check(self, size: int, name: str) -> int:
        """The size of an allocation in whole pages. Errors as ``allocate``, before anything is mapped."""
        if size <= 0:
            raise KvmError(errno.EINVAL, "mmap", f"size {size} is not positive", field="size")
        if len(name) > MAX_NAME or not name.isprintable():
            raise KvmError(errno.EINVAL, "mmap", f"name has at most {MAX_NAME} characters, all printable", field="name")
        if name and any(arena.name == name for arena in self.arenas):
            raise KvmError(errno.EEXIST, "mmap", f"there is host memory named {name!r} already", field="name")
        if len(self.arenas) >= MOST_ARENAS:
            raise KvmError(errno.ENOMEM, "mmap", f"a virtual machine has at most {MOST_ARENAS} pieces of host memory")
        size = -(-size // PAGE_SIZE) * PAGE_SIZE
        if self.allocated + size > self.budget.per_vm:
            detail = f"{size} bytes more would pass the {self.budget.per_vm} of one virtual machine (memory_per_vm)"
            raise KvmError(errno.ENOMEM, "mmap", detail, field="size")
        self.budget.check(size)
        return size

    def mapped(self, name: str, size: int, unit: bytes) -> mmap.mmap:
        """Map and fill an allocation that nobody knows of yet; any thread. Errors as ``allocate``."""
        try:
            buffer = self.back(name, size)
        except (OSError, OverflowError) as error:
            code = getattr(error, "errno", None)
            code = code if code in TOLD else errno.ENOMEM
            raise KvmError(code, "mmap", f"the host cannot give {size} bytes: {error}", field="size") from error
        for offset, block in blocks(unit, size):
            buffer[offset : offset + len(block)] = block
        return buffer

    def hand_out(self, name: str, buffer: mmap.mmap, unit: bytes) -> Arena:
        """Add what ``mapped`` made, behind all others."""
        return self.adopt(self._next, name, buffer)

    def adopt(self, base: int, name: str, buffer: mmap.mmap) -> Arena:
        """Add memory that exists already, at host address ``base``, which is above all others."""
        arena = Arena(base, len(buffer), name, buffer, address_of(buffer))
        self._next = base + arena.size + GUARD
        self.allocated += arena.size
        self.budget.take(arena.size)
        self.arenas.append(arena)
        self._bases.append(base)
        self.version += 1
        return arena

    def forget(self) -> list[mmap.mmap]:
        """The VM is gone: no address is backed any more. Returns the mappings, for ``mapping.give_back``."""
        gone = [arena.buffer for arena in self.arenas if isinstance(arena.buffer, mmap.mmap)]
        self.budget.take(-self.allocated, -len(gone))
        self.allocated = 0
        self.arenas.clear()
        self._bases.clear()
        self.version += 1
        return gone

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
        arena = self.backed(hva, length)
        return bytes(arena.buffer[hva - arena.base : hva - arena.base + length])

    def write(self, hva: int, data: bytes) -> None:
        """Write ``data``. EFAULT: not all of the range is backed; nothing is written then."""
        arena = self.backed(hva, len(data))
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

    def backed(self, hva: int, length: int) -> Arena:
        """The arena that holds ``length`` bytes from ``hva`` on. EFAULT: none holds all of them."""
        arena = self.find(hva)
        if arena is None or hva + length > arena.base + arena.size:
            raise KvmError(
                errno.EFAULT, "host memory", f"{length} bytes at {hva:#x} are not all backed", field="userspace_addr"
            )
        return arena


class ForeignMemory(HostMemory):
    """Memory of another process at that process's own addresses: areas come, are replaced, and go, in any order.

    Whoever takes a view away keeps its bytes mapped until no guest is in guest mode.
    """

    def check(self, size: int, name: str) -> int:
        """Refuse an allocation: EOPNOTSUPP. The program maps its memory itself."""
        raise KvmError(errno.EOPNOTSUPP, "mmap", "the memory of this VM is its program's own", field="size")

    def forget(self) -> list[mmap.mmap]:
        """A VM is gone; the memory is its program's, which may have others."""
        return []

    def place(self, base: int, view: memoryview, address: int) -> None:
        """Back ``len(view)`` bytes from host address ``base`` on by ``view``, which lies at ``address`` here."""
        self.place_arena(Arena(base, len(view), "", view, address))

    def place_arena(self, arena: Arena) -> None:
        """Take an area, in place of whatever lay there."""
        self.remove(arena.base, arena.size)
        self._insert(arena)

    def remove(self, base: int, size: int) -> None:
        """Back these addresses by nothing; an arena that reaches beyond them keeps the rest."""
        end = base + size
        at = max(bisect_right(self._bases, base) - 1, 0)
        while at < len(self.arenas) and self.arenas[at].base < end:
            arena = self.arenas[at]
            if arena.base + arena.size <= base:
                at += 1
                continue
            del self.arenas[at], self._bases[at]
            self.version += 1
            if arena.base < base:
                self._insert(_part(arena, 0, base - arena.base))
                at += 1
            if arena.base + arena.size > end:
                self._insert(_part(arena, end - arena.base, arena.size))

    def _insert(self, arena: Arena) -> None:
        at = bisect_right(self._bases, arena.base)
        self.arenas.insert(at, arena)
        self._bases.insert(at, arena.base)
        self.version += 1


def _part(arena: Arena, start: int, end: int) -> Arena:
    return Arena(
        arena.base + start, end - start, arena.name, memoryview(arena.buffer)[start:end], arena.address + start
    )


def blocks(unit: bytes, size: int) -> Iterator[tuple[int, bytes]]:
    """Cut ``size`` bytes of repeated ``unit`` into pieces, each with its offset; zeros need none."""
    if not unit.strip(b"\0"):
        return
    block = unit * max(1, BLOCK // len(unit))
    for offset in range(0, size, len(block)):
        yield offset, block[: size - offset]
