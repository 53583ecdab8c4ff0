"""After a crash or a clean end everything that was answered is there, and the event history has no silent hole."""

import asyncio
import json
import os
import random
import stat
import sys

import pytest

from kickstand.core.atomics import outside
from kickstand.core.memslots import Region
from kickstand.core.variants import variants
from kickstand.settings import JournalSettings
from tests.api.live import events, live, until
from tests.journal import kill9
from tests.long import either

pytestmark = pytest.mark.slow  # each starts two servers
BASE = 0x7F00_0000_0000
PAGE = 4096
WAITING = {"holds", "accel_blocker", "arm64_pause"}  # KVM_RUN waits for RESUME, until a signal comes
STICKY = {"sticky", "global_rwsem", "clear_on_exit", "check_not_test", "srcu", "holds", "accel_blocker", "arm64_pause"}


async def prepare(client, vm="/vm"):
    await client.post(f"{vm}/host-memory", json={"size": 16 * PAGE, "name": "ram"})
    region = {"flags": 1, "guest_phys_addr": 0, "memory_size": 16 * PAGE, "userspace_addr": hex(BASE)}
    assert (await client.put(f"{vm}/memory-regions/0", json=region)).status_code == 200


async def test_after_a_crash_everything_that_was_answered_is_there(serve, crash):
    async with serve() as server, server.client() as client:
        await prepare(client)
        await client.put("/vcpu/0/program", json=[["write", 2 * PAGE, 7], ["in", 96], ["out", 96, 9]])
        assert (await client.post("/vcpu/0/run")).json()["exit_reason"] == "KVM_EXIT_IO"
        await client.put("/vcpu/1/regs", json={"rax": 5})
        await client.put("/vcpu/1/sregs", json={"cr3": 4096})
        await client.post("/vcpu/2/signal")
        await client.post("/vcpu/3/nmi")
        await client.put(f"/vm/host-memory/{hex(BASE + 5 * PAGE)}", content=b"kept")
        before = (await client.get("/vm")).json()
        image = crash()
    async with serve(image) as server, server.client() as client:
        after = (await client.get("/vm")).json()
        assert after["kicked"] is True
        assert after["memory_regions"] == before["memory_regions"]
        assert after["epoch"] == before["epoch"]
        assert after["seq"] > before["seq"]
        assert [vcpu["exit_reason"] for vcpu in after["vcpus"]] == [vcpu["exit_reason"] for vcpu in before["vcpus"]]
        assert "KVM_REQ_NMI" in after["vcpus"][3]["requests"]
        assert (await client.get("/vcpu/1/regs")).json()["rax"] == "0x5"
        assert (await client.get("/vcpu/1/sregs")).json()["cr3"] == "0x1000"
        assert (await client.get(f"/vm/host-memory/{hex(BASE + 5 * PAGE)}?length=4")).content == b"kept"
        assert (await client.get("/vm/dirty-log/0")).json() == {"dirty_pages": [2]}
        await client.post("/vm/resume")
        assert (await client.post("/vcpu/2/run")).json()["cause"] == "signal"
        told = (await client.post("/vcpu/0/run", json={"reply": "2a"})).json()
        assert told["io"]["data"] == "09"


async def test_calls_that_end_together_share_a_record_that_has_all_of_them(serve, crash):
    async with serve(vcpus=16) as server:
        machine, store = server.registry.get("default"), server.context.journal.store
        submitted = store.submitted
        about_a_vcpu = [machine.set_regs(vcpu, {"rax": 100 + vcpu}) for vcpu in range(16)]
        await asyncio.gather(*about_a_vcpu, machine.kick())
        records = store.submitted - submitted
        image = crash()
    assert records < 8
    async with serve(image) as server, server.client() as client:
        for vcpu in range(16):
            assert (await client.get(f"/vcpu/{vcpu}/regs")).json()["rax"] == hex(100 + vcpu)
        assert (await client.get("/vm")).json()["kicked"] is True


@pytest.mark.parametrize("by", ["a client's KVM_RUN", "a thread of the server"])
async def test_after_a_crash_no_page_that_a_running_guest_wrote_is_missing_from_the_dirty_log(serve, crash, by):
    async with serve(vcpus=1, journal=JournalSettings(tick_s=60)) as server, server.client() as client:
        await prepare(client)
        await client.put("/vcpu/0/program", json=[["write", 3 * PAGE, 7], ["spin"]])
        if by == "a client's KVM_RUN":
            parked = asyncio.create_task(client.post("/vcpu/0/run"))
        else:
            parked = asyncio.create_task(client.post("/vcpu/0/start"))
        vcpu = server.registry.get("default").vcpu(0)
        await until(lambda: vcpu.watched.state.value == "guest", "the guest runs")
        store = server.context.journal.store
        await store.wait(store.submitted)
        image = crash()
        await client.post("/vcpu/0/signal")
        await parked
    async with serve(image) as server, server.client() as client:
        assert (await client.get("/vm/dirty-log/0")).json() == {"dirty_pages": list(range(16))}
        assert (await client.get("/vm/dirty-log/0")).json() == {"dirty_pages": []}


@pytest.mark.parametrize("variant", sorted(variants()))
async def test_a_restored_vm_comes_up_kicked_where_its_variant_knows_such_a_state(serve, crash, variant):
    async with serve(variant=variant, vcpus=1) as server, server.client() as client:
        await client.post("/vcpu/0/start", json={"behaviour": "careless"})
        image = crash()
    async with serve(image) as server, server.client() as client:
        vm = (await client.get("/vm")).json()
        assert vm["kicked"] is (variant in STICKY)
        assert vm["vcpus"][0]["thread"]["running"]
        assert vm["vcpus"][0]["state"] == "user"  # the server's own threads wait for RESUME under every variant
        await client.post("/vm/resume")
        vcpu = server.registry.get("default").vcpu(0)
        await until(lambda: vcpu.watched.state.value == "guest", "the thread goes on")


@pytest.mark.parametrize("back", ["crash", "snapshot"])
@pytest.mark.parametrize("variant", sorted(STICKY - {"clear_on_exit", "check_not_test"}))
async def test_who_was_kept_out_by_a_kick_is_kept_out_after_it_too(serve, crash, variant, back):
    """Whoever has left through the window already, and has taken its request with it."""
    async with serve(variant=variant, vcpus=1) as server, server.client() as client:
        await client.put("/vcpu/0/program", json=[["out", 96, 9]])
        await client.post("/vm/kick")
        assert (await client.post("/vcpu/0/run", json={"timeout_ms": 5})).json()["errno"] == "EINTR"
        snapshot = (await client.post("/vm/snapshot")).content
        image = crash()
    async with serve(image) as server, server.client() as client:
        if back == "snapshot":
            await client.delete("/vm")
            assert (await client.post("/vms/restore?id=default", content=snapshot)).status_code == 201
        assert (await client.get("/vm")).json()["kicked"]
        kept_out = (await client.post("/vcpu/0/run", json={"timeout_ms": 5})).json()
        assert (kept_out["errno"], kept_out["cause"] == "poll_timeout") == ("EINTR", variant in WAITING)
        assert (await client.post("/vm/resume")).json()["changed"]
        assert not (await client.get("/vm")).json()["kicked"]
        assert (await client.post("/vcpu/0/run")).json()["exit_reason"] == "KVM_EXIT_IO"


async def test_a_resume_that_closes_the_window_says_so_though_no_request_was_left(serve):
    async with serve(variant="clear_on_exit", vcpus=1) as server, server.client() as client:
        await client.post("/vm/kick")
        assert (await client.post("/vcpu/0/run")).json()["errno"] == "EINTR"
        resumed = (await client.post("/vm/resume")).json()
        assert (resumed["changed"], resumed["cleared"], resumed["holds"]) == (True, 0, 0)
        assert (await client.post("/vm/resume")).json()["changed"] is False


async def test_after_a_crash_the_immediate_exit_of_a_kick_ends_one_run_and_that_of_the_user_all(serve, crash):
    flag = {"op": "set_run_flag", "args": {"vcpu": 1, "flag": "immediate_exit", "value": 1}}
    async with serve(variant="signal", vcpus=2) as server, server.client() as client:
        for vcpu in (0, 1):
            await client.put(f"/vcpu/{vcpu}/program", json=[["out", 96, 9]])
        assert (await client.post("/vm/script", json=[flag])).json()["results"][0]["ret"] == 0
        assert (await client.post("/vm/kick")).status_code == 200
        image = crash()
    async with serve(image) as server, server.client() as client:
        causes = [(await client.post(f"/vcpu/{vcpu}/run")).json()["cause"] for vcpu in (0, 0, 1, 1)]
        assert causes == ["immediate_exit", None, "immediate_exit", "immediate_exit"]


async def test_holds_that_were_answered_are_there_one_by_one(serve, crash):
    async with serve(variant="holds", vcpus=1) as server, server.client() as client:
        await client.post("/vm/kick")
        await client.post("/vm/kick")
        image = crash()
    async with serve(image) as server, server.client() as client:
        assert (await client.get("/vm")).json()["holds"] == 2
        await client.post("/vm/resume")
        assert (await client.post("/vm/resume")).json()["holds"] == 0


async def test_an_x86_guest_goes_on_in_the_middle_of_its_device_access(serve, crash):
    async with serve(default_vm=False) as server, server.client() as client:
        await client.post("/vms", json={"id": "pc", "vcpus": 1, "engine": "x86"})
        await prepare(client, "/vms/pc")
        code = bytes.fromhex("90e460a20010f4")  # nop; in al, 0x60; mov [0x1000], al; hlt
        await client.put(f"/vms/pc/host-memory/{hex(BASE)}", content=code)
        await client.put("/vms/pc/vcpu/0/sregs", json={"cs": {"base": 0, "selector": 0}})
        await client.put("/vms/pc/vcpu/0/regs", json={"rip": 0, "rflags": 2})
        asked = (await client.post("/vms/pc/vcpu/0/run")).json()
        assert asked.get("io", asked)["port"] == 0x60
        image = crash()
    async with serve(image) as server, server.client() as client:
        await client.post("/vms/pc/resume")
        assert (await client.post("/vms/pc/vcpu/0/run", json={"reply": "2a"})).json()["exit_reason"] == "KVM_EXIT_HLT"
        assert (await client.get(f"/vms/pc/host-memory/{hex(BASE + 0x1000)}?length=1")).content == b"\x2a"


async def test_a_transaction_that_was_under_way_has_not_happened(serve, crash):
    async with serve() as server, server.client() as client:
        await prepare(client)
        machine = server.registry.get("default")
        stuck = machine.start_run(0)
        await until(lambda: machine.vcpu(0).watched.state.value == "guest", "the guest runs")
        deleted = [Region(0, 1, 0, 0, BASE), Region(1, 0, 0, 8 * PAGE, BASE)]
        images = []
        original = machine.vm.set_region

        async def observed(region):
            await original(region)
            await outside(client.put("/vcpu/2/regs", json={"rbx": 3}))  # another client's call is kept meanwhile
            images.append(crash())

        machine.vm.set_region = observed
        await machine.memory_transaction(deleted)
        await stuck.result()
        images.append(crash())
    for image, slots in zip(images, ([0], [0], [1]), strict=True):
        async with serve(image) as server, server.client() as client:
            assert [region["slot"] for region in (await client.get("/vm/memory-regions")).json()["regions"]] == slots
            assert (await client.get("/vcpu/2/regs")).json()["rbx"] == "0x3"


async def test_a_destroyed_vm_does_not_come_back_and_leaves_no_memory(serve, state):
    async with serve() as server, server.client() as client:
        await prepare(client)
        assert [path.name for path in (state / "memory").iterdir()] == ["1-0"]
        await client.delete("/vm")
        assert list((state / "memory").iterdir()) == []
    async with serve() as server, server.client() as client:
        assert (await client.get("/vms")).json() == {"vms": []}


async def test_a_clean_end_leaves_no_hole_and_a_stream_goes_on_where_it_was(serve):
    async with serve() as server, server.client() as client:
        async with events(client, "/vm/events") as stream:
            snapshot = await stream.next()
        await client.post("/vm/kick")
        await client.post("/vcpu/0/start")
    async with serve() as server, server.client() as client:
        target = server.registry.log.seq
        epoch, number = snapshot["id"].split("-")
        async with events(client, "/vm/events", headers={"Last-Event-ID": snapshot["id"]}) as stream:
            for seq in range(int(number) + 1, target + 1):
                assert (await stream.next())["id"] == f"{epoch}-{seq}"


async def test_after_a_crash_lost_events_are_a_gap_and_then_a_snapshot(serve, crash):
    async with serve() as server, server.client() as client:
        await client.post("/vm/kick")
        image = crash()
        epoch, last = server.registry.log.epoch, server.registry.log.seq
    async with serve(image) as server, server.client() as client:
        number = 0
        async with events(client, f"/vm/events?after={epoch}-0") as stream:
            while (event := await stream.next())["event"] != "snapshot":
                if event["event"] == "gap":
                    assert event["data"]["reason"] == "lost"
                    assert event["data"]["from"] == number + 1 <= last + 1
                    number = event["data"]["to"]
                else:
                    assert event["data"]["seq"] == number + 1
                    number += 1
            assert event["data"]["seq"] == number == server.registry.log.seq


async def test_a_resume_point_that_the_ring_has_lost_is_served_from_the_journal(serve):
    async with serve() as server, server.client() as client:
        log = server.registry.log
        for number in range(9_000):
            log.emit("default", "kvm_mode", 0, {"number": number})
        await until(lambda: server.context.journal._flushed == log.seq, "the events are kept")
        async with events(client, f"/vm/events?after={log.epoch}-0") as stream:
            for seq in range(1, log.seq + 1):
                assert (await stream.next())["data"]["seq"] == seq


async def test_everything_in_the_state_directory_is_for_this_user_only(serve, state):
    async with serve() as server, server.client() as client:
        await prepare(client)
        for path in (state, *state.rglob("*")):
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


async def test_an_ephemeral_server_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    async with live() as server, server.client() as client:
        await prepare(client)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(300)
async def test_killed_at_random_moments_it_has_everything_it_answered(state):
    seed = int(os.environ.get("KILL9_SEED", random.randrange(1 << 32)))
    counts = await kill9.run(int(os.environ.get("KILL9_KILLS", either("2", "20"))), seed, state)
    sys.stdout.write(json.dumps({"seed": seed} | counts) + "\n")
    assert counts["answered_calls"] > 0
