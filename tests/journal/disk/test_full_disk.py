"""A real file system that is full, or read-only: calls are refused, the rest goes on, and no restart is needed."""

import asyncio
import contextlib
import errno
import os
import shutil
import subprocess

import pytest

from kickstand.api.context import Context
from kickstand.journal.disk.store import Failure
from kickstand.settings import JournalSettings, Settings, SettingsError
from tests.api.live import assert_problem, events, live, ready, until

pytestmark = pytest.mark.slow


@pytest.fixture
def disk(tmp_path):
    """A file system of eight megabytes."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(path)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


async def fill(path):
    """Take every block that is left, beside the loop: one that stands for a second is late, and not ready."""
    await asyncio.to_thread(_fill, path)


def _fill(path):
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


async def test_on_a_full_disk_calls_are_refused_until_there_is_room_again(disk):
    async with live(ephemeral=False, state_dir=disk / "state") as server, server.client() as client:
        await client.put("/vcpu/0/regs", json={"rax": 1})
        assert_problem(await client.post("/vm/host-memory", json={"size": 64 << 20}), 507, "ENOSPC")
        async with events(client, "/events") as stream:
            await stream.next()
            await fill(disk / "ballast")
            for method, path, body in (
                ("PUT", "/vcpu/0/regs", {"rax": 2}),
                ("POST", "/vms", {"id": "new"}),
                ("POST", "/vm/kick", None),
                ("POST", "/vcpu/0/run", {"timeout_ms": 1}),
            ):
                assert_problem(await client.request(method, path, json=body), 507, "ENOSPC")
            assert (await client.get("/vcpu/0/regs")).json()["rax"] == "0x1"
            assert (await client.get("/readyz")).status_code == 503
            server.registry.log.emit("default", "kvm_test", 0, {})
            assert (await stream.next())["event"] == "kvm_test"
            (disk / "ballast").unlink()
            assert (await client.put("/vcpu/0/regs", json={"rax": 3})).status_code == 200
            assert (await client.post("/vm/kick")).status_code == 200
            await ready(client)
    async with live(ephemeral=False, state_dir=disk / "state") as server, server.client() as client:
        assert (await client.get("/vcpu/0/regs")).json()["rax"] == "0x3"


async def test_a_commit_that_finds_the_disk_full_is_told_and_made_up_for(disk):
    settings = JournalSettings(reserve=0)  # only the file system itself says no
    async with live(ephemeral=False, state_dir=disk / "state", journal=settings) as server, server.client() as client:
        await fill(disk / "ballast")
        refused = None
        for value in range(5_000):  # until the log has to grow
            refused = await client.put("/vcpu/0/regs", json={"rax": value})
            if refused.status_code != 200:
                break
        assert_problem(refused, 507, "ENOSPC")
        assert (await client.get("/vm")).status_code == 200
        (disk / "ballast").unlink()
        await until(lambda: server.context.journal.store.failure is None, "recovery")
        assert (await client.put("/vcpu/0/regs", json={"rax": 7})).status_code == 200
    async with live(ephemeral=False, state_dir=disk / "state") as server, server.client() as client:
        assert (await client.get("/vcpu/0/regs")).json()["rax"] == "0x7"


def test_a_server_does_not_start_on_a_read_only_directory_and_says_so(disk):
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    context = Context(Settings(ephemeral=False, state_dir=disk / "state"))
    with pytest.raises(SettingsError, match="Read-only"):
        context.open()


async def test_a_vm_that_is_deleted_on_a_full_disk_is_gone_or_whole_after_a_crash(disk, tmp_path):
    async with live(ephemeral=False, state_dir=disk / "state") as server, server.client() as client:
        await client.post("/vm/host-memory", json={"size": 1 << 20, "name": "ram", "fill": "cafe"})
        await fill(disk / "ballast")
        answer = await client.delete("/vm")
        assert answer.status_code in (204, 507)
        (disk / "ballast").unlink()
        image = shutil.copytree(disk / "state", tmp_path / "crashed")
    async with live(ephemeral=False, state_dir=image) as server, server.client() as client:
        assert (await client.get("/vm")).status_code == (404 if answer.status_code == 204 else 200)
        assert bool(list((image / "memory").iterdir())) == (answer.status_code == 507)


async def test_a_vm_whose_removal_cannot_be_written_is_not_touched(disk, tmp_path):
    settings = JournalSettings(reserve=0)
    async with live(ephemeral=False, state_dir=disk / "state", journal=settings) as server, server.client() as client:
        await client.post("/vm/host-memory", json={"size": 1 << 20, "name": "ram", "fill": "cafe"})
        commit, server.context.journal.store._commit = server.context.journal.store._commit, refuse
        problem = assert_problem(await client.delete("/vm"), 507, "ENOSPC")
        assert "nothing has changed" in problem["detail"]
        assert (await client.get("/vm/host-memory/0x7f0000000000?length=2")).content == b"\xca\xfe"
        image = shutil.copytree(disk / "state", tmp_path / "crashed")
        server.context.journal.store._commit = commit
        await until(lambda: server.context.journal.store.failure is None, "recovery")
        assert (await client.delete("/vm")).status_code == 204
        assert list((disk / "state" / "memory").iterdir()) == []
    async with live(ephemeral=False, state_dir=image) as server, server.client() as client:
        assert (await client.get("/vm/host-memory/0x7f0000000000?length=2")).content == b"\xca\xfe"


def refuse(_batch):
    return Failure(errno.ENOSPC, "disk is full")
