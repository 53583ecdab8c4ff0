"""Scripts are played, compared and recorded from the command line."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys

import pytest

SCRIPT = [
    {"op": "create_vcpu", "args": {"id": 0, "program": [["out", 16, 1], ["hlt"]]}},
    {"op": "run", "args": {"vcpu": 0}},
]


def test_a_script_without_recorded_answers_is_played_and_nothing_passes(say, tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(SCRIPT))
    code, out, _ = say("replay", file, "--engine", "script")
    assert code == 0
    assert '"exit_reason": "IO"' in out
    assert out.splitlines()[-1].startswith("1 played, nothing compared")
    assert "passed" not in out
    told = json.loads(say("replay", file, "--engine", "script", "--json")[1])
    assert (told["passed"], told["compared"], told["operations"]) == (0, 0, 2)
    assert told["unrecorded"][0]["answers"][1]["port"] == 16


@pytest.mark.parametrize("name", ["mine.json", "mine.jsonl", "mine.json.gz", "mine.jsonl.gz"])
def test_recorded_answers_are_compared_from_then_on(name, say, tmp_path):
    file = tmp_path / name
    text = json.dumps({"id": "mine", "family": "own", "ops": SCRIPT}).encode()
    file.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    assert say("replay", file, "--engine", "script", "--record")[0] == 0
    code, out, _ = say("replay", file, "--engine", "script")
    assert (code, out) == (0, "compared 2 of 2 operations\n1 passed, 0 failed\n")
    kept = file.read_bytes()
    assert say("replay", file, "--engine", "script", "--record")[1].endswith("1 passed, 0 failed\n")
    assert file.read_bytes() == kept or name.endswith(".json")
    data = json.loads(gzip.decompress(kept) if name.endswith(".gz") else kept)
    assert (data["family"], data["ops"][0]["result"]) == ("own", {"ret": 0, "errno": None})


def test_what_was_recorded_is_not_recorded_over(say, tmp_path):
    file = tmp_path / "mine.json"
    wrong = [{**SCRIPT[0], "result": {"ret": -1, "errno": "EEXIST"}}, SCRIPT[1]]
    file.write_text(json.dumps(wrong))
    code, out, _ = say("replay", file, "--engine", "script", "--record")
    assert (code, out.splitlines()[-1]) == (1, "0 passed, 1 failed")
    assert json.loads(file.read_text()) == wrong


def test_answers_are_recorded_elsewhere(say, tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(SCRIPT))
    assert say("replay", file, "--engine", "script", "--record", "-o", tmp_path / "out.jsonl")[0] == 0
    assert json.loads(file.read_text()) == SCRIPT
    assert json.loads((tmp_path / "out.jsonl").read_text())[1]["result"]["exit_reason"] == "IO"
    assert say("replay", file, "--engine", "script", "--record", "-o", "/nope/out")[0] == 1


def test_a_script_comes_from_standard_input():
    command = [sys.executable, "-m", "kickstand", "replay", "-", "--engine", "script", "--record", "-o", "-"]
    done = subprocess.run(command, input=json.dumps(SCRIPT), capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout.splitlines()[0])[1]["result"]["port"] == 16


def test_a_partly_recorded_script_says_how_much_was_compared(say, tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps([{**SCRIPT[0], "result": {"ret": 0, "errno": None}}, SCRIPT[1]]))
    assert say("replay", file, "--engine", "script")[1] == "compared 1 of 2 operations\n1 passed, 0 failed\n"
