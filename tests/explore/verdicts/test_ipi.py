"""IPIs, HLT, KICK and RESUME in every interleaving: no wake-up is lost, and one that is dropped is found."""

import pytest

from kickstand.core.shared.requests import Request
from kickstand.core.wiring.interrupts import Interrupts
from kickstand.explore.matrix import explore, replay_token

pytestmark = pytest.mark.slow


async def only_asks(interrupts, vcpu, request=Request.EVENT):
    """``_look`` that makes the request, and wakes nobody."""
    await vcpu.requests.make(request)


def verdicts(variant, *properties):
    return {found.property: found.verdict for found in explore("ipi", variant, "well", vcpus=2, properties=properties)}


def test_no_ipi_is_lost_around_a_kick():
    assert verdicts("sticky", "deadlock", "kick_returns", "resume_runs") == dict.fromkeys(
        ("deadlock", "kick_returns", "resume_runs"), "holds"
    )


def test_an_interrupt_that_wakes_nobody_is_found(monkeypatch):
    monkeypatch.setattr(Interrupts, "_look", only_asks)
    assert verdicts("sticky", "deadlock") == {"deadlock": "violated"}


def test_check_not_test_is_caught_losing_a_wake_up():
    """The sleeper has consumed the kick that woke it, finds nothing, and sleeps on: KICK waits for it for ever."""
    [found] = explore("ipi", "check_not_test", "well", vcpus=2, properties=("deadlock",))
    assert found.verdict == "violated"
    replay_token(found.counterexample.token)  # the shipped runtime ends there too
