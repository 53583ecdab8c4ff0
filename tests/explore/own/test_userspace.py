"""What a VMM's threads do in userspace, as a scenario's file says it: locks, handlers, signals, and who is killed."""

import pytest

from kickstand.core.variants import variant
from kickstand.explore.crowd.certificate import certify
from kickstand.explore.decide import Decision, Effort
from kickstand.explore.evidence.tokens import decode
from kickstand.explore.matrix import replay_token
from kickstand.explore.search.properties import PROPERTIES
from kickstand.explore.world.cell import Cell
from kickstand.explore.world.scenarios import ScenarioError
from kickstand.explore.world.scenarios.files import oddities, parse
from tests.long import either

REGION = {"slot": 0, "gpa": 4096, "size": 4096}
ANYTHING = [["choose", [["compute", 1]], [["hlt"]], [["in", 128]], [["read", 4096]]]]


def op(name, **args):
    return {"op": name, "args": args}


SHRINK = op("memory_transaction", operations=[op("set_memory_region", **{**REGION, "size": 0})])
GROW = op("memory_transaction", operations=[op("set_memory_region", **{**REGION, "size": n}) for n in (0, 8192)])
EMPTY = op("memory_transaction", operations=[op("read_slots", gpa=4096)])


def world(operations, others=(), program=ANYTHING, **vm):
    return {
        "vms": [{"memory_regions": [REGION], "program": program, **vm}],
        "vmms": [{"operations": operations}, *({"name": name, "operations": theirs} for name, theirs in others)],
    }


def fallen(data, name="holds", behaviour="well", properties=PROPERTIES):
    """What is violated; each counterexample has been performed on the shipped runtime, and is once more."""
    cell = Cell(parse(data, "made", 1), variant(name), behaviour)
    found = [item for item in Decision(cell, Effort()).verdicts(properties) if item.verdict == "violated"]
    for item in found:
        replay_token(item.counterexample.token)
    return {item.property: item.counterexample for item in found}


KILLED = world([EMPTY], [("KILLER", [op("kill", thread="VMM")])])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", either(["sticky", "holds"], ["sticky", "holds", "accel_blocker", "arm64_pause", "srcu"])
)
@pytest.mark.parametrize("behaviour", ["well", "careless"])
def test_a_kick_whose_caller_is_killed_is_taken_back(name, behaviour):
    without = {"sticky": {"lost_exit", "bounded_busy", "livelock"}, "srcu": {"lost_exit", "bounded_busy", "livelock"}}
    assert fallen(KILLED, name, behaviour).keys() - {"kick_drains", "no_bystander"} <= without.get(name, set())


@pytest.mark.slow
def test_a_kick_that_is_not_taken_back_leaves_everybody_outside_for_ever(monkeypatch):
    async def keeps(self, task, *, opened):
        """Nothing."""

    monkeypatch.setattr(variant("holds"), "take_back", keeps)
    assert {"deadlock", "resume_runs", "progress"} & fallen(KILLED, properties=["deadlock", "progress"]).keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sticky", "holds"])
def test_a_vcpu_thread_that_is_killed_gives_everything_back(name, monkeypatch):
    data = world([GROW], [("KILLER", [op("kill", thread="CPU0")])])
    asked = ["balance", "deadlock", "progress", "kick_returns", "assertion"]
    assert fallen(data, name, properties=asked) == {}

    async def keeps_mode(vcpu):
        """``run_under_read_side`` that gives nothing back."""
        held = await vcpu.vm.variant.run_begin(vcpu)
        return await vcpu.kvm_arch_vcpu_ioctl_run() if held is not None else -4

    from kickstand.core.kvm_main import AnyVcpu

    monkeypatch.setattr(AnyVcpu, "run_under_read_side", keeps_mode)
    assert "balance" in fallen(data, name, properties=["balance"])


@pytest.mark.slow
def test_a_killed_thread_performs_no_further_call():
    data = world([op("post", event="a"), op("post", event="b")], [("KILLER", [op("kill", thread="VMM")])])
    waits = world([op("post", event="b")], [("KILLER", [op("kill", thread="VMM"), op("wait", event="b")])])
    assert "deadlock" not in fallen(data, properties=["deadlock"])
    assert "deadlock" in fallen(waits, properties=["deadlock"])


BQL = {"io": [op("lock", lock="bql"), op("unlock", lock="bql")]}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["holds", "accel_blocker"])
def test_a_big_lock_around_a_transaction_does_no_harm_where_kvm_run_is_left_without_it(name):
    assert fallen(world([op("lock", lock="bql"), GROW, op("unlock", lock="bql")], handlers=BQL), name) == {}


@pytest.mark.slow
def test_a_vcpu_that_keeps_the_big_lock_in_kvm_run_is_a_deadlock():
    keeps = {"start": [op("lock", lock="bql")]}
    found = fallen(world([op("lock", lock="bql"), GROW], program=[["hlt"]], handlers=keeps), properties=["deadlock"])
    assert "bql" in found["deadlock"].text()


@pytest.mark.slow
def test_two_locks_in_two_orders_are_a_deadlock():
    ab = [op("lock", lock="a"), op("lock", lock="b"), op("unlock", lock="b"), op("unlock", lock="a")]
    ba = [op("lock", lock="b"), op("lock", lock="a"), op("unlock", lock="a"), op("unlock", lock="b")]
    assert "deadlock" in fallen(world(ab, handlers={"io": ba}, program=[["in", 128]]), properties=["deadlock"])
    assert fallen(world(ab, handlers={"io": ab}, program=[["in", 128]]), properties=["deadlock"]) == {}


@pytest.mark.slow
@pytest.mark.parametrize("handlers", [{}, {"io": [op("lock", lock="a"), op("lock", lock="a"), op("unlock", lock="a")]}])
def test_who_takes_a_lock_twice_waits_for_himself(handlers):
    twice = [op("lock", lock="a"), op("lock", lock="a"), op("unlock", lock="a"), op("unlock", lock="a")]
    found = fallen(world([EMPTY] if handlers else twice, handlers=handlers, program=[["in", 128]]), "none")
    assert "a.wait_turn" in found["deadlock"].text()


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["lock", "unlock"])
def test_a_world_that_stands_still_at_once_is_certified_or_refused_and_no_more(operation):
    cell = Cell(parse(world([op(operation, lock="a")], program=[["spin"]]), "made", 1), variant("none"), "well")
    assert certify(cell, ["deadlock", "progress"]).certified


def test_a_name_that_nobody_else_uses_is_noted():
    """A misspelt lock excludes nobody, and a misspelt event comes never; both may be meant."""
    mine = [op("lock", lock="bql"), op("wait", event="out"), op("unlock", lock="bql")]
    right = world(mine, handlers={"eintr": [op("lock", lock="bql"), op("post", event="out"), op("unlock", lock="bql")]})
    assert list(oddities(parse(right, "made", 1))) == []
    slip = world(mine, handlers={"eintr": [op("lock", lock="bq1"), op("post", event="uot"), op("unlock", lock="bq1")]})
    assert set(oddities(parse(slip, "made", 1))) == {
        "only VMM uses the lock 'bql'",
        "only CPU0 uses the lock 'bq1'",
        "nobody posts the event 'out'",
        "nobody waits for the event 'uot'",
    }


@pytest.mark.slow
def test_an_unlock_of_what_somebody_else_holds_is_an_assertion():
    found = fallen(world([EMPTY], handlers={"io": [op("unlock", lock="bql")]}), properties=["assertion"])
    assert "unlocks what nobody holds" in found["assertion"].verdict


@pytest.mark.slow
@pytest.mark.parametrize(
    ("blocked", "handler", "lost"),
    [
        (True, "nothing", False),
        (False, "nothing", True),
        (True, "immediate_exit", False),
        (False, "immediate_exit", False),
    ],
)
def test_a_signal_is_lost_where_it_is_neither_blocked_nor_noted_by_its_handler(blocked, handler, lost):
    data = world(
        [op("signal", vcpu=0), op("wait", event="out")],
        program=[["compute", 1]],
        signals={"blocked": blocked, "handler": handler},
        handlers={"eintr": [op("post", event="out")]},
    )
    assert ("deadlock" in fallen(data, properties=["deadlock"])) is lost


@pytest.mark.slow
def test_a_token_carries_handlers_signals_and_kills():
    data = world([op("post", event="b")], [("KILLER", [op("kill", thread="VMM"), op("wait", event="b")])])
    (found,) = fallen(data | {"name": "made"}, properties=["deadlock"]).values()
    assert "kill" in str(decode(found.token).source)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (world([op("kill", thread="CPU7")]), "'CPU7' is none of the threads VMM, CPU0"),
        (world([EMPTY, op("kick")], [("KILLER", [op("kill", thread="VMM"), op("kick")])]), "is the only one of its VM"),
        (world([EMPTY], handlers={"later": []}), r"vms\[0\].handlers: 'later' is none of start"),
        (world([EMPTY], handlers=[]), r"vms\[0\].handlers is a mapping with start"),
        (
            world([EMPTY], handlers={"io": [op("kick")]}),
            r"handlers.io\[0\].op: a vCPU's thread is no VMM: no kick here",
        ),
        (
            world([EMPTY], signals={"handler": "panic"}),
            r"signals.handler: 'panic' is none of nothing, immediate_exit",
        ),
        (world([op("lock")]), "lock needs lock"),
        (world([op("post")]), "post needs event"),
    ],
)
def test_what_is_wrong_is_refused_with_its_place_and_the_rule(data, complaint):
    with pytest.raises(ScenarioError, match=complaint):
        parse(data, "made", 1)


@pytest.mark.slow
def test_an_assertion_that_is_asked_for_alone_is_looked_for_to_the_end():
    data = world([EMPTY], handlers={"io": [op("unlock", lock="bql")]})
    cell = Cell(parse(data, "made", 1), variant("holds"), "well")
    alone, *_ = Decision(cell, Effort()).verdicts(["assertion"])
    assert alone.verdict == "violated"
