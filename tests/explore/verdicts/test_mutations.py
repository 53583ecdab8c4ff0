"""Dropping a safeguard that the protocol needs turns a verdict; otherwise the explorer could not see it."""

import pytest

from kickstand.core.atomics import atomic
from kickstand.core.shared.requests import RequestBits
from kickstand.core.shared.rwsem import RwSemaphore, Side
from kickstand.core.variants.sticky import Sticky
from kickstand.core.vcpu import AGAIN, EXIT, Vcpu
from kickstand.explore.matrix import explore

pytestmark = pytest.mark.slow


async def nothing_came(vcpu):
    """``kvm_vcpu_exit_request`` without the look at the requests."""
    return False


async def sleeps_on(variant, vcpu):
    """``block_test`` that does not look."""
    return False


async def wakes_nobody(vcpu):
    """``kvm_vcpu_wake_up`` without the wake-up."""
    return False


async def overtakes(semaphore, tid):
    """``down_read`` that passes a waiting writer."""
    if semaphore.writer is None:
        semaphore.readers += 1
        return True
    semaphore.queue.append((tid, Side.READ))
    return False


overtakes.atomic = True


async def looks_before_it_shows(vcpu):
    """``vcpu_enter_guest`` that reads the requests before it stores IN_GUEST_MODE."""
    if await vcpu.requests.pending():
        r = await vcpu.service_requests()
        if r <= EXIT:
            return r
    came = await vcpu.exit_request()
    await vcpu.mode.enter()
    await vcpu.arch.srcu_read_unlock(vcpu.vm.srcu)
    if came:
        await vcpu.mode.leave()
        await vcpu.arch.srcu_read_lock(vcpu.vm.srcu)
        return AGAIN
    vcpu.entered()
    exit = await vcpu.guest.enter(vcpu)
    await vcpu.mode.leave()
    await vcpu.arch.srcu_read_lock(vcpu.vm.srcu)
    return await vcpu.handle_exit(exit)


MUTATIONS = {
    "no re-check after IN_GUEST_MODE": (Vcpu, "exit_request", nothing_came, "careless", "kick_returns"),
    "no block_test in check_block": (Sticky, "block_test", sleeps_on, "well", "kick_returns"),
    "no wake-up": (Vcpu, "wake_up", wakes_nobody, "well", "kick_returns"),
    "readers overtake the writer": (RwSemaphore, "read_or_queue", overtakes, "careless", "kick_returns"),
    "requests read before the mode is stored": (
        Vcpu,
        "vcpu_enter_guest",
        looks_before_it_shows,
        "careless",
        "kick_returns",
    ),
}


def verdict(behaviour, name):
    (found,) = explore("merge", "sticky", behaviour, properties=[name])
    return found.verdict


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_dropped_safeguard_turns_a_verdict(monkeypatch, mutation):
    owner, method, mutant, behaviour, name = MUTATIONS[mutation]
    assert verdict(behaviour, name) == "holds"
    monkeypatch.setattr(owner, method, mutant)
    assert verdict(behaviour, name) == "violated"


def test_an_exit_test_in_the_right_place_turns_lost_exit(monkeypatch):
    assert verdict("well", "lost_exit") == "violated"
    monkeypatch.setattr(Sticky, "exit_test_site", "after_r")
    assert verdict("well", "lost_exit") == "holds"


@atomic
async def overwrites(requests, request):
    """``kvm_make_request`` that stores the word in place of setting a bit."""
    requests.bits = request.bit


def test_a_request_that_overwrites_another_is_seen_where_a_device_interrupts(monkeypatch):
    def kick_returns():
        (found,) = explore("device_interrupt", "sticky", "careless", properties=["kick_returns"])
        return found.verdict

    assert kick_returns() == "holds"
    monkeypatch.setattr(RequestBits, "make", overwrites)
    assert kick_returns() == "violated"
