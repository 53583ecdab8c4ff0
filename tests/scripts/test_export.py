"""What happened on a machine is written as a script that replays to the same answers."""

import asyncio
import errno
import json

import pytest

from kickstand.core.arch.coalesced import Zone
from kickstand.core.arch.cpu.cpuid import Entry
from kickstand.core.errors import KvmError
from kickstand.core.memslots import Region
from kickstand.core.run.run_page import Cause
from kickstand.core.trace import VcpuState
from kickstand.core.uapi import Cap
from kickstand.runtime.calls.history import History
from kickstand.runtime.registry import Registry
from kickstand.runtime.table import DECLARED
from kickstand.scripts import by_structure, export
from kickstand.scripts.export import exporter, script_of
from kickstand.scripts.language.errors import ScriptError
from kickstand.scripts.language.operations import OPERATIONS
from kickstand.scripts.language.reader import load
from kickstand.scripts.language.script import parse_trace
from kickstand.scripts.play.backends import InProcess
from kickstand.scripts.play.player import play_script
from kickstand.scripts.replay import replay_traces
from tests.api.live import live

PAGE = 4096


@pytest.fixture
async def registry():
    registry = Registry()
    yield registry
    await registry.reset()


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


async def in_guest(machine, vcpu=0):
    await until(lambda: machine.vcpu(vcpu).watched.state is VcpuState.GUEST)


def names(machine):
    return [operation["op"] for operation in script_of(machine)["ops"]]


async def replays(machine):
    """The script of ``machine``, after it has been replayed without a difference."""
    script = json.loads(exporter(machine)())
    summary = await replay_traces([parse_trace(script, "x")], InProcess())
    assert summary.line == "1 passed, 0 failed", summary.lines()
    return script


async def test_a_session_replays_to_the_same_answers(registry):
    machine = await registry.create("vm", vcpus=1, engine="x86", seed=3)
    arena = machine.memory.allocate(4 * PAGE, "ram")
    machine.memory.write(arena.base, bytes(3 * PAGE))
    machine.memory.write(arena.base + 0x1000, bytes.fromhex("e610e420a200200000f4"))
    await machine.set_user_memory_region(Region(0, 1, 0, 4 * PAGE, arena.base))
    with pytest.raises(KvmError):
        await machine.set_user_memory_region(Region(1, 0, 0, PAGE, arena.base))
    await machine.set_sregs(0, {"cs": {"base": 0, "selector": 0}})
    await machine.set_regs(0, {"rip": 0x1000, "rax": 0x41})
    assert (await machine.run(0))["io"]["data"] == "41"
    await machine.get_regs(0)  # not defined here, so it is not kept
    await machine.run(0)
    assert (await machine.run(0, reply=b"\x99"))["exit_reason"] == "KVM_EXIT_HLT"
    await machine.get_regs(0)
    await machine.get_sregs(0)
    await machine.get_mp_state(0)
    assert await machine.get_dirty_log(0)
    machine.memory.read(arena.base + 0x2000, 4)
    script = await replays(machine)
    assert [operation["op"] for operation in script["ops"]] == [
        "create_vcpu", "arena", "fill_host", "write_host", "set_memory_region", "set_memory_region", "set_sregs",
        "change_regs", "run", "run", "run", "get_regs", "get_sregs", "get_mp_state", "get_dirty_log", "read_host",
    ]  # fmt: skip
    assert script["ops"][4]["args"]["host"] == {"arena": "ram", "offset": 0}
    assert script["vm"] | {"switches": {}} == {
        "engine": "x86", "variant": "sticky", "mode": "precise", "seed": 3, "irqchip": False, "switches": {},
    }  # fmt: skip


async def test_a_run_that_a_kick_ends_began_before_it(registry):
    machine = await registry.create("vm", vcpus=2)
    run = machine.start_run(0)
    await in_guest(machine)
    await machine.kick()
    await run.result()
    await machine.resume()
    script = await replays(machine)
    assert [operation["op"] for operation in script["ops"]][2:] == ["start_run", "kick", "finish_run", "resume"]


async def test_a_run_that_was_told_to_leave_gets_its_signal(registry):
    machine = await registry.create("vm", vcpus=1)
    run = machine.start_run(0)
    await in_guest(machine)
    run.signal(Cause.CLIENT_DISCONNECT)
    await run.result()
    overlapped = machine.start_run(0)
    await in_guest(machine)
    await machine.set_user_memory_region(Region(0, 0, 0, PAGE, 0x7000_0000))
    overlapped.signal(Cause.SIGNAL)
    await overlapped.result()
    script = await replays(machine)
    assert [operation["op"] for operation in script["ops"]][1:] == [
        "run", "start_run", "set_memory_region", "signal", "finish_run",
    ]  # fmt: skip
    assert script["ops"][1]["args"] == {"vcpu": 0, "kick_after_ms": 10}


async def test_two_runs_that_wait_for_each_other_follow_each_other(registry):
    machine = await registry.create("vm", vcpus=1, programs=[[["in", 16], ["out", 17, 1]]])
    both = [machine.start_run(0), machine.start_run(0)]
    assert {(await run.result())["exit_reason"] for run in both} == {"KVM_EXIT_IO"}
    await replays(machine)
    assert names(machine)[1:] == ["start_run", "finish_run", "run"] or names(machine)[1:] == ["run", "run"]


async def test_an_ioctl_that_waited_for_a_run_stands_after_it(registry):
    machine = await registry.create("vm", vcpus=1)
    run = machine.start_run(0)
    await in_guest(machine)
    waiting = asyncio.create_task(machine.set_regs(0, {"rax": 1}))
    await asyncio.sleep(0)
    await machine.signal(0)
    await run.result()
    await waiting
    await replays(machine)
    assert names(machine)[1:] == ["start_run", "signal", "finish_run", "change_regs"]


async def test_the_parts_of_a_transaction_are_one_operation(registry):
    machine = await registry.create("vm", vcpus=1, irqchip=True)
    arena = machine.memory.allocate(PAGE)
    await machine.memory_transaction([Region(0, 0, 0, PAGE, arena.base)], "kick")
    await machine.signal(0)
    script = await replays(machine)
    assert [operation["op"] for operation in script["ops"]][1:] == ["arena", "memory_transaction", "signal"]
    assert script["vm"]["irqchip"] is True
    assert script["ops"][1]["args"]["name"] == "memory0"


async def test_what_a_guest_writes_and_what_was_refused_for_its_form_is_left_out(registry):
    machine = await registry.create("vm", vcpus=1, programs=[[["write", 0, 7], ["out", 16, 1]]])
    arena = machine.memory.allocate(PAGE, "ram")
    await machine.set_user_memory_region(Region(0, 0, 0, PAGE, arena.base))
    await machine.run(0)
    with pytest.raises(KvmError):
        await machine.set_regs(9, {})
    with pytest.raises(KvmError):
        machine.memory.write(arena.base + PAGE, b"x")
    with pytest.raises(KvmError):
        machine.start_run(9)
    await machine.start_thread(0)
    await asyncio.sleep(0)
    machine.memory.read(arena.base, 8)
    await machine.stop_thread(0)
    assert names(machine)[1:4] == ["arena", "set_memory_region", "run"]
    assert names(machine)[4:] in (["start_thread", "stop_thread"], ["start_thread", "read_host", "stop_thread"])


async def test_a_bounded_history_that_lost_its_beginning_says_so(registry):
    machine = await registry.create("vm", vcpus=1)
    machine.history = History(calls=2)
    for _ in range(4):
        await machine.signal(0)
    script = script_of(machine)
    assert script["dropped"] == 3
    with pytest.raises(ScriptError, match="cannot be replayed"):
        parse_trace(script, "x")


async def test_a_live_session_over_http_is_exported_and_replays(tmp_path):
    async with live() as server, server.client() as client:
        assert (await client.post("/vms", json={"id": "s", "vcpus": 1, "engine": "x86"})).status_code == 201
        made = (await client.post("/vms/s/host-memory", json={"size": 16384, "name": "ram"})).json()
        address = made["userspace_addr"]
        code = bytes(0x1000) + bytes.fromhex("e610f4ebfe")
        await client.put(
            f"/vms/s/host-memory/{address}", content=code, headers={"content-type": "application/octet-stream"}
        )
        slot = {"guest_phys_addr": 0, "memory_size": 16384, "userspace_addr": address, "flags": 0}
        assert (await client.put("/vms/s/memory-regions/0", json=slot)).status_code < 300
        await client.put("/vms/s/vcpu/0/sregs", json={"cs": {"base": 0, "selector": 0}})
        await client.put("/vms/s/vcpu/0/regs", json={"rip": 0x1000})
        for _ in range(2):
            assert (await client.post("/vms/s/vcpu/0/run")).status_code == 200
        await client.post("/vms/s/vcpu/0/run", json={"timeout_ms": 1})
        await client.post("/vms/s/kick")
        await client.post("/vms/s/script", json=[{"op": "get_regs", "args": {"vcpu": 0}}])
        answer = await client.get("/vms/s/trace", params={"format": "script"})
        assert answer.status_code == 200
        (tmp_path / "session.jsonl").write_bytes(answer.content)
    traces = load([tmp_path])
    assert [operation.op for operation in traces[0].operations][-3:] == ["run", "kick", "get_regs"]
    assert (await replay_traces(traces, InProcess())).line == "1 passed, 0 failed"


async def test_a_destroyed_machine_still_has_its_history(registry):
    machine = await registry.create("vm", vcpus=1)
    run = machine.start_run(0)
    await in_guest(machine)
    await registry.destroy("vm")
    with pytest.raises(KvmError) as gone:
        await run.result()
    assert gone.value.errno == errno.EIO
    assert names(machine)[0] == "create_vcpu"


async def test_tables_and_registers_of_a_model_are_part_of_the_script(registry):
    machine = await registry.create("vm", vcpus=1, engine="x86")
    await machine.set_cpuid2(0, [Entry(0, eax=1), Entry(0x80000001, edx=1 << 29)])
    assert await machine.set_msrs(0, [(0xC0000081, 5), (0x1234, 6)]) == 1
    script = await replays(machine)
    assert [operation["op"] for operation in script["ops"][1:]] == ["set_cpuid", "set_msrs"]
    assert script["ops"][-1]["result"] == {"ret": 0, "errno": None, "taken": 1}


async def test_a_split_irqchip_and_what_else_is_set_up_before_the_first_vcpu_are_said(registry):
    machine = await registry.create("vm", engine="x86")
    await machine.enable_cap(Cap.SPLIT_IRQCHIP, 0, [24])
    await machine.set_boot_cpu_id(1)
    await machine.register_coalesced(Zone(0xFEE00000, 0x1000, 0))
    await machine.create_vcpu(1)
    assert names(machine) == ["ioctl", "ioctl", "ioctl", "create_vcpu"]
    script = script_of(machine)
    assert script["vm"]["irqchip"] is False
    await replays(machine)


XSAVE = (bytes(24) + (0x1F80).to_bytes(4, "little")).ljust(512, b"\0") + (1).to_bytes(8, "little")
ZONE = {"addr": "0x3f8", "size": 1, "pio": 1}
WITHOUT_AN_OPERATION = [
    ("SET_BOOT_CPU_ID", {"number": 0}),
    ("SET_TSC_KHZ", {"number": 1_000_000}),
    ("ENABLE_CAP", {"fields": {"cap": 188, "args": [1, 0, 0, 0]}}),
    ("ENABLE_CAP", {"fields": {"cap": 188, "args": [64, 0, 0, 0]}}),  # refused
    ("REGISTER_COALESCED_MMIO", {"fields": ZONE}),
    ("UNREGISTER_COALESCED_MMIO", {"fields": ZONE}),
    ("X86_SET_MSR_FILTER", {"fields": {"ranges": [{"flags": 3, "nmsrs": 9, "base": 16, "bitmap": "0x100010000"}]},
                            "data": "ff01" + 6 * "00"}),
    ("SET_CLOCK", {"fields": {"clock": 10**9}}),
    ("RESET_DIRTY_RINGS", {}),  # refused
]  # fmt: skip
WITHOUT_AN_OPERATION_OF_A_VCPU = [
    ("SET_TSC_KHZ", {"number": 1_000_000}),
    ("X86_SETUP_MCE", {"fields": {"mcg_cap": "0x10a"}}),
    ("X86_SET_MCE", {"fields": {"status": "0x9000000000000000", "bank": 1}}),
    ("SET_XSAVE", {"hex": XSAVE.ljust(4096, b"\0").hex()}),
    ("SET_FPU", {"hex": bytes(416).hex()}),
    ("SET_DEBUGREGS", {"hex": bytes(128).hex()}),
    ("SET_VCPU_EVENTS", {"fields": {"flags": 1, "nmi": {"injected": 0, "pending": 1, "masked": 1}}}),
    ("SET_GUEST_DEBUG", {"fields": {"control": 3}}),
    ("SET_SREGS2", {"fields": {"cr0": "0x60000010", "apic_base": "0xfee00900"}}),
    ("SET_DEVICE_ATTR", {"fields": {"addr": "0x100010000"}, "data": "0100000000000080"}),
    ("ENABLE_CAP", {"fields": {"cap": 190, "args": [1, 0, 0, 0]}}),
    ("TPR_ACCESS_REPORTING", {"fields": {"enabled": 1}}),
    ("SET_VAPIC_ADDR", {"fields": {"vapic_addr": "0x1000"}}),
    ("KVMCLOCK_CTRL", {}),  # refused
]


async def test_what_has_no_operation_of_its_own_is_told_by_its_structure(registry):
    machine = await registry.create("vm", engine="x86")
    asked = [{"op": "ioctl", "args": {"name": name, **args}} for name, args in WITHOUT_AN_OPERATION]
    asked += [{"op": "create_irqchip", "args": {}}, {"op": "create_vcpu", "args": {"id": 0}}]
    asked += [
        {"op": "ioctl", "args": {"name": name, "vcpu": 0, **args}} for name, args in WITHOUT_AN_OPERATION_OF_A_VCPU
    ]
    answers = [answer async for answer in play_script(machine, asked)]
    told = (await replays(machine))["ops"]
    assert [each["args"].get("name") for each in told] == [each["args"].get("name") for each in asked]
    assert [each["result"]["errno"] for each in told] == [answer["errno"] for answer in answers]
    again = await registry.create("again", engine="x86")
    assert [answer async for answer in play_script(again, told)] == answers


def test_whatever_changes_a_machine_or_is_recorded_can_be_said_by_a_script():
    changing = [found for found in DECLARED if found.recorded or (found.durable and found.abi is not None)]
    said = {
        export.OPERATIONS.get(found.method, found.method) for found in changing if not by_structure.told(found.method)
    }
    assert said - OPERATIONS.keys() == {"set_user_memory_region"}  # as ``set_memory_region``
    assert [found.name for found in changing if not found.recorded] == []


async def test_a_look_at_registers_beside_a_run_has_no_place_in_a_script(registry):
    machine = await registry.create("vm", vcpus=1, programs=[[["spin"]]])
    run = machine.start_run(0)
    await in_guest(machine)
    await machine.get_mp_state(0)
    run.signal(Cause.SIGNAL)
    await run.result()
    await machine.get_mp_state(0)
    assert names(machine) == ["create_vcpu", "run", "get_mp_state"]
