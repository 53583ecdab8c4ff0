"""The certificate for every number of vCPUs, attacked: variants that break one condition each, and larger worlds."""

from functools import cache

import pytest

from kickstand.core.atomics import Shared, atomic, blocked
from kickstand.core.variants.holds import Holds, Window
from kickstand.core.variants.sticky import Sticky
from kickstand.explore.crowd.certificate import certify
from kickstand.explore.crowd.worlds import resizing
from kickstand.explore.decide import Decision, Effort
from kickstand.explore.matrix import replay_token, run_cell
from kickstand.explore.question import Question
from kickstand.explore.search.properties import SAFETY
from kickstand.explore.world.cell import BEHAVIOURS, Cell
from kickstand.explore.world.scenarios import scenario
from kickstand.explore.world.scenarios.files import parse
from tests.long import LONG, either

pytestmark = pytest.mark.slow
SAFE = ("missing_slot", "lost_exit", "kick_drains")
SPIN = [["choose", [["compute", 1]], [["hlt"]]]]
SMALL = {  # a KICK and a RESUME around guests that spin or halt: the same protocol, fewer states
    "name": "small",
    "vms": [{"memory_regions": [{"slot": 0, "gpa": 0x1000, "size": 0x1000}], "program": SPIN}],
    "vmms": [{"operations": [{"op": "kick"}, {"op": "resume"}]}],
}


def small(kind, behaviour="well"):
    kind.name = kind.name or kind.__name__.lower()
    return Cell(parse(SMALL, "small", 1), kind, behaviour, 1, 1)


@cache
def certified(kind):
    return certify(small(kind), SAFE)


def reasons(kind, largest=1, behaviour="well"):
    return " ".join(certify(small(kind, behaviour), SAFE, largest=largest).reasons)


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_holds_is_certified_for_every_number(behaviour):
    asked = ("missing_slot", "closed_window", "lost_exit", "kick_returns", "progress", "deadlock", "lost_wakeup")
    cell = Cell(scenario("merge"), Holds, behaviour) if behaviour == "careless" or LONG else small(Holds)
    certificate = certify(cell, asked, largest=1)
    assert certificate.cutoff == 1
    assert certificate.properties == [name for name in asked if name != "lost_wakeup"]


def test_two_vcpus_stand_for_all_where_a_semaphore_tells_of_company():
    assert "C3: memory_transaction.write_or_queue answers False in company" in reasons(Sticky)
    certificate = certified(Sticky)
    assert certificate.cutoff == 2
    assert certificate.properties == list(SAFE)


class Door(Shared):
    """Says who is inside, in ways that a certificate must not pass."""

    __slots__ = ("inside", "limit")
    FIELDS = ("inside", "limit")

    def __init__(self):
        super().__init__()
        self.inside = 0
        self.limit = 3

    @atomic
    async def enter(self):
        self.inside += 1

    @atomic
    async def leave(self):
        self.inside -= 1
        self.changed()

    @atomic
    async def alone(self):
        return self.inside == 1

    @atomic
    async def wait_alone(self):
        while self.inside:
            await blocked(self)
        self.inside += 1

    @atomic
    async def crowded(self):
        return self.inside >= self.limit

    @atomic
    async def seventh(self):
        return self.inside == 7

    @atomic
    async def odd(self):
        return bool(self.inside % 2)


class Doored(Holds):
    """``holds``, with a door that a vCPU or the VMM asks something."""

    def __init__(self, vm):
        super().__init__(vm)
        self.door = vm.share(Door())

    async def run_begin(self, vcpu):
        await self.door.enter()
        return await super().run_begin(vcpu)

    async def run_end(self, vcpu, held):
        await super().run_end(vcpu, held)
        await self.door.leave()


class VcpuLooksAround(Doored):
    async def exit_test(self, vcpu):
        await self.door.alone()
        return await super().exit_test(vcpu)


class OneAtATime(Doored):
    async def run_begin(self, vcpu):
        await self.door.wait_alone()
        return await self.window.enter(vcpu.task, vcpu.run_page) or None


class PokesItsNeighbour(Holds):
    async def exit_test(self, vcpu):
        for other in vcpu.vm.vcpus.values():
            if other is not vcpu:
                await other.task.signal_pending()
        return await super().exit_test(vcpu)


class Counts(Doored):
    async def kick(self, task):
        await self.door.crowded()
        return await super().kick(task)


class CountsToSeven(Doored):
    async def kick(self, task):
        await self.door.seventh()
        return await super().kick(task)


class IsOdd(Doored):
    async def kick(self, task):
        await self.door.odd()
        return await super().kick(task)


class FirstOnly(Holds):
    """KICK does something else if there is more than one vCPU."""

    async def kick(self, task):
        vcpus = await self.vm.online_vcpus()
        if len(vcpus) > 1:
            await self.window.held()
        return await super().kick(task)


BREAKS = {
    VcpuLooksAround: "C0|C1",
    OneAtATime: "C1: door.wait_alone waits in company",
    PokesItsNeighbour: "C1: a vCPU's cpu0.task.signal_pending touches another vCPU",
    Counts: "C0: door.crowded",
    CountsToSeven: "C0: door.seventh",
    IsOdd: "C0: door.odd",
    FirstOnly: "C2: VMM: window.held in company",
}


@pytest.mark.parametrize("kind", BREAKS, ids=lambda kind: kind.__name__)
def test_each_condition_that_is_broken_is_named(kind):
    said = reasons(kind)
    assert any(part in said for part in BREAKS[kind].split("|")), said


def test_a_window_that_forgets_to_wait_is_a_counterexample_or_no_certificate(monkeypatch):
    @atomic
    async def waits_for_nobody(window, process):
        """``drained`` that does not wait."""

    monkeypatch.setattr(Window, "drained", waits_for_nobody)
    certificate = certify(small(Holds), SAFE, largest=1)
    assert "kick_drains" not in certificate.properties


def test_a_window_that_waits_for_the_others_only_in_company_is_refused(monkeypatch):
    @atomic
    async def lets_one_be(window, process):
        """``drained`` that takes one vCPU inside for none, if there was company."""
        while len(window.inside) == 1:
            await blocked(window)

    monkeypatch.setattr(Window, "drained", lets_one_be)
    assert reasons(Holds)


@pytest.mark.parametrize(
    ("kind", "cutoff", "vcpus"), either([(Holds, 1, (2, 3))], [(Holds, 1, (2, 3, 4)), (Sticky, 2, (3, 4))])
)
def test_what_is_certified_is_so_in_larger_worlds(kind, cutoff, vcpus):
    cell = small(kind)
    certificate = certified(kind)
    assert certificate.cutoff == cutoff
    for number in vcpus:
        for verdict in Decision(resizing(cell)(number), Effort()).verdicts(SAFE):
            assert verdict.verdict != "violated" or verdict.property not in certificate.properties


def test_four_vcpus_are_decided_by_the_argument_and_not_by_a_search():
    (found,) = run_cell(Question("merge", ("holds",), ("careless",), (4,), properties=("missing_slot",)))
    assert found.verdict == "holds"
    assert found.any_number["cutoff"] == 1
    assert found.states < 100_000


def test_four_vcpus_that_lose_an_exit_are_told_so_by_a_search():
    (found,) = run_cell(Question("merge", ("none",), ("careless",), (4,), properties=("missing_slot",)))
    assert found.verdict == "violated"
    assert len(found.counterexample.trail.threads) == 5


@pytest.mark.skipif(not LONG, reason="a long form: a world of three vCPUs with ghosts, and four of which two move")
@pytest.mark.parametrize(("behaviour", "falls"), [("well", {"lost_exit"}), ("careless", {"lost_exit", "bounded_busy"})])
def test_four_vcpus_of_the_posted_patch_are_decided(behaviour, falls):
    found = run_cell(Question("merge", ("sticky",), (behaviour,), (4,), properties=SAFETY))
    assert {verdict.property for verdict in found if verdict.verdict == "violated"} == falls
    assert not [verdict for verdict in found if verdict.verdict == "undecided"]
    for verdict in found:
        assert verdict.counterexample is None or replay_token(verdict.counterexample.token)


@pytest.mark.parametrize(
    ("name", "why"),
    [("two_vms", "more than one VM"), ("hotplug", "one vCPU is created later"), ("device_interrupt", "names one vCPU")],
)
def test_scenarios_that_tell_vcpus_apart_are_refused(name, why):
    assert why in certify(Cell(scenario(name), Holds, "well"), SAFE).reasons[0]
