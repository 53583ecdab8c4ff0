"""Descriptors, signals and threads of a program behave as they do on a real device."""

import re
import sys

import pytest

from tests.long import either

from .conftest import PROGRAMS

pytestmark = pytest.mark.slow
MERGES = either(20, 1_000)


def test_descriptors_are_told_apart_by_what_they_are(emulated, on_device, compiled):
    program = compiled("descriptors", "-Wno-unused-result")
    here, real = emulated(program), on_device(program)
    assert "dup ok, F_DUPFD ok" in here.out
    assert "the parent's VM EIO" in here.out
    assert real is None or real.out == here.out


def test_every_signal_gets_its_thread_out_of_kvm_run(emulated, on_device, compiled):
    program = compiled("signals")
    here, real = emulated(program), on_device(program)
    assert here.out.endswith("ok\n"), here.out
    assert real is None or real.out == here.out


def spurious(outcome):
    assert outcome.status == 0, outcome.err
    return int(re.match(r"(\d+) spurious exits", outcome.out)[1])


def test_unprotected_merges_show_the_hole_as_a_device_does(emulated, compiled):
    assert spurious(emulated(compiled("merge"), MERGES, "none")) > 5


@pytest.mark.parametrize("variant", ["sticky", "holds", "accel_blocker"])
def test_no_merge_is_seen_under_kick_and_resume(emulated, compiled, variant):
    assert spurious(emulated(compiled("merge"), MERGES, "kick", options=("--variant", variant))) == 0


def test_no_merge_is_seen_by_vcpus_that_signals_took_out(emulated, compiled):
    assert spurious(emulated(compiled("merge"), 20, "signal")) == 0


@pytest.mark.parametrize("how", ["hold", "kick"])
@pytest.mark.parametrize("mode", ["precise", "fast"])
def test_programs_that_know_no_kick_can_be_protected(emulated, compiled, how, mode):
    assert spurious(emulated(compiled("merge"), MERGES, "none", options=("--protect", how, "--mode", mode))) == 0


def test_writes_become_events_and_events_interrupts(emulated, on_device):
    program = sys.executable, PROGRAMS / "eventfds.py"
    here, real = emulated(*program), on_device(*program)
    assert here.out.endswith("exit 2 port 0x12 memory 0x77\n"), here.out + here.err
    assert "exit at port 0x11 events 1 1 1" in here.out
    assert real is None or real.out == here.out


def test_a_line_that_is_resampled_is_high_until_the_guest_has_ended_its_interrupt(emulated, on_device):
    program = sys.executable, PROGRAMS / "resample.py"
    here, real = emulated(*program), on_device(*program)
    assert here.out.count("before: 0 port 0x12") == 2, here.err
    assert here.out.count("told 1") == 2
    assert here.status == 0, here.err
    assert real is None or real.out == here.out
