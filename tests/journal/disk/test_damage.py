"""Damaged state: the sentence, what is kept aside, and who is served all the same."""

import asyncio
import contextlib
import json
import random
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from kickstand.core.errors import KvmError
from kickstand.journal.disk import schema
from kickstand.journal.records import Recorder
from kickstand.journal.restore import Saved, restore
from kickstand.runtime.registry import Registry
from kickstand.settings import SettingsError
from tests.api.live import events, live, until
from tests.journal.disk import damage

pytestmark = pytest.mark.slow  # each starts servers


async def test_whatever_is_damaged_the_rest_is_served_and_nothing_is_lost(tmp_path):
    counts = await damage.run(24, random.randrange(1 << 32), tmp_path, say=lambda _: None)
    assert sum(counts.values()) == 24
    assert set(counts) <= {"served", "served with a warning", "refused", "nothing to damage"}


@pytest.fixture
async def state(tmp_path):
    """A directory with four VMs, left by a clean end."""
    context = await damage.populate(tmp_path / "state")
    await context.stop()
    return tmp_path / "state"


def changed(state, query, *values):
    with contextlib.closing(sqlite3.connect(state / "journal.sqlite3", isolation_level=None)) as connection:
        connection.execute(query, values)


async def start(state):
    context, warned = await damage.started(damage.on(state))
    served = set(context.registry.machines)
    await context.stop()
    return served, warned


async def test_a_record_that_cannot_be_read_is_kept_aside_with_its_memory_and_a_sentence(state):
    # As it was written when any type was taken: the checksum is right.
    with contextlib.closing(sqlite3.connect(state / "journal.sqlite3")) as connection:
        value = connection.execute("SELECT value FROM state WHERE vm = 1 AND part = 'vm'").fetchone()[0]
    poisoned = json.dumps(json.loads(value) | {"switches": {"rwsem_steal": 1}}).encode()
    sum_ = schema.checksum(1, "vm", poisoned)
    changed(state, "UPDATE state SET value = ?, sum = ? WHERE vm = 1 AND part = 'vm'", poisoned, sum_)
    served, warned = await start(state)
    assert served == {"vm-1", "vm-2", "bare"}
    assert "virtual machine vm-0 is damaged: vm.switches.rwsem_steal: Input should be a valid boolean" in warned[0]
    (folder,) = (state / "damaged").iterdir()
    assert {"why.txt", "vm", "slots", "slots-0", "cpu-0", "1-0", "1-1"} <= {path.name for path in folder.iterdir()}
    assert await start(state) == (served, [])  # it is said once


async def test_a_machine_that_only_cannot_be_served_here_stays_as_it_is(state, monkeypatch):
    changed(state, "UPDATE state SET value = replace(value, 'sticky', 'mine'), sum = 0 WHERE vm = 1 AND part = 'vm'")
    with contextlib.closing(sqlite3.connect(state / "journal.sqlite3", isolation_level=None)) as connection:
        connection.create_function("checksum", -1, schema.checksum)
        connection.execute("UPDATE state SET value = CAST(value AS BLOB) WHERE vm = 1 AND part = 'vm'")
        connection.execute("UPDATE state SET sum = checksum(vm, part, value) WHERE vm = 1 AND part = 'vm'")
    for _ in range(2):
        served, warned = await start(state)
        assert served == {"vm-1", "vm-2", "bare"}
        assert "vm-0 is not served, and stays as it is: no variant 'mine'" in warned[0]
    assert (state / "memory" / "1-0").exists()
    changed(state, "DELETE FROM meta WHERE key = 'commits'")


@pytest.mark.parametrize("lost", ["journal.sqlite3", "journal.sqlite3-wal"])
async def test_a_lost_journal_or_log_beside_memory_is_said_and_everything_is_kept_aside(tmp_path, lost):
    context = await damage.populate(tmp_path / "state")
    shutil.copytree(tmp_path / "state", tmp_path / "crashed")
    await context.stop()
    if lost == "journal.sqlite3":
        shutil.copytree(tmp_path / "state", tmp_path / "crashed", dirs_exist_ok=True)
        (tmp_path / "crashed" / "journal.sqlite3-wal").unlink()
    (tmp_path / "crashed" / lost).unlink()
    served, warned = await start(tmp_path / "crashed")
    assert served == set()
    assert "is gone" in warned[0]
    assert "starts empty" in warned[0]
    aside = {path.name for path in (tmp_path / "crashed" / "damaged").rglob("*")}
    assert {"1-0", "2-0", "3-0", "why.txt"} <= aside


async def test_a_state_directory_of_the_first_version_is_migrated(state):
    with contextlib.closing(sqlite3.connect(state / "journal.sqlite3", isolation_level=None)) as connection:
        for table in schema.TABLES:
            connection.execute(f"ALTER TABLE {table} DROP COLUMN sum")
        connection.execute("DELETE FROM meta WHERE key = 'commits'")
        connection.execute("PRAGMA user_version=1")
    (state / "lock").write_text("123\n")
    assert await start(state) == ({"vm-0", "vm-1", "vm-2", "bare"}, [])
    with contextlib.closing(sqlite3.connect(state / "journal.sqlite3")) as connection:
        assert connection.execute("SELECT count(*) FROM state WHERE sum IS NULL").fetchone() == (0,)


@pytest.mark.parametrize("kept", sorted((Path(__file__).parent / "kept").glob("*.json")), ids=lambda path: path.stem)
async def test_what_an_older_version_has_kept_is_restored(kept):
    machines = json.loads(kept.read_text())["machines"]
    registry = Registry()
    for name, parts in machines.items():
        saved = Saved({part: json.dumps(value).encode() for part, value in parts.items()})

        async def fill(machine, saved=saved):
            for base, size, arena in saved.vm.memory:
                machine.memory.adopt(base, arena, machine.memory.back(arena, size))

        machine = await restore(registry, saved, fill)
        assert (await machine.get_regs(1))["rax"] == 77
        assert machine.describe()["memory_regions"][0]["memory_size"] == 4 * damage.PAGE
        pending = parts["cpu/0"]["arch"]["pending"]
        assert machine.vcpu(0).arch.pending.port == pending["port"]
        assert machine.vm.switches.killable
        again = Saved(Recorder(machine, lambda saved=saved: saved.vm.files).whole())
        assert again.vm.vcpus == saved.vm.vcpus
        assert name == machine.id
    await registry.reset()


def test_what_a_newer_version_has_kept_is_refused_as_such():
    machine = json.loads((Path(__file__).parent / "kept" / "format-1.json").read_text())["machines"]["script"]
    machine["vm"]["format"] = 1_000
    with pytest.raises(KvmError, match="newer version"):
        Saved({part: json.dumps(value).encode() for part, value in machine.items()})


async def test_a_damaged_batch_of_events_is_a_gap_and_the_stream_goes_on(tmp_path):
    state = tmp_path / "state"
    async with live(ephemeral=False, state_dir=state) as server:
        for number in range(200):
            server.registry.log.emit("default", "kvm_test", 0, {"number": number})
            if number % 50 == 49:
                await until(lambda: server.context.journal._flushed == server.registry.log.seq, "the events are kept")
    with contextlib.closing(sqlite3.connect(state / "journal.sqlite3", isolation_level=None)) as connection:
        key, lines = connection.execute("SELECT last, lines FROM events ORDER BY last LIMIT 1 OFFSET 1").fetchone()
        flipped = damage.flip(lines, random.Random(3))
        connection.execute("UPDATE events SET lines = ? WHERE last = ?", (flipped, key))
    async with live(ephemeral=False, state_dir=state) as server, server.client() as client:
        log = server.registry.log
        for _ in range(2):  # the same at every reconnect
            seen, gaps = 0, 0
            async with events(client, f"/events?after={log.epoch}-0") as stream:
                while (event := await stream.next())["event"] != "snapshot":
                    gaps += event["event"] == "gap"
                    seen = event["data"]["to"] if event["event"] == "gap" else event["data"]["seq"]
            assert gaps == 1
            assert seen > key
            assert event["data"]["seq"] == log.seq


@pytest.mark.parametrize("where", ["the directory", "the lock", "the journal", "the memory"])
async def test_what_others_can_change_is_refused(state, where):
    if where == "the directory":
        state.chmod(0o777)
    else:
        path = state / {"the lock": "lock", "the journal": "journal.sqlite3", "the memory": "memory"}[where]
        path.rename(state.parent / "elsewhere")
        path.symlink_to(state.parent / "elsewhere")
    with pytest.raises(SettingsError, match=r"others can write|link"):
        await start(state)


async def test_a_link_to_a_directory_is_said(state):
    link = state.parent / "link"
    link.symlink_to(state)
    _, warned = await start(link)
    assert "is a link to" in warned[0]


def serve(state, *, files=None):
    limit = [] if files is None else ["prlimit", f"--nofile={files}"]
    command = [*limit, sys.executable, "-m", "kickstand", "serve", "--port", "0", "--state", str(state)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("wrong", ["open to others", "out of descriptors", "a file"])
def test_a_server_that_cannot_start_says_one_sentence_and_answers_1(tmp_path, wrong):
    state, files = tmp_path / "state", None
    if wrong == "open to others":
        state.mkdir()
        state.chmod(0o777)
    elif wrong == "a file":
        state.write_text("")
    else:
        files = 9
    ended = serve(state, files=files)
    assert ended.returncode == 1
    assert ended.stderr.startswith("kickstand: ")
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert not ended.stdout


async def test_two_who_delete_the_same_machine_are_both_answered_when_it_is_gone(state):
    context, _ = await damage.started(damage.on(state))
    registry = context.registry
    await asyncio.gather(registry.destroy("vm-0"), registry.destroy("vm-0"))
    assert "vm-0" not in registry.machines
    assert not list((state / "memory").glob("1-*"))
    image = shutil.copytree(state, state.parent / "crashed")
    await context.stop()
    assert "vm-0" not in (await start(image))[0]


async def test_who_leaves_during_a_delete_does_not_stop_it_midway(state):
    context, _ = await damage.started(damage.on(state))
    asked = asyncio.create_task(context.registry.destroy("vm-0"))
    await asyncio.sleep(0)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    await until(lambda: "vm-0" not in context.registry.machines, "it is destroyed")
    await context.stop()
    assert not list((state / "memory").glob("1-*"))
    assert list((state / "memory").glob("2-*"))
