"""A vCPU's dirty ring: which pages it has written, in order, for userspace to harvest (``dirty_ring.c``).

The entries lie in memory that a program may have mapped too. What finds no room there waits and comes after the next
reset: nothing is lost, whatever an instruction writes.
"""

from __future__ import annotations

from struct import Struct

OFFSET_PAGES = 64  # KVM_DIRTY_LOG_PAGE_OFFSET: where the ring is in a vCPU's mapping
MAX_ENTRIES = 65536
RESERVED = 64  # entries that stay free for what is written on the way out
DIRTY, RESET = 1, 2  # flags of an entry
ENTRY = Struct("<IIQ")  # flags, slot, offset


class DirtyRing:
    """Of one vCPU; ``entries`` is a power of two."""

    def __init__(self, entries: int) -> None:
        self.entries = entries
        self._view = memoryview(bytearray(entries * ENTRY.size))
        self._pushed = self._reset = 0
        self._waiting: list[tuple[int, int]] = []

    def map(self, view: memoryview) -> None:
        """A program has these bytes mapped: the ring is there from now on."""
        view[:] = self._view
        self._view = view

    @property
    def soft_full(self) -> bool:
        """The guest has to stop."""
        return self._pushed - self._reset >= self.entries - RESERVED

    def _at(self, index: int) -> int:
        return index % self.entries * ENTRY.size

    def push(self, slot: int, offset: int) -> None:
        """A page of a logged slot has been written."""
        if self._pushed - self._reset >= self.entries:
            self._waiting.append((slot, offset))
            return
        ENTRY.pack_into(self._view, self._at(self._pushed), DIRTY, slot, offset)
        self._pushed += 1

    def reset(self) -> int:
        """KVM_RESET_DIRTY_RINGS: free the entries that were harvested; how many."""
        count = 0
        while self._reset < self._pushed:
            flags, slot, offset = ENTRY.unpack_from(self._view, at := self._at(self._reset))
            if not flags & RESET:
                break
            ENTRY.pack_into(self._view, at, 0, slot, offset)
            self._reset += 1
            count += 1
        waiting, self._waiting = self._waiting, []
        for slot, offset in waiting:
            self.push(slot, offset)
        return count

    def unharvested(self) -> list[tuple[int, int]]:
        """(slot, page) of all that was noted and not harvested, in order."""
        found: list[tuple[int, int]] = []
        for index in range(self._reset, self._pushed):
            flags, slot, offset = ENTRY.unpack_from(self._view, self._at(index))
            if flags == DIRTY:
                found.append((slot, offset))
        return found + self._waiting

    def harvest(self) -> list[tuple[int, int]]:
        """As ``unharvested``, and mark them as userspace does; a reset frees them."""
        found: list[tuple[int, int]] = []
        for index in range(self._reset, self._pushed):
            flags, slot, offset = ENTRY.unpack_from(self._view, at := self._at(index))
            if flags == DIRTY:
                found.append((slot, offset))
                ENTRY.pack_into(self._view, at, DIRTY | RESET, slot, offset)
        return found
