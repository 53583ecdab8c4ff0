"""Verdicts: the ones that semantics.md section 1.7 knows, and that ``holds`` keeps everything."""

import pytest

from kickstand.core.variants import variant, variants
from kickstand.explore.crosscheck import differences
from kickstand.explore.decide import Decision, Effort
from kickstand.explore.matrix import explore
from kickstand.explore.question import Question
from kickstand.explore.search.properties import PROPERTIES, SAFETY
from kickstand.explore.world.cell import BEHAVIOURS, Cell
from kickstand.explore.world.scenarios import SCENARIOS, scenario
from tests.explore.cells import fallen
from tests.long import either

pytestmark = pytest.mark.slow

HOLE, HANG = "missing_slot", "kick_returns"
KNOWN = {  # variant: (holes, hangs) with the gate, and without it
    "sticky": ((False, False), (False, False)),
    "clear_on_exit": ((False, False), (True, True)),
    "check_not_test": ((False, True), (True, True)),
    "clear_before_up_write": ((True, False), (True, False)),
    "clear_after_up_write": ((True, False), (True, False)),
    "srcu": ((False, False), (False, False)),
    "accel_blocker": ((False, False), (False, False)),
    "holds": ((False, False), (False, False)),
}


def one(scenario, variant, behaviour, **more):
    return Question(scenario, (variant,), (behaviour,), **more)


@pytest.mark.parametrize("variant", KNOWN)
@pytest.mark.parametrize("behaviour", BEHAVIOURS)
@pytest.mark.parametrize("vcpus", either([1], [1, 2]))
def test_holes_and_hangs_are_those_of_an_independent_model(variant, behaviour, vcpus):
    holes, hangs = KNOWN[variant][behaviour == "careless"]
    found = fallen("merge", variant, behaviour, vcpus)
    assert found & {HOLE, HANG} == {name for name, falls in ((HOLE, holes), (HANG, hangs)) if falls}


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("behaviour", either(["careless"], BEHAVIOURS))
def test_holds_keeps_every_property(name, behaviour):
    assert fallen(name, "holds", behaviour) == set()


@pytest.mark.parametrize("behaviour", either(["well"], BEHAVIOURS))
def test_holds_keeps_every_property_with_two_vcpus_and_with_two_vmms(behaviour):
    assert fallen("merge", "holds", behaviour, 2) == set()
    assert fallen("merge", "holds", behaviour, 1, 2) == set()


@pytest.mark.parametrize("behaviour", either(["careless"], BEHAVIOURS))
@pytest.mark.parametrize("variant", either(("sticky", "holds", "srcu", "none", "accel_blocker"), tuple(variants())))
def test_every_reduction_decides_as_the_full_search(variant, behaviour):
    assert list(differences(one("merge", variant, behaviour), unmerged=True)) == []


@pytest.mark.parametrize("name", ["hotplug", "two_vms", "pending_io", "other_ioctl", "stuck_fault", "dirty_log"])
@pytest.mark.parametrize("variant", either(["sticky"], ["sticky", "global_rwsem"]))
def test_every_reduction_decides_as_the_full_search_in_other_scenarios(name, variant):
    assert list(differences(one(name, variant, "well", properties=SAFETY), unmerged=True)) == []


TWO = [("sticky", "careless"), ("holds", "well"), ("check_not_test", "well"), ("none", "well")]


@pytest.mark.parametrize(("variant", "behaviour"), either(TWO[:1], TWO))
def test_with_two_vcpus_partial_order_reduction_decides_as_the_search_without(variant, behaviour):
    assert list(differences(one("merge", variant, behaviour, vcpus=(2,)))) == []


def test_any_number_of_workers_finds_the_same(monkeypatch):
    monkeypatch.setattr("kickstand.explore.search.states.SHARED", 100)

    def found(workers):
        world, properties = scenario("merge", 2), ("missing_slot", "spurious_mmio", "bounded_busy")
        cell = Cell(world, variant("clear_after_up_write"), "careless", 2)
        decision = Decision(cell, Effort(learn=1_000, workers=workers))
        verdicts = [verdict.json() for verdict in decision.verdicts(properties)]
        return [(cell["verdict"], cell["states"], cell["transitions"], cell["token"]) for cell in verdicts]

    assert [found(workers) for workers in either([3], [2, 3])] == [found(1)] * either(1, 2)


# No shipped variant breaks these: planted mutations and users' variants do (test_contracts, test_wakeups).
KEPT_BY_ALL = {
    "assertion", "balance", "completed_once", "eintr_has_cause", "lost_wakeup", "resume_runs", "signal_leaves",
}  # fmt: skip


def test_every_property_falls_somewhere():
    cells = [
        ("merge", "none", "well", 1, 1),
        ("merge", "check_not_test", "careless", 1, 1),
        ("merge", "sticky", "careless", 1, 1),
        ("dirty_log", "none", "well", 1, 1),
        ("stuck_fault", "sticky", "well", 1, 1),
        ("two_vms", "global_rwsem", "well", 1, 1),
    ]
    assert set().union(*(fallen(*cell) for cell in cells)) == set(PROPERTIES) - KEPT_BY_ALL


def test_a_limit_is_met_with_undecided_and_says_which():
    (verdict,) = explore("merge", "holds", "well", properties=["missing_slot"], max_states=100)
    assert verdict.verdict == "undecided"
    assert verdict.bound == "max_states 100"


def test_a_violation_within_the_limit_is_still_one():
    (verdict,) = explore("merge", "none", "well", properties=["closed_window"], max_states=100)
    assert verdict.verdict == "violated"
