"""Lost wake-ups: an operation lets a waiting thread go on, and wakes nobody.

The graph of states knows guards, not wake-ups: a thread can move as soon as its guard holds. The shipped runtime
parks it on the objects that its guard reads until somebody calls ``changed``. So each move that makes a guard true is
performed once more with a probe among the waiters; who makes it may also wake a few operations later.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kickstand.core.atomics import Choice
from kickstand.explore.learn.objects import Trap, Waits
from kickstand.explore.search.states import Search
from kickstand.explore.search.tables import Mask, Words

LOOKED_AT = 1_000_000  # states, the earliest first
SOON = 50  # operations of the same thread within which the wake-up may come


@dataclass(frozen=True, slots=True)
class Lost:
    """``waiter`` is blocked in ``source``; ``mover`` makes its guard true by going to ``target``."""

    level: int
    source: int
    target: int
    mover: int
    waiter: int


def lost_wakeup(search: Search) -> Lost | None:
    """The earliest lost wake-up among the states found, None if there is none."""
    seen: set[tuple[int, ...]] = set()
    left = LOOKED_AT
    for level, words in enumerate(search.result.levels):
        for found in _flips(search, level, words, seen):
            if not _woken(search, found):
                return found
        left -= len(words)
        if left < 0:
            break
    return None


def _flips(search: Search, level: int, words: Words, seen: set[tuple[int, ...]]) -> Iterator[Lost]:
    """Moves that make another thread's guard true: one for each way the components that matter can be."""
    tables = search.tables
    moves = [tables.expand(words, thread) for thread in tables.threads]
    able = [_mask(len(words), source) for _, _, source in moves]
    for mover, (new, _, source) in enumerate(moves):
        for waiter in tables.threads:
            if waiter == mover:
                continue
            blocked = np.flatnonzero(~able[waiter][source])
            if not len(blocked):
                continue
            opened = np.unique(tables.expand(new[blocked], waiter)[2])
            for at in blocked[opened].tolist():
                word, target = int(words[source[at]]), int(new[at])
                key = _key(search, word, target, mover, waiter)
                if key not in seen:
                    seen.add(key)
                    yield Lost(level, word, target, mover, waiter)


def _mask(size: int, positions: np.ndarray) -> Mask:
    mask = np.zeros(size, dtype=bool)
    mask[positions] = True
    return mask


def _key(search: Search, word: int, target: int, mover: int, waiter: int) -> tuple[int, ...]:
    before, after = search.tables.widths.unpack(word), search.tables.widths.unpack(target)
    model = search.tables.model
    changed = tuple(number for old, number in zip(before, after, strict=True) if old != number)
    return mover, waiter, model.stop(mover, before[mover]), before[waiter], *changed


def _woken(search: Search, lost: Lost) -> bool:
    """Perform the mover's operations one by one: one of them wakes the waiter, or nobody does."""
    model = search.tables.model
    objects = model.objects
    state = search.tables.widths.unpack(lost.source)
    concrete = model.concrete(state)
    trap = model.locals[lost.waiter].trap(model.stop(lost.waiter, state[lost.waiter]))
    assert trap is not None
    waits = objects.waits(trap, tuple(concrete[index] for index in trap.involved))
    if waits is None:
        return True  # it has ended, or waits for no object
    node = model.locals[lost.mover].stops[model.stop(lost.mover, state[lost.mover])].node
    return _wakes(search, lost.mover, node, concrete, waits)


def _wakes(search: Search, mover: int, node: int, concrete: list[int], waits: Waits) -> bool:
    automaton, objects = search.tables.model.knowledge.automata[mover], search.tables.model.objects
    for _ in range(SOON):
        effect = automaton.nodes[node].effect
        if type(effect) is Choice:
            node = automaton.step(node, 0)
            continue
        if type(effect) is not Trap:
            return False
        states = tuple(concrete[index] for index in effect.involved)
        if objects.wakes(effect, states, waits):
            return True
        outcome = objects.apply(effect, states)
        if outcome is None:
            return False
        for index, number in zip(effect.involved, outcome.states, strict=True):
            concrete[index] = number
        node = automaton.step(node, outcome.result)
    return False
