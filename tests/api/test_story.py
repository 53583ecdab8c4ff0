"""The main job with HTTP alone: run, kick, EINTR, EINTR again, resume, run on; and the stream shows it in order."""

import asyncio

from tests.api.live import events, until

HOLE = "0xfee00000"


async def prepare(client, vm):
    memory = await client.post(f"{vm}/host-memory", json={"size": 8192})
    assert memory.status_code == 201
    region = {"guest_phys_addr": 0, "memory_size": 8192, "userspace_addr": memory.json()["userspace_addr"]}
    assert (await client.put(f"{vm}/memory-regions/0", json=region)).json()["guest_phys_addr"] == "0x0"
    program = [["read", "0x1000"], ["spin"], ["read", HOLE]]
    assert (await client.put(f"{vm}/vcpu/0/program", json=program)).status_code == 200


async def test_a_kicked_run_answers_eintr_until_resume_and_the_stream_tells_it_in_order(client, machine, vm):
    await prepare(client, vm)
    async with events(client, f"{vm}/events") as stream:
        assert (await stream.next())["event"] == "snapshot"
        parked = asyncio.create_task(client.post(f"{vm}/vcpu/0/run"))
        await stream.until("vcpu_state", state="guest")

        kick = (await client.post(f"{vm}/kick")).json()
        assert kick["changed"]
        assert kick["vcpus_stopped"] == 1
        assert kick["holds"] == 1

        first = await parked
        assert first.status_code == 200
        assert first.headers["Kickstand-Errno"] == "EINTR"
        assert (first.json()["ret"], first.json()["errno"]) == (-1, "EINTR")
        assert (first.json()["cause"], first.json()["kick_id"]) == ("userspace_kick", kick["kick_id"])

        again = (await client.post(f"{vm}/vcpu/0/run", json={"timeout_ms": 5000})).json()
        assert (again["errno"], again["cause"]) == ("EINTR", "userspace_kick")
        assert again["run_ns"] < 1_000_000_000

        assert (await client.post(f"{vm}/resume")).json()["changed"]
        running = asyncio.create_task(client.post(f"{vm}/vcpu/0/run"))
        await until(lambda: machine.vm.vcpus[0].watched.state.value == "guest", "the guest runs on")
        await client.post(f"{vm}/vcpu/0/signal")
        assert (await running).json()["cause"] == "signal"

        seen = [
            (e["event"], e["data"].get("phase"), e["data"].get("errno"))
            for e in await stream.until("kvm_userspace_exit", reason="KVM_EXIT_INTR")
        ]
    order = [
        ("kvm_kick_all", "requested", None),
        ("kvm_userspace_exit", None, 4),
        ("kvm_kick_all", "completed", None),
        ("kvm_userspace_exit", None, 4),
        ("kvm_resume_all", "requested", None),
        ("kvm_resume_all", "completed", None),
        ("kvm_entry", None, None),
        ("kvm_userspace_exit", None, 4),
    ]
    rest = iter(seen)
    assert all(step in rest for step in order), seen


async def test_without_a_kick_a_merge_shows_the_guest_a_hole(client, machine, vm):
    await prepare(client, vm)
    await client.put(f"{vm}/vcpu/0/program", json=[["read", "0x1000"]])
    parked = asyncio.create_task(client.post(f"{vm}/vcpu/0/run"))
    await until(lambda: machine.vm.vcpus[0].watched.state.value == "guest", "the guest runs")
    assert (await client.delete(f"{vm}/memory-regions/0")).status_code == 204
    answer = (await parked).json()
    assert answer["exit_reason"] == "KVM_EXIT_MMIO"
    assert answer["mmio"] == {"phys_addr": "0x1000", "len": 8, "is_write": False, "data": None}


async def test_an_exit_is_completed_by_the_reply_of_the_next_run(client, vm):
    await client.put(f"{vm}/vcpu/0/program", json=[["in", 0x3F8], ["out", 0x3F8, 0x41]])
    asked = (await client.post(f"{vm}/vcpu/0/run")).json()
    assert asked["io"] == {"direction": "in", "size": 1, "port": 0x3F8, "count": 1, "data": None}
    told = (await client.post(f"{vm}/vcpu/0/run", json={"reply": "2a"})).json()
    assert told["io"]["data"] == "41"
