"""Schedules drawn from a seed, over a world of two counters."""

from types import SimpleNamespace

import pytest

from kickstand.explore.learn.model import Successor
from kickstand.explore.learn.observe import At, Did
from kickstand.explore.search import sampling
from kickstand.explore.search.sampling import Sampler
from kickstand.explore.world.build import Role
from kickstand.explore.world.threads import Stage

BOTH = Did.MISSING_SLOT | Did.LOST_EXIT


class Counters:
    """Each thread counts to its end, and all to a sum; ``flags(thread, own, sum)`` says what a step does."""

    def __init__(self, *ends, flags=lambda thread, own, total: 0, roles=None, label=None, stage=None):
        self.ends = ends
        self.flags = flags
        self.members = [()] * (len(ends) + 1)
        roles = roles or [Role.VCPU] * len(ends)
        self.threads = [SimpleNamespace(role=role, vm="v") for role in roles]
        self.label = label or (lambda thread, state: At.ENDED if state == self.ends[thread] else At(0))
        self.stage = stage or (lambda thread, state: None)

    def initial(self):
        return [(0,) * len(self.members)]

    def kind(self, thread, state):
        return None if state == self.ends[thread] else (len(self.ends),)

    def step(self, thread, own, others, kind):
        return (Successor((own + 1, others[0] + 1), self.flags(thread, own, others[0])),)


def sampled(model, strategy="random", seed=0, wanted=("missing_slot",), states=10_000):
    sampler = Sampler(model, strategy, seed, set(wanted))
    sampler.run(states)
    return sampler


def rare(thread, own, total):
    """Thread 1 takes its first step after all of thread 0's."""
    return Did.MISSING_SLOT if thread == 1 and own == 0 and total == 6 else 0


@pytest.mark.parametrize("strategy", ["random", "pct"])
def test_the_same_seed_draws_the_same_schedules(strategy):
    one, other = (sampled(Counters(6, 6, flags=rare), strategy, seed=7) for _ in range(2))
    assert one.found == other.found
    assert (one.steps, one.states) == (other.steps, other.states)
    assert sampled(Counters(6, 6, flags=rare), strategy, seed=8).steps != one.steps


@pytest.mark.parametrize("strategy", ["random", "pct"])
def test_a_violation_is_found_with_the_way_to_it(strategy):
    found = sampled(Counters(6, 6, flags=rare), strategy).found["missing_slot"]
    assert found.thread == 1
    assert [move.thread for move in found.path.moves] == [0] * 6 + [1]


def test_priorities_find_an_order_that_chance_seldom_draws(monkeypatch):
    """A thread that has to run 40 steps before anybody else: one run in two, or one in 2**40."""
    monkeypatch.setattr(sampling, "RUNS", 20)
    late = lambda thread, own, total: Did.MISSING_SLOT if thread == 1 and own == 0 and total == 40 else 0  # noqa: E731
    assert sampled(Counters(40, 5, flags=late), "pct").found
    assert not sampled(Counters(40, 5, flags=late), "random").found


def test_of_two_ways_the_shorter_is_kept(monkeypatch):
    monkeypatch.setattr(sampling, "RUNS", 60)
    always = lambda thread, own, total: BOTH if thread == 1 else 0  # noqa: E731
    found = sampled(Counters(3, 1, flags=always), wanted=("missing_slot", "lost_exit", "deadlock")).found
    assert {name: len(found[name].path.moves) for name in ("missing_slot", "lost_exit")} == {
        "missing_slot": 1,
        "lost_exit": 1,
    }


def test_nothing_but_what_is_wanted_is_noted():
    assert sampled(Counters(2, 2, flags=lambda *_: BOTH), wanted=("lost_exit",)).found.keys() == {"lost_exit"}


def test_it_stops_once_everything_wanted_has_fallen_or_enough_was_seen(monkeypatch):
    monkeypatch.setattr(sampling, "RUNS", 10_000)
    assert sampled(Counters(2, 2, flags=lambda *_: BOTH)).steps == 4  # one run
    assert len(sampled(Counters(30, 30), states=100).states) < 200


def test_whoever_can_go_nowhere_and_has_not_ended_is_in_a_deadlock():
    stuck = Counters(1, 1, roles=[Role.VMM, Role.VCPU], label=lambda thread, state: At(0))
    assert sampled(stuck, wanted=("deadlock",)).found
    ended = Counters(1, 1, roles=[Role.VMM, Role.VCPU])
    assert not sampled(ended, wanted=("deadlock",)).found
    sleeping = Counters(
        1, 1, roles=[Role.VMM, Role.VCPU], label=lambda thread, state: At.ENDED if thread == 0 else At.HALTED
    )
    assert not sampled(sleeping, wanted=("deadlock",)).found


def test_an_access_counts_while_a_transaction_of_its_own_vm_has_its_window_open():
    model = Counters(
        1,
        3,
        roles=[Role.VMM, Role.VCPU],
        flags=lambda thread, own, total: Did.ACCESS if thread == 1 else 0,
        stage=lambda thread, state: Stage.WINDOW if thread == 0 and state == 1 else None,
    )
    assert sampled(model, wanted=("closed_window",)).found["closed_window"].thread == 1
    model.threads[0].vm = "another"
    assert not sampled(model, wanted=("closed_window",)).found
