"""Slots by number and by address, where both have to be quick (``kvm_memslots``)."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from operator import attrgetter

from kickstand.core.memslots.regions import Region, Slot
from kickstand.core.uapi import PAGE_SHIFT

MANY = 256  # changes at once that are worth sorting anew


class SlotTable:
    """Slots by number and by address: a look-up, and the search for a change, take O(log n)."""

    __slots__ = ("slots", "_bases", "_ordered", "_version")

    def __init__(self, slots: Iterable[Slot] = ()) -> None:
        self._version = 0  # odd while it changes
        self._order(slots)
        self.slots: dict[int, Slot] = {slot.id: slot for slot in self._ordered}

    def change(self, changes: Sequence[tuple[int, Slot | None]]) -> None:
        """Give each slot number its new slot, or none."""
        if len(changes) < MANY:
            self._version += 1
            self._change_each(changes)
            self._version += 1
            return
        for slot_id, new in changes:
            self.slots.pop(slot_id, None)
            if new is not None:
                self.slots[slot_id] = new
        self._order(self.slots.values())

    def _order(self, slots: Iterable[Slot]) -> None:
        """Sort once, instead of finding a place for each."""
        ordered = sorted(slots, key=attrgetter("base_gfn"))
        bases = [slot.base_gfn for slot in ordered]
        self._version += 1
        self._ordered, self._bases = ordered, bases
        self._version += 1

    def _change_each(self, changes: Iterable[tuple[int, Slot | None]]) -> None:
        for slot_id, new in changes:
            old = self.slots.pop(slot_id, None)
            if old is not None:
                at = bisect_left(self._bases, old.base_gfn)
                del self._bases[at], self._ordered[at]
            if new is not None:
                at = bisect_left(self._bases, new.base_gfn)
                self._bases.insert(at, new.base_gfn)
                self._ordered.insert(at, new)
                self.slots[slot_id] = new

    def find(self, gfn: int) -> Slot | None:
        """The slot that holds ``gfn``. Another thread may ask meanwhile: it sees all of a change or nothing."""
        while True:
            version = self._version
            at = bisect_right(self._bases, gfn)
            before = self._ordered[max(at - 1, 0) : at]
            if version == self._version and not version % 2:
                return before[0] if before and gfn < before[0].end_gfn else None

    def concerned(self, region: Region) -> dict[int, Slot]:
        """What ``plan`` has to know: the slot of the region's number, and another that it overlaps if there is one."""
        first, npages = region.guest_phys_addr >> PAGE_SHIFT, region.memory_size >> PAGE_SHIFT
        known = {region.slot: self.slots[region.slot]} if region.slot in self.slots else {}
        start = max(bisect_right(self._bases, first) - 1, 0)
        for slot in self._ordered[start : start + 3]:  # one that reaches in, its own old place, and the next
            if slot.id != region.slot and slot.base_gfn < first + npages and first < slot.end_gfn:
                return known | {slot.id: slot}
        return known
