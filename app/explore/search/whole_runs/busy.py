"""``bounded_busy``: more than two EINTR in a row inside a window, found by counting in layers.

Layer n holds the states in which a given vCPU has just returned EINTR n times in a row inside an open window
and has not entered the guest since. Layers are searched after the states themselves, so that counting does
not multiply the state space.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from kickstand.explore.learn.observe import Did
from kickstand.explore.search.sets import NO_WORDS, Shard, distinct
from kickstand.explore.search.states import Hit, Search
from kickstand.explore.search.tables import Words

LIMIT = 3  # the third EINTR in a row is one too many


class Layer:
    """What was reached with one count, level by level."""

    def __init__(self) -> None:
        self.seen = Shard()
        self.levels: list[Words] = []

    def add(self, words: Words) -> None:
        """Make the next level of what is new among ``words``."""
        fresh = self.seen.without(words)
        if len(fresh):
            self.seen.add(fresh)
        self.levels.append(fresh)


class Busy:
    """The layers of one vCPU thread."""

    def __init__(self, search: Search, vcpu: int) -> None:
        self.search = search
        self.vcpu = vcpu
        self.layers = [Layer() for _ in range(LIMIT)]
        self.layers[0].levels = search.result.levels

    def run(self) -> Hit | None:
        """Return the earliest third EINTR, or None if there is none among the states found."""
        depth = 0
        while depth < len(self.layers[0].levels) or any(
            len(layer.levels[-1]) for layer in self.layers[1:] if layer.levels
        ):
            fallen = self._level(depth)
            if len(fallen):
                return Hit(depth + 1, self.vcpu, fallen, int(Did.EINTR), layer=self.vcpu)
            depth += 1
        return None

    def _level(self, depth: int) -> Words:
        """Go from level ``depth`` of each layer to the next; return sources of a third EINTR."""
        coming: list[list[Words]] = [[], [], []]
        fallen: list[Words] = []
        for count, layer in enumerate(self.layers):
            if count and not layer.levels:
                layer.levels = [NO_WORDS] * (depth + 1)
            words = layer.levels[depth] if depth < len(layer.levels) else NO_WORDS
            if not len(words):
                continue
            words = words[self.search.marks.window(words, self.vcpu)]
            returned, sources = self.eintr(words)
            if count + 1 == LIMIT:
                fallen.append(sources)
            else:
                coming[count + 1].append(returned)
            if count:
                coming[count].append(self._others(words))
        for count in (1, 2):
            self.layers[count].add(distinct(coming[count]) if coming[count] else NO_WORDS)
        return distinct(fallen) if fallen else NO_WORDS

    def eintr(self, words: Words) -> tuple[Words, Words]:
        """States right after the vCPU returned EINTR, and before."""
        after, before = [NO_WORDS], [NO_WORDS]
        for thread, new, flags, source, _ in self.search.tables.moves(words):
            if thread == self.vcpu:
                hit = (flags & Did.EINTR) != 0
                after.append(new[hit])
                before.append(words[source[hit]])
        return np.concatenate(after), np.concatenate(before)

    def _others(self, words: Words) -> Words:
        """States after any step that neither counts nor resets."""
        parts = []
        for thread, new, flags, _, _ in self.search.tables.moves(words):
            parts.append(new[(flags & (Did.EINTR | Did.ENTERED)) == 0] if thread == self.vcpu else new)
        return distinct(parts)


def bounded_busy(search: Search) -> Hit | None:
    """The earliest violation over all vCPUs."""
    with ThreadPoolExecutor(search.workers) as pool:
        found = list(pool.map(lambda vcpu: Busy(search, vcpu).run(), search.marks.vcpus))
    hits = [hit for hit in found if hit is not None]
    return min(hits, key=lambda hit: hit.depth, default=None)
