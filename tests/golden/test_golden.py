"""What a real KVM answered is what the emulator answers: a sample in the repository, and the whole set where it is."""

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from kickstand.scripts.language.reader import load
from kickstand.scripts.play.backends import InProcess
from kickstand.scripts.play.http_player import OverHttp
from kickstand.scripts.replay import replay, replay_trace, replay_traces
from tests.api.live import live
from tests.long import either

ROOT = Path(__file__).parents[2]
SAMPLE = Path(__file__).parent / "data"
QUESTIONS = Path(__file__).parent / "questions"
IRQCHIP = Path(__file__).parent / "irqchip"
GOLDEN = ROOT.parent / "shared" / "golden"
FAMILIES = (
    "memslot-scripted", "memslot-random", "memslot-guest", "memslot-guest-random", "dirty-log",
    "guest-fixed", "guest-random", "kick", "lifecycle", "interrupt",
)  # fmt: skip
OF_EACH_KIND = 4
SAMPLES = {trace.id: trace for trace in load([SAMPLE, QUESTIONS])}
on_device = pytest.param("kvm", marks=pytest.mark.kvm)
needs_all = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"the whole set of recorded traces is not at {GOLDEN}")


@pytest.mark.parametrize("engine", ["x86", on_device])
@pytest.mark.parametrize("name", SAMPLES)
async def test_a_recorded_trace_is_answered_as_recorded(name, engine):
    async with InProcess(engine) as backend:
        failure = (await replay_trace(SAMPLES[name], backend)).failure
    assert failure is None, "\n".join(failure.lines())


async def test_the_sample_is_answered_as_recorded_over_http():
    async with live() as server:
        summary = await replay_traces(SAMPLES.values(), OverHttp(str(server.url), "x86"))
    assert summary.line == f"{len(SAMPLES)} passed, 0 failed", summary.lines()


@needs_all
@pytest.mark.slow
@pytest.mark.parametrize("engine", ["x86", on_device])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_family_is_answered_as_recorded(family, engine):
    summary = replay([GOLDEN / f"{family}.jsonl.gz"], engine=engine)
    assert summary.line == f"{summary.passed} passed, 0 failed", summary.lines()


@needs_all
@pytest.mark.slow
async def test_the_whole_set_is_answered_as_recorded_in_mode_fast():
    traces = [replace(trace, vm=trace.vm.model_copy(update={"mode": "fast"})) for trace in load([GOLDEN])]
    async with InProcess("x86") as backend:
        summary = await replay_traces(traces, backend)
    assert summary.line == "474 passed, 0 failed", summary.lines()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["x86", on_device])
async def test_interrupt_controllers_answer_as_recorded(engine):
    traces = chosen(load([IRQCHIP]))
    async with InProcess(engine) as backend:
        summary = await replay_traces(traces, backend)
    assert summary.line == f"{len(traces)} passed, 0 failed", summary.lines()


def chosen(traces):
    """Some of every kind, others for another ``SEED``; all of them with ``GOLDEN_ALL``."""
    if os.environ.get("GOLDEN_ALL"):
        return traces
    kinds = {}
    for trace in traces:
        kinds.setdefault(trace.id.rpartition("-")[0], []).append(trace)
    assert set(kinds) == {f"irqchip/{kind}" for kind in ("lapic", "x2apic", "ioapic", "i8259", "mixed")}
    draw = random.Random(os.environ.get("SEED", "1"))
    return [trace for kind in kinds.values() for trace in draw.sample(kind, OF_EACH_KIND)]


@needs_all
def test_the_whole_set_is_474_traces():
    assert len(load([GOLDEN])) == 474


@needs_all
@pytest.mark.slow
async def test_the_whole_set_is_answered_as_recorded_over_http():
    """In the short form a fifth of it: what a call answers is the same whoever asks, which the families show."""
    traces = load([GOLDEN])[:: either(5, 1)]
    async with live() as server:
        summary = await replay_traces(traces, OverHttp(str(server.url), "x86"))
    assert summary.line == f"{len(traces)} passed, 0 failed", summary.lines()
