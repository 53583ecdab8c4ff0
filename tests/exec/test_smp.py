"""A VMM of its own for a guest of many CPUs: the same IPIs as on a real KVM, and none is lost by kicks or signals."""

import re
import sys

import pytest

from tests.guests import smp_guest
from tests.long import either

from .conftest import PROGRAMS

pytestmark = pytest.mark.slow
CPUS, TIMES = either(4, 16), either(60, 1_000)
ROUNDS = {"none": 3, "signal": either(8, 12), "kick": either(8, 25)}
TIMEOUT_S = 110


@pytest.fixture
def program(tmp_path):
    """The command line for so many CPUs and rounds, disturbed in a way, so many times."""

    def command(cpus, rounds, how="none", times=0):
        image = tmp_path / f"{cpus}-{rounds}"
        image.write_bytes(smp_guest.image(cpus, rounds))
        return [sys.executable, PROGRAMS / "smp.py", image, cpus, rounds, how, times]

    return command


def received(cpus, rounds):
    return f"received {' '.join([str(rounds)] * cpus)} rounds {rounds} trouble\n"


def test_sixteen_cpus_start_sleep_and_wake_each_other_as_on_a_real_kvm(program, emulated, on_device):
    command = program(16, 3)
    here, real = emulated(*command), on_device(*command)
    assert (here.out, here.status) == (received(16, 3), 0), here.err
    assert real is None or real.out == here.out


def test_signals_at_random_lose_no_ipi(program, emulated, on_device):
    command = program(CPUS, ROUNDS["signal"], "signal", TIMES)
    here, real = emulated(*command, timeout=TIMEOUT_S), on_device(*command)
    assert (here.out, here.status) == (received(CPUS, ROUNDS["signal"]), 0), here.err
    assert int(re.search(r"left (\d+)", here.err)[1]) > 0
    assert real is None or real.out == here.out


@pytest.mark.parametrize("variant", ["sticky", "holds"])
def test_kicks_at_random_lose_no_ipi(program, emulated, variant):
    command = program(CPUS, ROUNDS["kick"], "kick", TIMES)
    here = emulated(*command, options=("--variant", variant), timeout=TIMEOUT_S)
    assert (here.out, here.status) == (received(CPUS, ROUNDS["kick"]), 0), here.err
    assert int(re.search(r"left (\d+)", here.err)[1]) > 0
