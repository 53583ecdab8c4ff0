"""What only the observer knows, kept beside the real thing so that an operation changes both in one step."""

from __future__ import annotations

from typing import Any

from kickstand.core.atomics import atomic
from kickstand.core.memslots import Memslots, Slot
from kickstand.core.uapi import PAGE_SHIFT

REAL = 2  # how many parts the state of the real ones has


class WatchedMemslots(Memslots):
    """The slots, and per logged slot the pages that the VMM is *owed*: stored to by guests and not told of yet."""

    __slots__ = ("owed",)

    def __init__(self) -> None:
        super().__init__()
        self.owed: dict[int, set[int]] = {}

    def state(self) -> tuple[Any, ...]:
        return (*super().state(), tuple((slot, frozenset(pages)) for slot, pages in sorted(self.owed.items()) if pages))

    def load(self, state: tuple[Any, ...]) -> None:
        real, owed = state[:REAL], state[REAL:]
        super().load(real)
        self.owed = {slot: set(pages) for slot, pages in (owed[0] if owed else ())}

    def forget(self) -> None:
        """Nobody is owed the pages of a slot that is gone, or not logged any more."""
        logged = {slot.id for slot in self.slots.values() if slot.logged}
        self.owed = {slot: pages for slot, pages in self.owed.items() if slot in logged}

    @atomic
    async def guest_access(self, gpa: int, write: bool) -> Slot | None:
        slot = await super().guest_access(gpa, write)
        if write and slot is not None and slot.logged and not slot.readonly and not slot.invalid:
            self.owed.setdefault(slot.id, set()).add((gpa >> PAGE_SHIFT) - slot.base_gfn)
        return slot

    @atomic
    async def fetch_dirty(self, slot_id: int) -> frozenset[int]:
        pages = frozenset(await super().fetch_dirty(slot_id))  # a value, that a transition can be told by
        self.owed.get(slot_id, set()).difference_update(pages)
        return pages

    @atomic
    async def clear_dirty(self, slot_id: int, pages: range | frozenset[int]) -> None:
        await super().clear_dirty(slot_id, pages)
        self.owed.get(slot_id, set()).difference_update(pages)

    @atomic
    async def publish(self, changes: tuple[tuple[int, Slot | None], ...], *, final: bool = True) -> None:
        await super().publish(changes, final=final)
        self.forget()
