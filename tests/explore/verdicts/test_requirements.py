"""Requirements that need a scenario of their own."""

import pytest

from kickstand.core.variants import variants
from kickstand.explore.decide import Decision
from kickstand.explore.matrix import explore
from kickstand.explore.world.cell import Cell
from kickstand.explore.world.scenarios.files import parse

pytestmark = pytest.mark.slow
PAGE = 0x1000
M1 = {"slot": 0, "gpa": PAGE, "size": PAGE, "host": PAGE}
M2 = {"slot": 1, "gpa": 2 * PAGE, "size": PAGE, "host": 2 * PAGE}
MERGE = [
    {"op": "set_memory_region", "args": {**M1, "size": 0}},
    {"op": "set_memory_region", "args": {**M2, "size": 0}},
    {"op": "set_memory_region", "args": {**M1, "size": 2 * PAGE}},
]
TRANSACTION = {"op": "memory_transaction", "args": {"operations": MERGE}}


def world(program, *, vmms=(), **vm):
    return parse(
        {
            "name": "own",
            "vms": [{"memory_regions": [M1, M2], "program": program, **vm}],
            "vmms": [{"operations": [TRANSACTION]}, *vmms],
        }
    )


def verdict(scenario, variant, behaviour, name):
    (found,) = Decision(Cell(scenario, variants()[variant], behaviour)).verdicts([name])
    return found


def test_code_in_a_deleted_slot_is_an_internal_error_without_the_kick_and_none_with_it():
    scenario = world([["fetch", 2 * PAGE]])
    fallen = verdict(scenario, "none", "well", "spurious_mmio")
    assert fallen.verdict == "violated"
    assert "KVM_RUN = 0 INTERNAL_ERROR 0x2000" in fallen.counterexample.text()
    assert verdict(scenario, "sticky", "well", "spurious_mmio").verdict == "holds"


def test_the_repaired_order_of_the_exit_test_loses_no_exit():
    program = [["choose", [["out", 0x80, 1]], [["in", 0x80]], [["read", 0]], [["write", 0, 1]]]]
    assert verdict(world(program), "sticky", "careless", "lost_exit").verdict == "violated"
    repaired = world(program, switches={"exit_test": "after_r"})
    assert verdict(repaired, "sticky", "careless", "lost_exit").verdict == "holds"


def test_overlapping_ioctls_starve_the_accel_blocker():
    reader = [{"op": "read_slots", "args": {"gpa": PAGE}}]
    one = world([["compute", 1]], vmms=[{"name": "A", "operations": reader, "loop": True}])
    two = world([["compute", 1]], vmms=[{"name": n, "operations": reader, "loop": True} for n in "AB"])
    assert verdict(one, "accel_blocker", "well", "kick_returns").verdict == "holds"
    starved = verdict(two, "accel_blocker", "well", "kick_returns")
    assert starved.verdict == "violated"
    assert starved.fairness == "weak"


def slot(gpa=PAGE, size=PAGE, number=0):
    return {"op": "set_memory_region", "args": {"slot": number, "gpa": gpa, "size": size, "host": PAGE}}


@pytest.mark.parametrize(
    "operations",
    [
        [slot(3 * PAGE), slot(PAGE)],  # MOVE, MOVE
        [slot(size=0), slot(), slot(size=0), slot()],  # DELETE, CREATE, DELETE, CREATE
        [slot(size=0), slot(4 * PAGE, number=1), slot(size=0, number=1), slot()],  # by way of another slot
    ],
)
def test_a_list_that_ends_where_it_began_shows_a_guest_nothing_in_between(operations):
    def meets_a_hole(protect):
        change = {"op": "memory_transaction", "args": {"operations": operations, "protect": protect}}
        scenario = parse(
            {
                "name": "there_and_back",
                "vms": [{"memory_regions": [M1], "program": [["write", PAGE, 1]]}],
                "vmms": [{"operations": [change]}],
            }
        )
        return verdict(scenario, "region_list", "careless", "missing_slot").verdict

    assert meets_a_hole("list") == "holds"
    assert meets_a_hole("none") == "violated"


def test_an_error_in_the_middle_of_a_list_changes_nothing_for_a_guest():
    broken = [slot(size=0), slot(size=0, number=7), slot()]
    change = {"op": "memory_transaction", "args": {"operations": broken, "protect": "list"}}
    scenario = parse(
        {
            "name": "broken_list",
            "vms": [{"memory_regions": [M1], "program": [["read", PAGE]]}],
            "vmms": [{"operations": [change]}],
        }
    )
    assert verdict(scenario, "region_list", "careless", "spurious_mmio").verdict == "holds"


def test_a_window_that_is_never_closed_breaks_resume_runs_unless_nobody_waits():
    kick_only = parse(
        {
            "name": "forgotten",
            "vms": [{"memory_regions": [M1], "program": [["read", PAGE]]}],
            "vmms": [{"operations": [{"op": "kick"}]}],
        }
    )
    fallen = verdict(kick_only, "sticky", "well", "resume_runs")
    assert fallen.verdict == "violated"
    assert "CPU0 waits for ever: resume_flag.wait()" in fallen.counterexample.text()
    assert verdict(kick_only, "signal", "careless", "resume_runs").verdict == "holds"


NESTED, CREATED, INTERRUPTED = "nested", "race_create", "device_interrupt"


@pytest.mark.parametrize(
    ("scenario", "variant", "name", "answer"),
    [
        (NESTED, "sticky", "missing_slot", "violated"),  # one bit knows no second holder
        (NESTED, "holds", "missing_slot", "holds"),
        (CREATED, "sticky", "closed_window", "violated"),
        (CREATED, "holds", "closed_window", "holds"),
        (INTERRUPTED, "sticky", "kick_returns", "holds"),
        ("repeat", "none", "missing_slot", "violated"),
    ],
)
def test_further_scenarios_tell_the_variants_apart(scenario, variant, name, answer):
    assert [item.verdict for item in explore(scenario, variant, "well", properties=[name])] == [answer]


def test_an_interrupt_wakes_a_halted_vcpu_and_immediate_exit_keeps_it_out():
    def explored(*operations, program):
        return parse(
            {
                "name": "own",
                "vms": [{"memory_regions": [M1], "program": program}],
                "vmms": [{"operations": list(operations)}],
            }
        )

    interrupt = {"op": "interrupt", "args": {"vcpu": 0, "vector": 40}}
    woken = explored(interrupt, {"op": "nmi", "args": {"vcpu": 0}}, program=[["in", 1], ["hlt"]])
    assert verdict(woken, "sticky", "careless", "balance").verdict == "holds"
    out = explored({"op": "immediate_exit", "args": {"vcpu": 0}}, program=[["spin"]])
    assert verdict(out, "sticky", "careless", "eintr_has_cause").verdict == "holds"
    assert verdict(out, "sticky", "careless", "progress").verdict == "violated"
