"""A model's steps as integer arrays, so that numpy moves a million states at a time.

A global state is one 64-bit word, a field for each component. For a thread, the field of its component says
which other components its next step involves (its *kind*); those fields together are the index into a table
of successors, which is filled by the model when a combination is met for the first time.
"""

from __future__ import annotations

from collections.abc import Iterator
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kickstand.explore.learn.model import Model
from kickstand.explore.search.reduction import Reduction
from kickstand.explore.world.parts import Role

Words = NDArray[np.uint64]
Numbers = NDArray[np.int64]
Mask = NDArray[np.bool_]
U = np.uint64
ENDED, UNKNOWN = -1, -2
DENSE = 1 << 27
WORD = 63  # bits of a state


class TooWideError(Exception):
    """The components of this world do not fit into one 64-bit word."""


class Widths:
    """Where each component's field lies in the word."""

    def __init__(self, bits: list[int], *, limit: int | None = WORD) -> None:
        self.bits = bits
        if limit is not None and sum(bits) > limit:
            raise TooWideError(f"a state needs {sum(bits)} bits, one word has {limit}")
        self.shift = [sum(bits[:component]) for component in range(len(bits))]
        self.mask = [(1 << width) - 1 for width in bits]

    def pack(self, state: tuple[int, ...]) -> int:
        """Return the word of a state."""
        return sum(number << shift for number, shift in zip(state, self.shift, strict=True))

    def unpack(self, word: int) -> tuple[int, ...]:
        """Return the state of a word."""
        return tuple(word >> shift & mask for shift, mask in zip(self.shift, self.mask, strict=True))

    def field(self, words: Words, component: int) -> Numbers:
        """Return one component of each state."""
        return ((words >> U(self.shift[component])) & U(self.mask[component])).astype(np.int64)


class Kind:
    """The table of one thread's steps that involve the same components."""

    def __init__(self, thread: int, others: tuple[int, ...], widths: Widths) -> None:
        self.thread = thread
        self.others = others
        self.widths = widths
        self.components = (thread, *others)
        self.size = 1 << sum(widths.bits[component] for component in self.components)
        self.dense = self.size <= DENSE
        # Entry numbers plus one; zeroed memory is taken from the system only where it is touched.
        self.index = np.zeros(self.size if self.dense else 0, dtype=np.int32)
        self.sparse = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)  # keys, sorted, and their entries
        mask = 0
        for component in self.components:
            mask |= widths.mask[component] << widths.shift[component]
        self.keep = U(~mask & (1 << 64) - 1)

    def key_of(self, words: Words) -> Numbers:
        """The index into the table."""
        key = self.widths.field(words, self.thread)
        for component in self.others:
            key = (key << self.widths.bits[component]) | self.widths.field(words, component)
        return key

    def states_of(self, key: int) -> tuple[int, ...]:
        """The component states behind an index: the thread's own first."""
        numbers = []
        for component in reversed(self.others):
            numbers.append(key & self.widths.mask[component])
            key >>= self.widths.bits[component]
        return (key, *reversed(numbers))

    def lookup(self, keys: Numbers) -> Numbers:
        """The entry of each key, -1 where there is none yet."""
        if self.dense:
            return self.index[keys].astype(np.int64) - 1
        known, entries = self.sparse
        if not len(known):
            return np.full(len(keys), -1, dtype=np.int64)
        at = np.searchsorted(known, keys)
        at[at == len(known)] = 0
        return np.where(known[at] == keys, entries[at], -1)

    def put(self, keys: Numbers, entries: Numbers) -> None:
        """Remember new entries."""
        if self.dense:
            self.index[keys] = entries + 1
            return
        keys = np.concatenate([self.sparse[0], keys])
        order = np.argsort(keys)
        self.sparse = keys[order], np.concatenate([self.sparse[1], entries])[order]


class Growing:
    """An integer array that grows at its end."""

    def __init__(self, dtype: Any) -> None:
        self.data: NDArray[Any] = np.zeros(1024, dtype=dtype)
        self.size = 0

    def extend(self, values: list[int]) -> None:
        """Append."""
        need = self.size + len(values)
        while need > len(self.data):
            self.data = np.concatenate([self.data, np.zeros_like(self.data)])
        self.data[self.size : need] = values
        self.size = need


class Moves(NamedTuple):
    """One thread's steps from some states: ``source`` is the position of the state that each came from."""

    thread: int
    words: Words
    flags: Numbers
    source: Numbers
    tried: Numbers | None  # the positions at which others move too; None: all


class Tables:
    """All tables of one model for one choice of widths; with ``reduction`` only the moves that matter.

    ``moving``: the moves of so many vCPUs, as if the others never called KVM_RUN.
    """

    def __init__(
        self, model: Model, widths: Widths, reduction: Reduction | None = None, moving: int | None = None
    ) -> None:
        self.model = model
        self.widths = widths
        self.reduction = reduction
        self.lock = Lock()  # held by the worker that learns; the others read what is complete
        self.threads = range(len(model.threads))
        vcpus = [number for number in self.threads if model.threads[number].role is Role.VCPU]
        still = () if moving is None else vcpus[moving:]
        self.movers = [number for number in self.threads if number not in still]
        self.kinds: list[list[Kind]] = [[] for _ in self.threads]
        self._by_others: list[dict[tuple[int, ...], int]] = [{} for _ in self.threads]
        self.kind_of = [np.full(1 << widths.bits[thread], UNKNOWN, dtype=np.int64) for thread in self.threads]
        self.first = Growing(np.int64)  # entry -> its first successor
        self.count = Growing(np.int64)
        self.value = Growing(np.uint64)  # successor -> new fields
        self.flags = Growing(np.int64)

    def full(self) -> list[int]:
        """Components that outgrew their field."""
        return [
            component
            for component, states in enumerate(self.model.states)
            if len(states) > 1 << self.widths.bits[component]
        ]

    def moves(self, words: Words) -> Iterator[Moves]:
        """Let everybody who moves do so in each state, or only one where that is enough."""
        if self.reduction is None:
            for thread in self.movers:
                yield Moves(thread, *self.expand(words, thread), None)
            return
        left = np.arange(len(words))
        stops = [self.reduction.stop_of(thread, self.widths.field(words, thread)) for thread in self.threads]
        for thread in self.movers:
            free = self.reduction.free(stops, thread, left)
            if not len(free):
                continue
            new, flags, source = self.expand(words[free], thread)
            source = free[source]
            yield Moves(thread, new, flags, source, left[:0])
            rest = np.zeros(len(words), dtype=bool)
            rest[left] = True
            rest[source] = False  # where it has to wait, another may be free
            left = np.flatnonzero(rest)
        for thread in self.movers:
            new, flags, source = self.expand(words[left], thread)
            yield Moves(thread, new, flags, left[source], left)

    def expand(self, words: Words, thread: int) -> tuple[Words, NDArray[np.int64], Numbers]:
        """Let ``thread`` take its next step in each state: successors, their flags, which word each came from."""
        own = self.widths.field(words, thread)
        kinds = self.kind_of[thread][own]
        if (kinds == UNKNOWN).any():
            with self.lock:
                self._classify(thread, np.unique(own[kinds == UNKNOWN]))
            kinds = self.kind_of[thread][own]
        parts = []
        for number in range(len(self.kinds[thread])):
            here = np.flatnonzero(kinds == number)
            if len(here):
                parts.append(self._expand_kind(words[here], here, self.kinds[thread][number]))
        if not parts:
            return words[:0], np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        if len(parts) == 1:
            return parts[0]
        new, flags, source = zip(*parts, strict=True)
        return np.concatenate(new), np.concatenate(flags), np.concatenate(source)

    def _expand_kind(self, words: Words, here: Numbers, kind: Kind) -> tuple[Words, NDArray[np.int64], Numbers]:
        keys = kind.key_of(words)
        entries = kind.lookup(keys)
        if (entries < 0).any():
            with self.lock:  # another worker may have met the same combinations meanwhile
                missing = np.unique(keys[entries < 0])
                self._fill(kind, missing[kind.lookup(missing) < 0])
            entries = kind.lookup(keys)
        counts = self.count.data[entries]
        first = self.first.data[entries]
        base = words & kind.keep
        most = int(counts.max())
        if most == 1 and counts.min() == 1:
            return base | self.value.data[first], self.flags.data[first], here
        sources, successors = [], []
        for number in range(most):  # ``np.repeat`` would do, but keeps other workers waiting
            source = np.flatnonzero(counts > number)
            sources.append(source)
            successors.append(first[source] + number)
        source = np.concatenate([here[:0], *sources])
        successor = np.concatenate([first[:0], *successors])
        return base[source] | self.value.data[successor], self.flags.data[successor], here[source]

    def _classify(self, thread: int, own: Numbers) -> None:
        for number in own.tolist():
            if self.kind_of[thread][number] != UNKNOWN:
                continue
            others = self.model.kind(thread, number)
            if others is None:
                self.kind_of[thread][number] = ENDED
                continue
            known = self._by_others[thread]
            if others not in known:
                known[others] = len(self.kinds[thread])
                self.kinds[thread].append(Kind(thread, others, self.widths))
            self.kind_of[thread][number] = known[others]

    def _fill(self, kind: Kind, keys: Numbers) -> None:
        entries = []
        widths = self.widths
        for key in keys.tolist():
            own, *others = kind.states_of(key)
            steps = self.model.step(kind.thread, own, tuple(others), kind.others)
            entries.append(self.first.size)
            self.first.extend([self.value.size])
            self.count.extend([len(steps)])
            self.value.extend(
                [
                    sum(
                        number << widths.shift[component]
                        for component, number in zip(kind.components, step.components, strict=True)
                    )
                    for step in steps
                ]
            )
            self.flags.extend([int(step.flags) for step in steps])
        if self.full():
            raise OverflowError
        kind.put(keys, np.array(entries, dtype=np.int64))
