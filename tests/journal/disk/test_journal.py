"""The journal's file and disk: damaged, foreign, newer, locked, full, read-only, too old, too large."""

import asyncio
import contextlib
import errno
import os
import sqlite3

import pytest

from kickstand.journal.disk import schema
from kickstand.journal.disk.directory import Directory, default_directory
from kickstand.journal.disk.store import Failure, Store, Work, read_meta, read_state, trim
from kickstand.settings import Settings, SettingsError
from tests.api.live import assert_problem, ready, until

warnings = []


def opened(path):
    return Directory(path, warnings.append)


@pytest.fixture
async def store(tmp_path):
    schema.prepare(tmp_path / "journal")
    made = Store(tmp_path / "journal")
    yield made
    if made._thread.is_alive():
        await made.close()


def content(store):
    with contextlib.closing(sqlite3.connect(store.path)) as connection:
        meta, damaged = read_meta(connection)
        assert not damaged
        assert meta.pop("commits", 0) == store.commits
        return read_state(connection), meta


async def test_what_was_waited_for_is_on_disk_and_a_group_is_one_commit(store):
    tickets = [store.submit(Work({(1, f"p{number}"): b"x"})) for number in range(100)]
    await store.wait(tickets[-1])
    assert len(content(store)[0][1]) == 100
    assert store.commits <= 3
    await store.wait(store.submit(Work({(1, "p0"): None, (1, "p1"): b"y"}, meta={"key": 1})))
    state, meta = content(store)
    assert "p0" not in state[1]
    assert (state[1]["p1"], meta) == (b"y", {"key": 1})
    await store.wait(store.submit(Work({(1, None): None})))
    assert content(store)[0] == {}


async def test_a_failed_commit_changes_nothing_and_the_next_one_clears_the_failure(store):
    def full(_connection):
        raise sqlite3.OperationalError("database or disk is full")

    store.submit(Work({(1, "vm"): b"x"}))
    with pytest.raises(Failure) as caught:
        await store.wait(store.submit(full))
    assert caught.value.errno == store.failure.errno == errno.ENOSPC
    assert content(store)[0].get(1, {}) in ({}, {"vm": b"x"})  # the first may have had a commit of its own
    await store.wait(store.submit(Work({(2, "vm"): b"y"})))
    assert store.failure is None


async def test_old_events_go_by_age_and_by_size(store):
    for last in (10, 20, 30):
        await store.wait(store.submit(Work(events=(last - 9, last, float(last), os.urandom(1_000)))))
    await store.wait(store.submit(lambda connection: trim(connection, 15, 1 << 20)))
    with contextlib.closing(sqlite3.connect(store.path)) as connection:
        kept = "SELECT last FROM events ORDER BY last"
        assert connection.execute(kept).fetchall() == [(20,), (30,)]
        await store.wait(store.submit(lambda connection: trim(connection, 0, 1_500)))
        assert connection.execute(kept).fetchall() == [(30,)]


def test_a_second_server_on_the_same_directory_is_refused_by_name(tmp_path):
    first = opened(tmp_path)
    with pytest.raises(SettingsError, match=f"process {os.getpid()}.*--ephemeral"):
        opened(tmp_path)
    first.close()
    opened(tmp_path).close()


def test_a_damaged_journal_is_kept_aside_and_never_overwritten(tmp_path):
    warnings.clear()
    for number in range(2):
        opened(tmp_path).close()
        data = (tmp_path / "journal.sqlite3").read_bytes()
        damaged = data[:100] + bytes([number + 1]) * (len(data) - 100)
        (tmp_path / "journal.sqlite3").write_bytes(damaged)
        (tmp_path / "memory" / "1-0").write_bytes(b"guest")
        directory = opened(tmp_path)
        directory.sweep(())
        directory.close()
        assert list((tmp_path / "memory").iterdir()) == []
        aside = [path.read_bytes() for path in tmp_path.glob("damaged/*/journal.sqlite3")]
        assert damaged in aside
        assert len(aside) == number + 1
    assert len(list(tmp_path.glob("damaged/*-memory*/1-0"))) == 2
    assert "kept aside in" in warnings[0]
    assert "journal is damaged" in next(tmp_path.glob("damaged/*-journal/why.txt")).read_text()


def test_something_that_is_no_database_is_kept_aside_too(tmp_path):
    (tmp_path / "journal.sqlite3").write_bytes(b"no database at all" * 100)
    opened(tmp_path).close()
    assert [path.read_bytes()[:2] for path in tmp_path.glob("damaged/*/journal.sqlite3")] == [b"no"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (f"PRAGMA user_version={schema.VERSION + 1}", "knows versions up to"),
        ("PRAGMA application_id=1", "another program"),
    ],
)
def test_a_newer_or_foreign_file_is_refused_and_left_alone(tmp_path, change, complaint):
    opened(tmp_path).close()
    with contextlib.closing(sqlite3.connect(tmp_path / "journal.sqlite3", isolation_level=None)) as connection:
        connection.execute(change)
    before = (tmp_path / "journal.sqlite3").read_bytes()
    with pytest.raises(SettingsError, match=complaint):
        opened(tmp_path)
    assert (tmp_path / "journal.sqlite3").read_bytes() == before


def test_an_older_file_is_migrated(tmp_path, monkeypatch):
    opened(tmp_path).close()
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, "CREATE TABLE more (x);"))
    monkeypatch.setattr(schema, "VERSION", schema.VERSION + 1)
    opened(tmp_path).close()
    with contextlib.closing(sqlite3.connect(tmp_path / "journal.sqlite3")) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (schema.VERSION,)
        assert connection.execute("SELECT count(*) FROM more").fetchone() == (0,)


def test_the_default_directory_is_the_users_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_directory() == tmp_path / "kickstand"
    with pytest.raises(SettingsError, match="choose one"):
        Settings(ephemeral=True, state_dir=tmp_path)


def full():
    return 0


def read_only():
    raise OSError(errno.EROFS, "Read-only file system")


@pytest.mark.slow
@pytest.mark.parametrize(("disk", "name"), [(full, "ENOSPC"), (read_only, "EROFS")])
async def test_without_a_disk_calls_are_refused_reads_and_streams_go_on_and_nothing_changes(serve, crash, disk, name):
    calls = [
        ("POST", "/vms", {"id": "new"}),
        ("POST", "/vm/kick", None),
        ("POST", "/vm/host-memory", {"size": 4096}),
        ("PUT", "/vcpu/0/regs", {"rax": 1}),
        ("PUT", "/vcpu/0/program", [["hlt"]]),
        ("POST", "/vcpu/0/run", None),
        ("POST", "/vcpu/0/start", None),
        ("POST", "/vcpu/0/signal", None),
        ("POST", "/vm/memory-transaction", {"operations": []}),
        ("POST", "/vm/script", [{"op": "kick"}]),
    ]
    async with serve() as server, server.client() as client:
        journal = server.context.journal
        before = (await client.get("/vms")).json()
        enough, journal.room.free = journal.room.free, disk
        for method, path, body in calls:
            assert_problem(await client.request(method, path, json=body), 507, name)
        assert (await client.get("/vms")).json() == before
        assert (await client.get("/readyz")).status_code == 503
        async with client.stream("GET", "/vm/events") as stream:
            assert "snapshot" in await anext(stream.aiter_text())
        journal.room.free = enough
        assert (await client.put("/vcpu/0/regs", json={"rax": 1})).status_code == 200
        await ready(client)


@pytest.mark.slow
async def test_after_a_commit_that_failed_everything_is_written_again(serve, crash):
    async with serve() as server, server.client() as client:
        journal = server.context.journal
        commit, journal.store._commit = journal.store._commit, lambda _batch: Failure(errno.ENOSPC, "disk is full")
        problem = assert_problem(await client.put("/vcpu/0/regs", json={"rax": 1}), 507, "ENOSPC")
        assert "could not be kept" in problem["detail"]
        assert_problem(await client.put("/vcpu/0/regs", json={"rbx": 1}), 507, "ENOSPC")
        journal.store._commit = commit
        await until(lambda: journal.store.failure is None, "recovery")
        await asyncio.sleep(0.3)
        image = crash()
    async with serve(image) as server, server.client() as client:
        regs = (await client.get("/vcpu/0/regs")).json()
        assert (regs["rax"], regs["rbx"]) == ("0x1", "0x0")


@pytest.mark.slow
async def test_metrics_tell_how_the_journal_is(serve):
    async with serve() as server, server.client() as client:
        await client.post("/vm/kick")
        lines = dict(line.rsplit(" ", 1) for line in (await client.get("/metrics")).text.splitlines() if line[0] != "#")
        assert float(lines["kickstand_journal_commits_total"]) >= 2
        assert float(lines["kickstand_journal_writable"]) == 1
        assert float(lines["kickstand_journal_size_bytes"]) + float(lines["kickstand_journal_wal_bytes"]) > 0
