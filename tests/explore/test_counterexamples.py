"""Counterexamples: columns, data, tokens, and their confirmation on the shipped runtime."""

import base64
import inspect
import io
import json
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from kickstand.core.variants.sticky import Sticky
from kickstand.explore.command import Options, run
from kickstand.explore.evidence import replay as replaying
from kickstand.explore.evidence import tokens
from kickstand.explore.evidence.columns import WIDTH, columns
from kickstand.explore.evidence.replay import ReplayError
from kickstand.explore.evidence.tokens import Schedule, TokenError, decode
from kickstand.explore.evidence.trail import Row, Trail
from kickstand.explore.matrix import explore, replay_run, replay_token
from kickstand.explore.question import Question
from kickstand.explore.search import properties
from kickstand.explore.world.cell import Cell
from kickstand.explore.world.scenarios import scenario

pytestmark = pytest.mark.slow
CELL = Cell(scenario("merge"), Sticky, "careless")


@pytest.fixture(scope="module")
def lost_exit():
    (verdict,) = explore("merge", "sticky", "careless", properties=["lost_exit"])
    return verdict


@pytest.fixture(scope="module")
def livelock():
    (verdict,) = explore("merge", "sticky", "careless", properties=["livelock"])
    return verdict


def test_columns_have_one_row_a_step_and_say_at_the_end_which_property_fell(lost_exit):
    text = lost_exit.counterexample.text()
    head, _, *rows, last = text.splitlines()
    assert head.split("|")[0].strip() == "VMM"
    assert head.split("|")[1].strip() == "CPU0"
    assert len(rows) == lost_exit.counterexample.trail.steps == lost_exit.json()["steps"]
    assert "KVM_RUN = -1 EINTR" in rows[-1]
    assert "run_page.fill" in text
    assert "cpu0.requests: 0 -> KICK" in text
    assert last.strip().startswith("=> lost_exit is violated")


def test_a_loop_is_marked(livelock):
    text = livelock.counterexample.text()
    assert ">>" in text
    assert "repeats for ever" in text
    assert livelock.fairness == "none"


def test_a_cell_has_the_members_of_the_contract(lost_exit):
    assert set(lost_exit.json()) - {"counterexample"} == {
        "scenario",
        "variant",
        "behaviour",
        "vcpus",
        "vmms",
        "property",
        "verdict",
        "states",
        "transitions",
        "seconds",
        "steps",
        "fairness",
        "token",
    }
    json.dumps(lost_exit.json())


def test_the_same_question_has_the_same_answer(lost_exit):
    (again,) = explore("merge", "sticky", "careless", properties=["lost_exit"])
    assert again.counterexample.token == lost_exit.counterexample.token
    assert again.states == lost_exit.states


def test_a_token_replays_what_it_was_made_of(lost_exit):
    token, log, names = replay_token(lost_exit.counterexample.token)
    assert (token.scenario, token.variant, token.behaviour, token.vcpus, token.vmms) == (
        "merge",
        "sticky",
        "careless",
        1,
        1,
    )
    assert names == ["VMM", "CPU0"]
    assert log[-1] == (1, "run_returned")


def test_a_token_of_a_loop_replays(livelock):
    replay_token(livelock.counterexample.token)


def test_a_token_is_refused_with_the_reason_when_the_code_changed(lost_exit):
    token = lost_exit.counterexample.token
    head, model, payload = token.rsplit(":", 2)
    other = "0" * 8 if model != "0" * 8 else "1" * 8
    with pytest.raises(TokenError, match="the code changed since"):
        replay_token(f"{head}:{other}:{payload}")


@pytest.mark.parametrize(
    "file", ["vcpu.py", "build.py", "observer.py", "cycles.py", "decide.py", "judge.py", "replay.py"]
)
def test_the_hash_of_a_token_covers_all_code_that_decides(file, monkeypatch):
    before, meaning = tokens._decides(), tokens._meaning
    monkeypatch.setattr(tokens, "_meaning", lambda path: "changed" if path.name == file else meaning(path))
    assert tokens._decides.__wrapped__() != before


@pytest.mark.parametrize(
    "text", ["", "ks2", "ks2:a.b.c.1x1:x:00000000:", "ks2:merge.sticky.well.1x1:lost_exit:00000000:!!", "x" * 300]
)
def test_what_is_no_token_is_refused(text):
    with pytest.raises(TokenError):
        decode(text)


def test_a_token_of_the_older_format_is_refused_by_its_format():
    with pytest.raises(TokenError, match="format is 'ks1', this explorer reads 'ks2'"):
        decode("ks1:merge.sticky.careless.1x1:f3e05b80:cgUBEgQABAdCAAgBEgA")


def test_a_token_names_its_property_whatever_the_list_of_properties_becomes(lost_exit, monkeypatch):
    found = lost_exit.counterexample
    known = dict(properties.PROPERTIES)
    renamed = {("new" if name == "lost_exit" else name): item for name, item in reversed(known.items())}
    monkeypatch.setattr("kickstand.explore.evidence.tokens.PROPERTIES", dict(reversed(known.items())))
    assert decode(found.token).schedule.prop == "lost_exit"
    monkeypatch.setattr("kickstand.explore.evidence.tokens.PROPERTIES", renamed)
    with pytest.raises(TokenError, match="a property 'lost_exit', which this explorer does not have"):
        decode(found.token)


def packed(data):
    return base64.urlsafe_b64encode(b"z" + zlib.compress(data, 9)).decode().rstrip("=")


@pytest.mark.parametrize(
    ("cell", "payload"),
    [
        ("merge", packed(bytes((0, 0, 2)) + bytes((0, 255, 255, 63)) * 2 + bytes(1))),  # two million steps
        ("~" + packed(b" " * (1 << 22)), "cgUBEgQABAdCAAgBEgA"),
        ("~" + packed(b"[1]"), "cgUBEgQABAdCAAgBEgA"),
    ],
)
def test_a_short_token_does_not_unpack_to_more_than_a_counterexample_is(cell, payload):
    with pytest.raises(TokenError, match="no counterexample token"):
        decode(f"ks2:{cell}.sticky.careless.1x1:lost_exit:00000000:{payload}")


@pytest.mark.parametrize("change", [{"threads": (7,)}, {"vcpu": 7}, {"loop": 99}, {"prop": "kick_returns", "vcpu": 1}])
def test_a_schedule_of_threads_or_loops_that_there_are_not_is_refused(lost_exit, change):
    schedule = replace(lost_exit.counterexample.schedule, **{"prop": "livelock", "loop": 2} | change)
    with pytest.raises(ReplayError):
        replaying.replay(CELL, schedule)


def test_a_schedule_that_proves_nothing_is_an_internal_error(lost_exit):
    short = lost_exit.counterexample.schedule
    with pytest.raises(ReplayError, match="lost_exit was not confirmed"):
        replaying.replay(CELL, Schedule("lost_exit", short.threads[:-3], short.choices))


def test_a_schedule_that_the_runtime_cannot_follow_is_an_internal_error():
    with pytest.raises(ReplayError):
        replaying.replay(CELL, Schedule("lost_exit", (0,) * 400, ()))


def test_perfetto_has_a_track_a_thread_and_a_slice_a_step(lost_exit):
    events = lost_exit.counterexample.perfetto()["traceEvents"]
    assert [event["args"]["name"] for event in events if event["ph"] == "M"] == ["VMM", "CPU0"]
    assert sum(event["ph"] == "X" for event in events) == lost_exit.counterexample.trail.steps


def test_a_counterexample_tells_what_a_watcher_of_the_server_would_have_seen():
    (verdict,) = explore("merge", "none", "careless", properties=["spurious_mmio"])
    found = verdict.counterexample.json()
    assert found["vms"] == [{"id": "vm", "vcpus": [0]}]
    steps = [event["step"] for event in found["events"]]
    assert steps == sorted(steps)
    assert len(found["steps"]) - 1 <= steps[-1] <= len(found["steps"])
    maps = [
        [region["slot"] for region in event["memory_regions"]] for event in found["events"] if "memory_regions" in event
    ]
    assert maps[:2] == [[0, 1], [1]]
    (torn,) = [event for event in found["events"] if event["event"] == "kvm_mmio"]
    assert torn["gpa"] == "0x1000"
    states = [event["state"] for event in found["events"] if event["event"] == "vcpu_state"]
    assert states == ["kernel", "guest", "kernel", "user"]


def test_a_loop_is_told_once(livelock):
    events = livelock.counterexample.json()["events"]
    assert sum(event["event"] == "kvm_userspace_exit" for event in events) == 1


def test_what_is_too_long_for_a_row_goes_on_below_and_nothing_is_cut():
    long = "door.enter(" + ",".join(f"argument{n}" for n in range(20)) + ")"
    changed = tuple((f"door.field{n}", "before", "after") for n in range(6))
    text = columns(Trail(("VMM", "CPU0"), [Row(0, long, "door", changes=changed), Row(1, "short")]), "it is violated")
    assert all(len(line) <= WIDTH for line in text.splitlines())
    assert "".join(text.split()).count("argument") == 20
    assert all(f"field{n}" in text for n in range(6))
    assert "\u2026" not in text


def test_one_run_that_breaks_several_properties_is_printed_once():
    console = Console(file=io.StringIO(), width=200)
    question = Question("merge", ("none",), ("careless",), properties=("missing_slot", "closed_window"))
    run(Options(replace(question, properties=("closed_window", "closed_window"))), console)
    assert console.file.getvalue().count("--replay") == 1
    assert "closed_window, closed_window: none" in console.file.getvalue()


def test_each_operation_is_told_with_its_function_and_line(lost_exit):
    _, made, _ = replay_run(lost_exit.counterexample.token)
    assert len(made.places) == len(made.log)
    entered = next(place for (_, name), place in zip(made.log, made.places, strict=True) if name == "enter")
    assert (entered.function, entered.file) == ("vcpu_enter_guest", "core/vcpu.py")
    steps = lost_exit.counterexample.json()["steps"]
    assert {"vcpu_enter_guest", "kick"} <= {step["where"]["function"] for step in steps if step["where"]}
    text = (Path(run_file()).parents[1] / entered.file).read_text().splitlines()
    assert "mode.enter" in text[entered.line - 1]


def run_file():
    return inspect.getfile(replay_run)
