"""The active set of slots, which vCPUs read and an update publishes anew (``__kvm_set_memory_region``).

Updates publish under ``slots_lock``; readers look a page up in whichever set is active.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from kickstand.core.atomics import Shared, atomic
from kickstand.core.memslots.dirty_pages import DirtyPages
from kickstand.core.memslots.regions import ADDRESS_SPACES, Region, Slot
from kickstand.core.memslots.table import SlotTable
from kickstand.core.uapi import PAGE_SHIFT

UPDATE_IN_PROGRESS = 1 << 63

Settled = tuple[dict[int, Slot], dict[int, DirtyPages]]
"""Slots by number, and the bitmaps of the logged ones."""


class Memslots(Shared):
    """The active set of one address space, and the dirty bitmaps of its logged slots.

    ``generation`` counts publications (bit 63: an update is in progress); it tags caches and is no part of
    the protocol's state.
    """

    __slots__ = ("_table", "dirty", "generation", "manual", "initially_set")

    def __init__(self) -> None:
        super().__init__()
        self._table = SlotTable()
        self.dirty: dict[int, DirtyPages] = {}
        self.generation = 0
        self.log_manually(manual=False, initially_set=False)

    @property
    def slots(self) -> Mapping[int, Slot]:
        """The set, for observers."""
        return self._table.slots

    def log_manually(self, *, manual: bool, initially_set: bool) -> None:
        """KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: reading a log clears nothing; every page of a new one is set."""
        self.manual = manual
        self.initially_set = initially_set

    def state(self) -> tuple[Any, ...]:
        return (
            tuple(sorted(self.slots.items())),
            tuple((slot, frozenset(pages)) for slot, pages in sorted(self.dirty.items())),
        )

    def load(self, state: tuple[Any, ...]) -> None:
        slots, dirty = state
        self._table = SlotTable(slot for _, slot in slots)
        self.dirty = {slot: DirtyPages(pages) for slot, pages in dirty}

    @atomic
    async def active(self) -> tuple[tuple[int, Slot], ...]:
        """The set as it is, by slot id."""
        return tuple(sorted(self.slots.items()))

    @atomic
    async def concerned(self, region: Region) -> tuple[tuple[int, Slot], ...]:
        """Those of the set that a call with this region depends on."""
        return tuple(sorted(self._table.concerned(region).items()))

    @atomic
    async def get(self, slot_id: int) -> Slot | None:
        """``id_to_memslot``."""
        return self.slots.get(slot_id)

    @atomic
    async def publish(self, changes: tuple[tuple[int, Slot | None], ...], *, final: bool = True) -> None:
        """Make a new set active: each slot id gets its new slot, or none.

        A bitmap lives as long as its slot and the LOG flag: a deleted slot takes its bitmap along.
        """
        self._table.change(changes)
        for slot_id, new in changes:
            if new is None or not new.logged:
                self.dirty.pop(slot_id, None)
            else:
                self.dirty.setdefault(slot_id, DirtyPages(range(new.npages) if self.initially_set else ()))
        self.generation = (self.generation & ~UPDATE_IN_PROGRESS) + ADDRESS_SPACES
        if not final:
            self.generation |= UPDATE_IN_PROGRESS
        self.changed()

    def settled(self) -> Settled:
        """The set as it is, for ``restore``. Its bitmaps are these, and go on to fill: nothing is copied."""
        return dict(self.slots), dict(self.dirty)

    @atomic
    async def restore(self, settled: Settled) -> None:
        """Make the slots of before active again: dirty is what was so then, and what was written since."""
        slots, dirty = settled
        since, self.dirty = self.dirty, dict(dirty)
        self._table = SlotTable(slots.values())
        for slot_id, pages in dirty.items():
            written = since.get(slot_id, pages)
            if written is not pages:
                npages = slots[slot_id].npages
                pages.update(page for page in written if page < npages)
        self.generation = (self.generation & ~UPDATE_IN_PROGRESS) + ADDRESS_SPACES
        self.changed()

    @atomic
    async def lookup(self, gpa: int) -> Slot | None:
        """``gfn_to_memslot``: the slot that holds ``gpa``, an INVALID one included."""
        return self.find(gpa >> PAGE_SHIFT)

    @atomic
    async def guest_access(self, gpa: int, write: bool) -> Slot | None:
        """A guest's load or store of one page: look the slot up and, for a store that lands, log it."""
        slot = self.find(gpa >> PAGE_SHIFT)
        if write and slot is not None and slot.logged and not slot.readonly and not slot.invalid:
            self.dirty[slot.id].add((gpa >> PAGE_SHIFT) - slot.base_gfn)
        return slot

    @atomic
    async def fetch_dirty(self, slot_id: int) -> AbstractSet[int]:
        """Return the dirty pages of a logged slot, in order, and forget them unless that is done by hand."""
        if self.manual:
            return self.dirty[slot_id].copy()
        fetched, self.dirty[slot_id] = self.dirty[slot_id], DirtyPages()
        self.generation += ADDRESS_SPACES  # whoever remembers "already logged" looks again
        return fetched

    @atomic
    async def clear_dirty(self, slot_id: int, pages: range | frozenset[int]) -> None:
        """Forget the given pages. What it takes depends on how many are dirty, not on how many are named."""
        self.dirty[slot_id].difference_update(pages)
        self.generation += ADDRESS_SPACES

    @atomic
    async def watch_again(self) -> None:
        """Whoever remembers "already logged" looks again."""
        self.generation += ADDRESS_SPACES

    def find(self, gfn: int) -> Slot | None:
        """Look ``gfn`` up without being an operation: for engines between two steps (in any thread), and observers."""
        return self._table.find(gfn)
