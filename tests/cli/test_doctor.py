"""``kickstand doctor``: what works, what is in a state directory, what is damaged; and it touches nothing."""

import hashlib
import json
import os
import sqlite3
from contextlib import closing

import pytest
from typer.testing import CliRunner

from kickstand.cli import app
from kickstand.commands import doctor
from kickstand.exec.checks import Check
from kickstand.journal.examine import examine
from tests.journal.disk import damage

pytestmark = pytest.mark.slow


@pytest.fixture
async def state(tmp_path):
    context = await damage.populate(tmp_path / "state")
    await context.stop()
    return tmp_path / "state"


def told(*arguments):
    return CliRunner().invoke(app, ["doctor", *map(str, arguments)])


def content(path):
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in path.rglob("*") if file.is_file()}


def findings(state):
    answer = told("--state", state, "--json")
    found = json.loads(answer.stdout)
    assert answer.exit_code == (0 if found["ok"] else 1)
    return {finding["name"]: finding for finding in found["findings"]}


def test_a_whole_directory_is_told_vm_by_vm_and_not_touched(state):
    before = content(state)
    found = findings(state)
    assert {name for name in found if name.startswith("vm ")} == {"vm vm-0", "vm vm-1", "vm vm-2", "vm bare"}
    assert found["vm vm-0"]["detail"] == "script, sticky, 2 vcpus, 1 slots, 0.0 MiB"
    assert all(finding["state"] == "ok" for finding in found.values())
    assert content(state) == before


def test_what_is_damaged_is_named_with_what_the_next_start_does(state):
    (state / "memory" / "3-0").unlink()
    with closing(sqlite3.connect(state / "journal.sqlite3", isolation_level=None)) as connection:
        connection.execute("UPDATE state SET sum = sum + 1 WHERE vm = 1 AND part = 'cpu/0'")
        connection.execute("UPDATE events SET first = first + 1")
    before = content(state)
    found = findings(state)
    assert found["vm vm-0"]["detail"] == "the checksum of cpu/0 is wrong"
    assert "memory/3-0 is not there" in found["vm vm-2"]["detail"]
    assert found["vm vm-1"]["state"] == "ok"
    assert found["events"]["state"] == "damaged"
    assert "keeps it aside" in found["vm vm-0"]["advice"]
    assert content(state) == before


@pytest.mark.parametrize("lost", ["journal.sqlite3", "lock"])
def test_a_lost_file_is_told(state, lost):
    (state / lost).unlink()
    name = lost.partition(".")[0]
    assert findings(state)[name]["state"] == ("damaged" if name == "journal" else "note")


def test_a_directory_that_is_in_use_is_told_as_it_is_now(state):
    held = damage.directory.Directory(state, lambda _: None)
    found = findings(state)
    assert f"process {os.getpid()} serves it now" in found["lock"]["detail"]
    assert found["vm bare"]["state"] == "ok"
    held.close()


def test_what_earlier_starts_kept_aside_is_listed_with_its_reason(state):
    folder = state / "damaged" / "20260101-000000-vm"
    folder.mkdir(parents=True)
    (folder / "why.txt").write_text("the checksum of vm is wrong\nmore\n")
    assert findings(state)["kept aside"]["detail"] == f"{folder}: the checksum of vm is wrong"


def test_no_directory_is_a_wrong_command_line():
    answer = told("--state", "/nowhere/at/all")
    assert answer.exception is not None
    assert "there is no directory" in str(answer.exception)


def test_whatever_is_damaged_the_doctor_has_a_sentence_for_it(state, tmp_path):
    import random
    import shutil

    rng = random.Random(5)
    damage.OWNERS.update({file.name: "?" for file in (state / "memory").iterdir()})
    for number, do in enumerate(damage.damages(state, rng)[:16]):
        copy = shutil.copytree(state, tmp_path / f"copy-{number}")
        do(copy)
        assert all(len(finding.detail.splitlines()) == 1 for finding in examine(copy))


def test_the_machine_is_tried_rather_than_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    found = {finding.name: finding for finding in doctor.check_machine(0)}
    assert found["python"].state == found["unicorn"].state == found["port"].state == "ok"
    assert "will be made" in found["state"].detail
    assert {"exec", "ptrace", "/dev/kvm", "browser", "open files"} <= found.keys()
    assert all(finding.state != "damaged" for finding in found.values())
    text = list(doctor.lines(list(found.values())))
    assert text[0].startswith("ok    python")


def test_a_port_that_is_taken_is_said_with_another_way():
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = next(finding for finding in doctor.check_machine(port) if finding.name == "port")
    assert "is taken" in found.detail
    assert "--port 0" in found.advice


def test_what_exec_makes_use_of_is_what_exec_itself_finds(monkeypatch):
    found = {finding.name: finding for finding in doctor.check_machine(port=0)}
    assert all(check.name in found for check in doctor.exec_checks() if not check.needed)
    without = [Check("user notification", True, "", needed=True), Check("ptrace", False, "memory is copied")]
    monkeypatch.setattr(doctor, "exec_checks", lambda: without)
    told = next(finding for finding in doctor.check_machine(port=0) if finding.name == "ptrace")
    assert (told.state, told.detail) == ("note", "memory is copied")
    assert "ptrace_scope" in told.advice
