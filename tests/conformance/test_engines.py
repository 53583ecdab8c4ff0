"""What every guest engine keeps: one suite, run over each of them through the same machine."""

from __future__ import annotations

import asyncio
import errno

import pytest

from kickstand.commands.demo.guests import PROTECTED_MODE
from kickstand.core.errors import KvmError
from kickstand.core.memslots import Region
from kickstand.core.run.run_page import Cause
from kickstand.core.trace import VcpuState
from kickstand.core.uapi import MpState
from kickstand.runtime.registry import Registry

PAGE = 4096
HOLE = 0x30_0000
ENGINES = [("script", "precise"), ("x86", "precise"), ("x86", "fast")]

# Each guest as a script and as 32-bit code (no registers are set up, flat segments).
SPIN = ([["spin"]], "ebfe")  # jmp $
OUT = ([["out", 0x3F8, 0x41], ["spin"]], "66baf803 b041 ee ebfe")  # mov dx, 0x3f8; mov al, 'A'; out dx, al
IN_THEN_STORE = ([["in", 0x60], ["write", 0x800, 1, 1], ["spin"]], "e460 c6050008000001 ebfe")
LOAD_HOLE = ([["read", HOLE, 4], ["spin"]], "a1 00003000 ebfe")
STORE_HOLE = ([["write", HOLE, 0x11223344, 4], ["spin"]], "c705 00003000 44332211 ebfe")
HALT = ([["hlt"], ["spin"]], "f4 ebfe")
FETCH_HOLE = ([["fetch", HOLE]], "b8 00003000 ffe0")  # mov eax, HOLE; jmp eax
LOAD_RAM = ([["read", 0x900, 4]], "a1 00090000 ebf9")
STORE_RAM = ([["write", 0x1900, 7, 4]], "c705 00190000 07000000 ebf4")


@pytest.fixture(params=ENGINES, ids="-".join)
async def machine_of(request):
    registry = Registry()
    engine, mode = request.param

    async def make(*guests, flags=0, **options):
        machine = await registry.create("vm", vcpus=len(guests), engine=engine, mode=mode, **options)
        arena = machine.memory.allocate(16 * PAGE)
        await machine.set_user_memory_region(Region(0, flags, 0, 16 * PAGE, arena.base))
        for vcpu_id, (program, code) in enumerate(guests):
            entry = 0x2000 + 0x100 * vcpu_id
            if engine == "script":
                await machine.set_program(vcpu_id, program)
                continue
            machine.memory.write(arena.base + entry, bytes.fromhex(code))
            await machine.set_sregs(vcpu_id, PROTECTED_MODE)
            await machine.set_regs(vcpu_id, {"rip": entry, "rflags": 2, "rsp": 0x4000})
        return machine

    yield make
    await registry.reset()
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


async def in_guest(machine, vcpu_id=0):
    await until(lambda: machine.vcpu(vcpu_id).watched.state is VcpuState.GUEST)


@pytest.mark.parametrize("guest", [SPIN, LOAD_RAM, STORE_RAM], ids=["spin", "load", "store"])
async def test_a_running_guest_is_kicked_out_and_goes_on_after_resume(machine_of, guest):
    machine = await machine_of(guest)
    for _ in range(20):
        run = machine.start_run(0)
        await in_guest(machine)
        await machine.kick(timeout_ms=5_000)
        assert (await run.result())["cause"] == "userspace_kick"
        await machine.resume()


async def test_a_kick_is_never_lost_wherever_the_guest_is(machine_of):
    machine = await machine_of(SPIN, LOAD_RAM)
    for vcpu_id in (0, 1):
        await machine.start_thread(vcpu_id, "careless")
    for turn in range(50):
        for _ in range(turn % 7):
            await asyncio.sleep(0)
        await machine.kick(timeout_ms=5_000)
        await machine.resume()


async def test_port_output_leaves_with_its_data(machine_of):
    machine = await machine_of(OUT)
    answer = await machine.run(0)
    assert answer["io"] == {"direction": "out", "size": 1, "port": 0x3F8, "count": 1, "data": "41"}


async def test_port_input_takes_the_reply_and_goes_on(machine_of):
    machine = await machine_of(IN_THEN_STORE)
    answer = await machine.run(0)
    assert answer["io"] == {"direction": "in", "size": 1, "port": 0x60, "count": 1, "data": None}
    answer = await machine.run(0, reply=b"\x5a", timeout_ms=50)
    assert answer["cause"] == "poll_timeout"
    assert machine.memory.read(machine.memory.arenas[0].base + 0x800, 1) == b"\x01"


async def test_a_load_from_a_hole_is_mmio(machine_of):
    machine = await machine_of(LOAD_HOLE)
    answer = await machine.run(0)
    assert answer["mmio"] == {"phys_addr": hex(HOLE), "len": 4, "is_write": False, "data": None}
    assert (await machine.run(0, reply=b"\x01\x02\x03\x04", timeout_ms=20))["cause"] == "poll_timeout"


async def test_a_store_to_a_hole_is_mmio_with_its_data(machine_of):
    machine = await machine_of(STORE_HOLE)
    answer = await machine.run(0)
    assert answer["mmio"] == {"phys_addr": hex(HOLE), "len": 4, "is_write": True, "data": "44332211"}


async def test_a_store_to_a_readonly_slot_is_mmio_and_leaves_memory_alone(machine_of):
    machine = await machine_of(STORE_RAM, flags=2)
    answer = await machine.run(0)
    assert (answer["mmio"]["phys_addr"], answer["mmio"]["is_write"]) == ("0x1900", True)
    assert machine.memory.read(machine.memory.arenas[0].base + 0x1900, 4) == bytes(4)


async def test_hlt_without_irqchip_leaves_and_goes_on_behind_it(machine_of):
    machine = await machine_of(HALT)
    assert (await machine.run(0))["exit_reason"] == "KVM_EXIT_HLT"
    assert (await machine.run(0, timeout_ms=20))["cause"] == "poll_timeout"


async def test_hlt_with_irqchip_sleeps_inside_and_a_kick_leaves_it_halted(machine_of):
    machine = await machine_of(HALT, irqchip=True)
    run = machine.start_run(0)
    await until(lambda: machine.vcpu(0).watched.state is VcpuState.HALTED)
    await machine.kick()
    assert (await run.result())["errno"] == "EINTR"
    assert machine.describe_vcpu(0)["mp_state"] == "HALTED"


async def test_a_fetch_from_a_hole_is_an_internal_error(machine_of):
    machine = await machine_of(FETCH_HOLE)
    answer = await machine.run(0)
    assert answer["exit_reason"] == "KVM_EXIT_INTERNAL_ERROR"
    assert answer["internal_error"]["suberror"] == 1


async def test_stores_are_logged_and_the_log_starts_anew_after_a_fetch(machine_of):
    machine = await machine_of(STORE_RAM, flags=1)
    for _ in range(2):
        run = machine.start_run(0)
        await until(lambda: machine.vm.memslots.dirty[0])
        run.signal(Cause.SIGNAL)
        await run.result()
        assert 1 in await machine.get_dirty_log(0)


async def test_a_slot_deleted_under_a_running_guest_is_a_hole_from_then_on(machine_of):
    machine = await machine_of(([["read", HOLE, 4]], "a1 00003000 ebf9"))
    arena = machine.memory.allocate(PAGE)
    await machine.set_user_memory_region(Region(1, 0, HOLE, PAGE, arena.base))
    run = machine.start_run(0)
    await in_guest(machine)
    await machine.set_user_memory_region(Region(1, 0, 0, 0, 0))
    assert (await run.result())["mmio"]["phys_addr"] == hex(HOLE)


async def test_a_slot_without_host_memory_is_efault(machine_of):
    machine = await machine_of(LOAD_HOLE)
    await machine.set_user_memory_region(Region(1, 0, HOLE, PAGE, 0x1000))
    assert (await machine.run(0))["errno"] == "EFAULT"


async def test_vcpus_share_memory(machine_of):
    machine = await machine_of(STORE_RAM, ([["read", 0x1900, 4]], "833d 00190000 07 75f7 f4"))
    await machine.start_thread(0)
    if machine.engine == "x86":  # the second guest loops until it sees the first one's store, then halts
        assert (await machine.run(1))["exit_reason"] == "KVM_EXIT_HLT"
    else:
        await until(lambda: machine.memory.read(machine.memory.arenas[0].base + 0x1900, 1) == b"\x07")


async def test_registers_are_read_under_a_running_guest(machine_of):
    machine = await machine_of(SPIN)
    run = machine.start_run(0)
    await in_guest(machine)
    reading = asyncio.create_task(machine.get_regs(0))
    await asyncio.sleep(0)
    assert reading.done() is (machine.mode != "fast")  # on a thread of its own it has to leave first
    run.signal(Cause.SIGNAL)
    assert (await reading)["rflags"] & 2


@pytest.mark.parametrize("variant", ["sticky", "accel_blocker", "signal"])
async def test_an_immediate_exit_that_the_user_wrote_stays_until_the_user_takes_it_back(machine_of, variant):
    machine = await machine_of(OUT, variant=variant)
    await machine.set_run_flag(0, "immediate_exit", True)
    for _ in range(3):
        assert (await machine.run(0))["cause"] == "immediate_exit"
    await machine.set_run_flag(0, "immediate_exit", False)
    assert (await machine.run(0))["exit_reason"] == "KVM_EXIT_IO"


async def test_cpuid_is_refused_once_the_vcpu_has_been_in_guest_mode(machine_of):
    machine = await machine_of(OUT)
    await machine.set_run_flag(0, "immediate_exit", True)
    await machine.run(0)
    await machine.set_cpuid_supported(0)
    await machine.set_run_flag(0, "immediate_exit", False)
    await machine.run(0)
    with pytest.raises(KvmError) as refused:
        await machine.set_cpuid_supported(0)
    assert refused.value.errno == errno.EINVAL


async def test_only_vcpu_0_starts_by_itself_whichever_was_made_first(machine_of):
    machine = await machine_of(irqchip=True)
    await machine.create_vcpu(1)
    await machine.create_vcpu(0)
    assert await machine.get_mp_state(1) is MpState.UNINITIALIZED
    assert await machine.get_mp_state(0) is MpState.RUNNABLE


async def test_destroying_the_vm_under_running_guests_ends_them(machine_of):
    machine = await machine_of(SPIN, LOAD_RAM, HALT)
    runs = [machine.start_run(vcpu_id) for vcpu_id in (0, 1)]
    await in_guest(machine)
    await machine.destroy()
    for run in runs:
        with pytest.raises(Exception, match="EIO"):
            await run.result()
