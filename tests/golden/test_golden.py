"""What a real KVM answered is what the emulator answers: a sample in the repository, and the whole set where it is."""

from pathlib import Path

import pytest

from app.scripts.backends import InProcess
from app.scripts.http_player import OverHttp
from app.scripts.reader import load
from app.scripts.replay import replay, replay_trace, replay_traces
from tests.api.live import live

ROOT = Path(__file__).parents[2]
SAMPLE = Path(__file__).parent / "data"
GOLDEN = ROOT.parent / "shared" / "golden"
FAMILIES = (
    "memslot-scripted", "memslot-random", "memslot-guest", "memslot-guest-random", "dirty-log",
    "guest-fixed", "guest-random", "kick", "lifecycle", "interrupt",
)  # fmt: skip
SAMPLES = {trace.id: trace for trace in load([SAMPLE])}
on_device = pytest.param("kvm", marks=pytest.mark.kvm)
needs_all = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"the whole set of recorded traces is not at {GOLDEN}")


@pytest.mark.parametrize("engine", ["x86", on_device])
@pytest.mark.parametrize("name", SAMPLES)
async def test_a_recorded_trace_is_answered_as_recorded(name, engine):
    async with InProcess(engine) as backend:
        failure = await replay_trace(SAMPLES[name], backend)
    assert failure is None, "\n".join(failure.lines())


async def test_the_sample_is_answered_as_recorded_over_http():
    async with live() as server:
        summary = await replay_traces(SAMPLES.values(), OverHttp(str(server.url), "x86"))
    assert summary.lines() == [f"{len(SAMPLES)} passed, 0 failed"]


@needs_all
@pytest.mark.slow
@pytest.mark.parametrize("engine", ["x86", on_device])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_family_is_answered_as_recorded(family, engine):
    summary = replay([GOLDEN / f"{family}.jsonl.gz"], engine=engine)
    assert summary.lines() == [f"{summary.passed} passed, 0 failed"]


@needs_all
def test_the_whole_set_is_474_traces():
    assert len(load([GOLDEN])) == 474


@needs_all
@pytest.mark.slow
async def test_the_whole_set_is_answered_as_recorded_over_http():
    async with live() as server:
        summary = await replay_traces(load([GOLDEN]), OverHttp(str(server.url), "x86"))
    assert summary.lines() == ["474 passed, 0 failed"]
