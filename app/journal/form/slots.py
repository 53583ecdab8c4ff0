"""The parts ``slots/N`` and ``dirty/SLOT/N``: the memory slots, by groups of numbers, and the dirty pages of each.

There may be tens of thousands of slots and millions of dirty pages: what a call changes is a small part of them, and
only what it changes is written. The part ``slots`` says how many there are of both, so that none is lost in silence.
Who reads takes any groups; the slots are checked by KVM's own rules.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import cached_property, partial
from itertools import pairwise
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter

from kickstand.core.memslots import Memslots, Region, Settled, Slot, plan
from kickstand.core.memslots.dirty_pages import Chunk, DirtyPages
from kickstand.core.uapi import NR_MEMSLOTS, PAGE_SHIFT
from kickstand.journal.form.part import Encoded, Unsigned, decoded

GROUP_SHIFT = 6  # slots of one part: 64
STRICT = ConfigDict(strict=True)
SlotRow = tuple[Unsigned, Unsigned, Unsigned, Unsigned, Unsigned]
"""Number, first page, pages, flags, host address."""
COUNTS: TypeAdapter[tuple[int, int]] = TypeAdapter(tuple[Unsigned, Unsigned], config=STRICT)
"""Slots, dirty pages."""
OTHERS = {"slots*": None, "dirty/*": None}
GROUP: TypeAdapter[list[SlotRow]] = TypeAdapter(Annotated[list[SlotRow], Field(max_length=NR_MEMSLOTS)], config=STRICT)
RUNS: TypeAdapter[list[int]] = TypeAdapter(list[Unsigned], config=STRICT)
"""First page and number of pages of every run."""


class Slots:
    """The slots and dirty pages in a machine's parts. ``KeyError``, ``ValueError``: a part is not as it should be."""

    def __init__(self, parts: Mapping[str, bytes]) -> None:
        self.counts = decoded(COUNTS, "slots", parts["slots"])
        self.rows: list[SlotRow] = []
        self.runs: list[tuple[int, list[int]]] = []
        for name, value in parts.items():
            kind, *numbers = name.split("/")
            if kind == "slots" and numbers:
                rows: list[SlotRow] = decoded(GROUP, name, value)
                self.rows += rows
            elif kind == "dirty":
                slot, _ = map(int, numbers)
                self.runs.append((slot, decoded(RUNS, name, value)))

    def into(self, live: Memslots) -> None:
        """Errors as ``made``."""
        live.load(self.made)
        live.generation += 1

    @property
    def dirty_pages(self) -> int:
        """How many, in all slots together."""
        return sum(sum(runs[1::2]) for _, runs in self.runs)

    @cached_property
    def made(self) -> tuple[Any, ...]:
        """A state of ``Memslots``.

        ``ValueError``, ``KeyError``, ``KvmError``: the kernel would not have let these slots be made.
        """
        slots: dict[int, Slot] = {}
        for number, base_gfn, npages, flags, hva in self.rows:
            new = plan({}, Region(number, flags, base_gfn << PAGE_SHIFT, npages << PAGE_SHIFT, hva)).new
            if new is None or number in slots:
                raise ValueError(f"slot {number} is there twice, or empty")
            slots[number] = new
        _check_apart(slots.values())
        dirty = {number: DirtyPages() for number, slot in slots.items() if slot.logged}
        for number, runs in self.runs:
            for pages in _pages(runs, slots[number].npages):
                dirty[number].update(pages)  # KeyError: not logged
        found = len(slots), sum(map(len, dirty.values()))
        if found != self.counts:
            raise ValueError("{} slots and {} dirty pages instead of {} and {}".format(*found, *self.counts))
        return tuple(sorted(slots.items())), tuple(sorted(dirty.items()))


def _check_apart(slots: Iterable[Slot]) -> None:
    for below, above in pairwise(sorted(slots, key=lambda slot: slot.base_gfn)):
        if below.end_gfn > above.base_gfn:
            raise ValueError(f"slots {below.id} and {above.id} overlap")


def _pages(runs: list[int], npages: int) -> Iterable[range]:
    """The pages of runs that ascend within their slot."""
    end = 0
    for first, count in zip(runs[::2], runs[1::2], strict=True):
        if not end <= first < first + count <= npages:
            raise ValueError("dirty pages outside of their slot, or twice")
        end = first + count
        yield range(first, end)


class SlotParts:
    """What was last written of a machine's slots, so that of tens of thousands only those that changed are encoded."""

    def __init__(self) -> None:
        self._counts: tuple[int, int] | None = None
        self._generation: int | None = None
        self._slots: dict[int, Slot] = {}
        self._chunks: dict[tuple[int, int], tuple[Chunk, int]] = {}

    def changed(self, live: Memslots, settled: Settled | None) -> dict[str, Encoded | None]:
        """The parts that differ from those that were last returned; None: gone. At first: all, and no others.

        ``settled``: what there was before a transaction that is under way; the pages that are written since are dirty.
        """
        slots, dirty = (live.slots, live.dirty) if settled is None else settled
        parts: dict[str, Encoded | None] = {} if self._counts else dict(OTHERS)
        if settled is not None or self._generation != live.generation:
            self._generation = live.generation if settled is None else None
            self._add_slots(parts, slots)
        if settled is not None:
            dirty = {number: _since(pages, live.dirty.get(number), slots[number]) for number, pages in dirty.items()}
        counts = len(slots), self._add_dirty(parts, dirty)
        if counts != self._counts:
            self._counts = counts
            parts["slots"] = COUNTS.dump_json(counts)
        return parts

    def _add_slots(self, parts: dict[str, Encoded | None], slots: Mapping[int, Slot]) -> None:
        known = self._slots
        other = [number for number, slot in slots.items() if known.get(number) is not slot]
        gone = known.keys() - slots.keys() if len(known) + len(other) > len(slots) else ()
        for group in {number >> GROUP_SHIFT for number in (*other, *gone)}:
            parts[f"slots/{group}"] = _group(group, slots)
        for number in gone:
            del known[number]
        known.update((number, slots[number]) for number in other)

    def _add_dirty(self, parts: dict[str, Encoded | None], dirty: Mapping[int, DirtyPages]) -> int:
        """How many there are. An unchanged chunk is the same object with as many pages: clearing makes a new one."""
        before, self._chunks = self._chunks, {}
        for number, pages in dirty.items():
            if not pages.chunks:
                continue  # most of them
            for key, chunk in tuple(pages.chunks.items()):
                place, size = (number, key), len(chunk)
                known, then = before.pop(place, (None, 0))
                if size and (known is not chunk or then != size):
                    frozen = chunk if isinstance(chunk, range) else tuple(chunk)
                    size = len(frozen)  # guests may go on adding all the while
                    parts[f"dirty/{number}/{key}"] = partial(_encoded_runs, frozen)
                elif not size and known is not None:
                    parts[f"dirty/{number}/{key}"] = None
                if size:
                    self._chunks[place] = chunk, size
        for number, key in before:
            parts[f"dirty/{number}/{key}"] = None
        return sum(size for _, size in self._chunks.values())


def _group(group: int, slots: Mapping[int, Slot]) -> Encoded | None:
    first = group << GROUP_SHIFT
    found = [slots[number] for number in range(first, first + (1 << GROUP_SHIFT)) if number in slots]
    return partial(_encoded_group, found) if found else None


def _encoded_group(slots: list[Slot]) -> bytes:
    rows = [(slot.id, slot.base_gfn, slot.npages, slot.flags.value, slot.userspace_addr) for slot in slots]
    return GROUP.dump_json(rows)


def _since(pages: DirtyPages, now: DirtyPages | None, slot: Slot) -> DirtyPages:
    """The dirty pages of a slot that a transaction may have replaced meanwhile."""
    if now is None or now is pages:
        return pages
    both = pages.copy()
    both.update(page for page in now if page < slot.npages)
    return both


def _encoded_runs(pages: Collection[int]) -> bytes:
    return RUNS.dump_json(_runs(pages))


def _runs(pages: Collection[int]) -> list[int]:
    """Runs of pages that are next to each other: a slot may be far larger than what is written of it."""
    if isinstance(pages, range):
        return [pages.start, len(pages)]
    runs: list[int] = []
    for page in sorted(pages):
        if runs and page == runs[-2] + runs[-1]:
            runs[-1] += 1
        else:
            runs += (page, 1)
    return runs
