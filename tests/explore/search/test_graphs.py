"""Sets of words, fields, widths and fair cycles, on graphs small enough to draw."""

import numpy as np
import pytest

from kickstand.explore.search.sets import Seen, Shard, distinct
from kickstand.explore.search.tables import TooWideError, Widths
from kickstand.explore.search.whole_runs.cycles import Fair, Promise, Region, weak_fairness


def words(*numbers):
    return np.array(numbers, np.uint64)


def test_widths_put_each_component_into_its_field_and_back():
    widths = Widths([3, 5, 2])
    word = widths.pack((5, 17, 2))
    assert widths.unpack(word) == (5, 17, 2)
    assert widths.field(words(word), 1).tolist() == [17]
    with pytest.raises(TooWideError, match="needs 64 bits, one word has 63"):
        Widths([32, 32])


def test_distinct_sorts_and_keeps_each_once():
    assert distinct([words(3, 1), words(1, 2)]).tolist() == [1, 2, 3]
    assert distinct([words()]).tolist() == []


def test_a_shard_knows_what_was_added_whatever_the_order_of_runs():
    shard = Shard()
    for numbers in ((1, 5), (2,), (7, 9, 11), (3,)):
        shard.add(words(*numbers))
    assert shard.without(words(1, 2, 3, 4, 5, 6, 7, 10, 11)).tolist() == [4, 6, 10]


@pytest.mark.parametrize("shards", [1, 3])
def test_seen_finds_the_same_in_any_number_of_shards(shards):
    seen = Seen(shards)
    seen.add(seen.shares(words(1, 4, 9)))
    fresh = seen.without([seen.shares(words(9, 2, 1)), seen.shares(words(2, 3))])
    assert sorted(np.concatenate(fresh).tolist()) == [2, 3]
    assert seen.all().tolist() == [1, 4, 9]
    assert seen.size == 3


def region(edges, states, enabled):
    """``edges`` are (source, target, thread); ``enabled`` says per thread where it can move."""
    source, target, thread = (np.array(column) for column in zip(*edges, strict=True))
    able = np.array([[state in where for state in range(states)] for where in enabled])
    flags = np.zeros(len(edges), np.int64)
    return Region(words(*range(states)), source, target, thread.astype(np.int8), flags, able)


def test_a_cycle_is_fair_only_if_everybody_who_can_move_does():
    starving = region([(0, 1, 0), (1, 0, 0)], 2, [{0, 1}, {0, 1}])  # thread 1 could always move, and never does
    assert not Fair(starving, weak_fairness(starving), terminal=True).solve().any()
    waiting = region([(0, 1, 0), (1, 0, 0)], 2, [{0, 1}, {0}])  # it is disabled again and again
    assert Fair(waiting, weak_fairness(waiting), terminal=True).solve().all()


def test_a_state_where_nobody_can_move_repeats_itself():
    graph = region([(0, 1, 0)], 2, [{0}, set()])
    assert Fair(graph, weak_fairness(graph), terminal=True).solve().tolist() == [True, True]
    assert not Fair(graph, weak_fairness(graph), terminal=False).solve().any()


def test_a_promise_of_an_edge_is_kept_only_on_a_cycle_with_it():
    graph = region([(0, 1, 0), (1, 0, 0), (1, 2, 0), (2, 2, 0)], 3, [{0, 1, 2}])
    again = Promise(np.zeros(3, bool), np.array([False, True, False, False]))
    assert Fair(graph, [again], terminal=False).solve().tolist() == [True, True, False]
