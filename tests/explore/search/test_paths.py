"""Ways to a violation, on graphs small enough to draw."""

from types import SimpleNamespace

import numpy as np

from kickstand.explore.evidence.paths import to_hit, to_level
from kickstand.explore.learn.observe import Did
from kickstand.explore.search.states import Hit


def graph(edges, *levels):
    """A search of a graph: ``edges`` are (thread, from, to, what it did)."""

    def expand(words, thread):
        found = [
            (to, int(did), at)
            for at, word in enumerate(words.tolist())
            for who, origin, to, did in edges
            if who == thread and origin == word
        ]
        new, flags, source = zip(*found, strict=True) if found else ((), (), ())
        return np.array(new, np.uint64), np.array(flags, np.int64), np.array(source, np.int64)

    words = [np.array(level, np.uint64) for level in levels]
    threads = range(1 + max(edge[0] for edge in edges))
    return SimpleNamespace(tables=SimpleNamespace(expand=expand, threads=threads), result=SimpleNamespace(levels=words))


def test_the_last_move_is_the_one_that_did_what_the_property_forbids_not_the_one_with_the_largest_number():
    search = graph([(0, 1, 2, Did.ACCESS | Did.EINTR), (0, 1, 3, Did.LOST_EXIT), (0, 1, 4, Did.CONSUMED)], [1])
    path = to_hit(search, Hit(1, 0, np.array([1], np.uint64), int(Did.LOST_EXIT)))
    assert [(move.source, move.target) for move in path.moves] == [(1, 3)]


def test_of_the_shortest_ways_the_one_with_the_fewest_context_switches_is_shown():
    edges = [(0, 1, 2, 0), (1, 2, 4, 0), (0, 4, 6, 0), (0, 1, 3, 0), (0, 3, 5, 0), (1, 5, 6, 0)]
    search = graph(edges, [1], [2, 3], [4, 5], [6])
    path = to_level(search, 3, np.array([6], np.uint64))
    assert [move.thread for move in path.moves] == [0, 0, 1]
    assert path.start == 1
    assert path.end == 6
