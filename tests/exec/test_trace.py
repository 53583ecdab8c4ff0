"""``--trace``: what a program did, as a script that gives the same answers here and on a device."""

import json
import os
import sys

import pytest

from tests.long import either

from .conftest import PROGRAMS, run

pytestmark = pytest.mark.slow


def replayed(path, engine):
    return run([sys.executable, "-m", "kickstand", "replay", path, "--engine", engine])


@pytest.mark.parametrize("name", either(["memory.py", "coalesced.py"], ["first.py", "memory.py", "coalesced.py"]))
def test_a_run_replays_with_equal_answers(emulated, tmp_path, name):
    path = tmp_path / "run.jsonl.gz"
    here = emulated(sys.executable, PROGRAMS / name, options=("--trace", path))
    assert here.status == 0, here.err
    replays_everywhere(path)


def test_two_vcpus_that_run_side_by_side_replay_too(emulated, compiled, tmp_path):
    path = tmp_path / "run.jsonl"
    here = emulated(compiled("pair"), options=("--trace", path))
    assert here.out == "12345 12345, memory 5 5\n", here.err
    replays_everywhere(path)


def replays_everywhere(path):
    for engine in ("x86", "kvm") if os.access("/dev/kvm", os.R_OK | os.W_OK) else ("x86",):
        again = replayed(path, engine)
        assert "1 passed, 0 failed" in again.out, (engine, again.out)


def test_what_the_program_writes_and_what_devices_answer_is_in_it(emulated, tmp_path):
    path = tmp_path / "run.jsonl"
    emulated(sys.executable, PROGRAMS / "first.py", options=("--trace", path))
    (line,) = path.read_text().splitlines()
    operations = json.loads(line)["ops"]
    assert any("d8e610a20020" in each["args"]["hex"] for each in operations if each["op"] == "write_host")
    replies = [each["args"].get("reply") for each in operations if each["op"] == "run"]
    assert replies == [None, None, "77", "5a"]


def test_a_trace_that_cannot_be_written_is_125(emulated, tmp_path):
    here = emulated("true", options=("--trace", tmp_path / "no" / "such" / "folder"))
    assert here.status == 125
    assert "No such file" in here.err
