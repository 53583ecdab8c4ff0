"""Sets of states: sorted runs of words, in shards that workers look after at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from kickstand.explore.search.tables import U, Words

NO_WORDS: Words = np.empty(0, dtype=U)
MIX = U(0x9E3779B97F4A7C15)
Each = Callable[..., Iterable[Any]]


def distinct(parts: Iterable[Words]) -> Words:
    """Return the words of all parts, sorted, each once."""
    several = list(parts)
    words = several[0].copy() if len(several) == 1 else np.concatenate(several)
    words.sort()
    if len(words) < 2:
        return words
    keep = np.empty(len(words), dtype=bool)
    keep[0] = True
    np.not_equal(words[1:], words[:-1], out=keep[1:])
    return words[keep]


class Shard:
    """A set of words: sorted runs of geometrically growing size."""

    def __init__(self) -> None:
        self.runs: list[Words] = []

    def add(self, words: Words) -> None:
        """Add words that are sorted and not in the set."""
        if not len(words):
            return
        self.runs.append(words)
        while len(self.runs) > 1 and len(self.runs[-2]) < 2 * len(self.runs[-1]):
            merged = np.concatenate([self.runs.pop(), self.runs.pop()])
            merged.sort()
            self.runs.append(merged)

    def without(self, words: Words) -> Words:
        """Return those of the sorted ``words`` that are not in the set."""
        for run in self.runs:
            if not len(words):
                break
            at = np.searchsorted(run, words)
            at[at == len(run)] = 0
            words = words[run[at] != words]
        return words


class Seen:
    """The states reached, in shards by a hash of the word, which workers look after at the same time."""

    def __init__(self, shards: int = 1) -> None:
        self.shards = [Shard() for _ in range(shards)]
        self.size = 0

    def shares(self, words: Words) -> list[Words]:
        """Divide words by shard; each share keeps their order."""
        if len(self.shards) == 1:
            return [words]
        shard = (words * MIX >> U(33)) % U(len(self.shards))
        return [words[shard == U(number)] for number in range(len(self.shards))]

    def add(self, shares: list[Words], each: Each = map) -> None:
        """Add words, by shard, that are sorted and not in the set."""
        self.size += sum(map(len, shares))
        for _ in each(Shard.add, self.shards, shares):
            pass

    def without(self, shares: list[list[Words]], each: Each = map) -> list[Words]:
        """Return what is not in the set, by shard and sorted, of words in several lists by shard."""
        return list(each(self._fresh, self.shards, zip(*shares, strict=True)))

    @staticmethod
    def _fresh(shard: Shard, words: Iterable[Words]) -> Words:
        return shard.without(distinct(words))

    def all(self) -> Words:
        """Every word, sorted."""
        runs = [run for shard in self.shards for run in shard.runs]
        if len(runs) > 1:
            merged = np.concatenate(runs)
            merged.sort()
            self.shards = [Shard()]
            self.shards[0].runs = runs = [merged]
        return runs[0] if runs else NO_WORDS
