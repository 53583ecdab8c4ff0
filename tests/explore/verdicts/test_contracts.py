"""Contracts of KICK and KVM_RUN: each class of planted mutation is convicted by its property, nothing shipped is."""

import errno

import pytest

from kickstand.core.atomics import atomic
from kickstand.core.memslots import Memslots
from kickstand.core.shared.requests import Request
from kickstand.core.shared.rwsem import READ, Srcu
from kickstand.core.variants import variants
from kickstand.core.variants.arm64_pause import Arm64Pause
from kickstand.core.variants.holds import Holds
from kickstand.core.variants.sticky import Sticky
from kickstand.core.vcpu import AGAIN, Vcpu
from kickstand.explore.matrix import explore, replay_token
from tests.explore.cells import decided
from tests.long import either

pytestmark = pytest.mark.slow
CONTRACTS = ("kick_drains", "completed_once", "signal_leaves", "eintr_has_cause", "balance", "dirty_kept")


async def waits_for_nobody(variant, task):
    """The posted patch without its semaphore: KICK only makes the requests."""


async def forgets_the_access(vcpu, pending):
    """``complete_userspace_io`` that leaves with EINTR after the access has been taken."""
    return -errno.EINTR


complete_userspace_io = Vcpu.complete_userspace_io


async def completes_twice(vcpu, pending):
    await complete_userspace_io(vcpu, pending)
    return await complete_userspace_io(vcpu, pending)


@atomic
async def logs_nothing(slots, gpa, write):
    return slots.find(gpa >> 12)


@atomic
async def returns_nothing(slots, slot_id):
    slots.dirty[slot_id] = set()
    return ()


async def waits_for_no_reader(srcu):
    """``synchronize_srcu`` that returns at once."""


async def enters_without_srcu(vcpu):
    """``vcpu_enter_guest`` that does not take SRCU again after the last look at the requests."""
    if await vcpu.requests.pending():
        r = await vcpu.service_requests()
        if r <= 0:
            return r
    await vcpu.mode.enter()
    await vcpu.arch.srcu_read_unlock(vcpu.vm.srcu)
    if await vcpu.exit_request():
        await vcpu.mode.leave()
        return AGAIN
    exit = await vcpu.guest.enter(vcpu)
    await vcpu.mode.leave()
    await vcpu.arch.srcu_read_lock(vcpu.vm.srcu)
    return await vcpu.handle_exit(exit)


async def sleeps_on(vcpu):
    """``kvm_vcpu_block`` that leaves the task's state as it is."""
    while True:
        await vcpu.task.set_interruptible()
        if await vcpu.check_block():
            return
        await vcpu.task.schedule()


async def locks_twice(variant, vcpu):
    await variant.memory_transaction.down_read(vcpu.task)
    return await variant.memory_transaction.wait(vcpu.task, READ) if variant.vm.vcpus is None else await down(variant)


async def down(variant):
    await variant.memory_transaction.read_or_queue("cpu0 again")
    return True


async def unlocks_twice(variant, vcpu, held):
    await variant.memory_transaction.up_read()
    await variant.memory_transaction.up_read()


async def says_eintr(vcpu, exit):
    """``handle_exit`` that answers EINTR where the guest should go on."""
    return -errno.EINTR


async def hears_no_signal(vcpu):
    return False


MUTATIONS = {
    "KICK need not drain": (Sticky, "wait_for_readers", waits_for_nobody, "merge", "kick_drains"),
    "an access is taken and not completed": (
        Vcpu,
        "complete_userspace_io",
        forgets_the_access,
        "merge",
        "completed_once",
    ),
    "an access is completed twice": (Vcpu, "complete_userspace_io", completes_twice, "merge", "completed_once"),
    "a store is not logged": (Memslots, "guest_access", logs_nothing, "dirty_log", "dirty_kept"),
    "the dirty log returns nothing": (Memslots, "fetch_dirty", returns_nothing, "dirty_log", "dirty_kept"),
    "SRCU waits for nobody": (Srcu, "synchronize", waits_for_no_reader, "merge", "balance"),
    "SRCU is not taken again": (Vcpu, "vcpu_enter_guest", enters_without_srcu, "merge", "balance"),
    "the task is left sleeping": (Vcpu, "kvm_vcpu_block", sleeps_on, "merge", "balance"),
    "the read side is taken twice": (Sticky, "run_begin", locks_twice, "merge", "balance"),
    "the read side is given back twice": (Sticky, "run_end", unlocks_twice, "merge", "balance"),
    "EINTR without a reason": (Vcpu, "handle_exit", says_eintr, "merge", "eintr_has_cause"),
}


def verdict(scenario, variant, behaviour, name):
    (found,) = explore(scenario, variant, behaviour, properties=[name])
    return found


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_broken_contract_is_found_and_replays(monkeypatch, mutation):
    owner, method, mutant, scenario, name = MUTATIONS[mutation]
    assert verdict(scenario, "sticky", "well", name).verdict == "holds"
    monkeypatch.setattr(owner, method, mutant)
    found = verdict(scenario, "sticky", "well", name)
    assert found.verdict == "violated"


def test_a_signal_that_is_not_heard_leaves_the_vcpu_inside(monkeypatch):
    assert verdict("merge", "holds", "well", "signal_leaves").verdict == "holds"
    monkeypatch.setattr(Holds, "kick", signals_only)
    monkeypatch.setattr(Vcpu, "exit_request", hears_no_signal)
    monkeypatch.setattr(Vcpu, "exit_by_signal", stays)
    assert verdict("merge", "holds", "well", "signal_leaves").verdict == "violated"


async def signals_only(variant, task):
    for vcpu in await variant.vm.online_vcpus():
        await vcpu.send_signal()
    return True


async def stays(vcpu):
    return AGAIN


@pytest.mark.parametrize("behaviour", either(["careless"], ["well", "careless"]))
@pytest.mark.parametrize("variant", [name for name in variants() if name not in ("none", "arm64_pause")])
def test_no_shipped_variant_is_accused(variant, behaviour):
    for scenario in either(("merge",), ("merge", "pending_io")):
        found = {name: str(decided(scenario, variant, behaviour)[name].verdict) for name in CONTRACTS}
        assert set(found.values()) <= {"holds", "vacuous"}, found


@pytest.mark.parametrize("behaviour", ["well", "careless"])
def test_the_kick_of_the_control_drains_nobody(behaviour):
    found = verdict("merge", "none", behaviour, "kick_drains")
    assert found.verdict == "violated"
    assert "is still in the KVM_RUN" in found.counterexample.text()
    replay_token(found.counterexample.token)


def test_a_property_whose_trigger_never_occurs_is_vacuous_in_every_form():
    (found,) = explore("merge", "region_list", "well", properties=["kick_returns"])
    assert found.verdict == "vacuous"
    assert found.json()["verdict"] == "vacuous"
    assert verdict("dirty_log", "sticky", "well", "dirty_kept").verdict == "holds"
    assert verdict("merge", "sticky", "well", "dirty_kept").verdict == "vacuous"


def test_a_count_that_falls_below_zero_is_not_followed_and_the_others_say_so(monkeypatch):
    monkeypatch.setattr(Sticky, "run_end", unlocks_twice)
    found = {item.property: item for item in explore("merge", "sticky", "well", properties=["balance", "progress"])}
    assert found["balance"].verdict == "violated"
    assert found["progress"].verdict == "undecided"
    assert "below zero" in found["progress"].bound


def answers(scenario, variant, behaviour, **size):
    return {item.property: item.verdict for item in explore(scenario, variant, behaviour, **size)}


@pytest.mark.parametrize("behaviour", ["well", "careless"])
def test_arm64s_pause_keeps_everything_but_the_drain_with_or_without_a_gate(behaviour):
    found = answers("merge", "arm64_pause", behaviour)
    assert {name for name, verdict in found.items() if verdict == "violated"} == {"kick_drains"}


class HoldsSrcu(Arm64Pause):
    """The first attempt: the vCPU sleeps with ``kvm->srcu`` held."""

    async def entry_test(self, vcpu):
        if await vcpu.requests.check(Request.USERSPACE_KICK):
            return await self.pauses[vcpu.id].wait(vcpu.task)
        return False


def test_a_pause_with_srcu_held_is_a_deadlock(monkeypatch):
    monkeypatch.setattr("kickstand.core.variants._own", {"holds_srcu": HoldsSrcu})
    HoldsSrcu.name = "holds_srcu"
    assert answers("merge", "holds_srcu", "well")["deadlock"] == "violated"


@pytest.mark.parametrize("scenario", ["merge", "split", "grow", "toggle_readonly", "dirty_log"])
def test_inferred_holds_need_no_ioctl_where_a_create_covers_what_was_deleted(scenario):
    found = answers(scenario, "inferred", "careless")
    fallen = {name for name, verdict in found.items() if verdict == "violated"}
    assert fallen == ({"dirty_kept"} if scenario == "dirty_log" else set())


def test_inferred_holds_for_ever_what_no_create_covers():
    assert answers("shrink", "inferred", "well")["progress"] == "violated"


def test_the_holder_of_the_accel_blocker_passes_its_own_count():
    for behaviour in ("well", "careless"):
        assert answers("other_ioctl", "accel_blocker", behaviour)["no_bystander"] == "holds"
