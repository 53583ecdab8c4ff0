"""KVM_RUN on the event loop: parked runs, signals, timeouts, replies, and what cancellation leaves."""

from __future__ import annotations

import asyncio
import errno
import random

import pytest

from kickstand.core.errors import KvmError
from kickstand.core.memslots import Region
from kickstand.core.run.run_page import Cause
from kickstand.core.trace import VcpuState
from tests.long import either
from tests.runtime.machines import PAGE, machine_with_ram, state_of, until


async def test_a_parked_run_answers_a_kick_with_its_cause_and_the_kick_id(registry):
    machine = await machine_with_ram(registry)
    run = machine.start_run(0)
    await until(lambda: state_of(machine) is VcpuState.GUEST)
    kick = await machine.kick()
    answer = await run.result()
    assert (answer["ret"], answer["errno"], answer["cause"]) == (-1, "EINTR", "userspace_kick")
    assert answer["kick_id"] == kick["kick_id"] == 1
    assert (kick["changed"], kick["holds"], kick["vcpus_stopped"]) == (True, 1, 1)
    assert (await machine.run(0))["cause"] == "userspace_kick"
    assert (await machine.kick())["changed"] is False
    assert (await machine.resume())["changed"] is True
    assert (await machine.resume())["changed"] is False


async def test_vcpus_in_kvm_run_are_tasks_with_their_names(registry):
    machine = await machine_with_ram(registry, [[["spin"]], [["spin"]], [["out", 1, 1]]])
    before = asyncio.all_tasks()
    run = machine.start_run(0)
    await machine.start_thread(1)
    assert (await machine.run(2))["exit_reason"] == "KVM_EXIT_IO"  # it never waited
    await until(lambda: state_of(machine, 1) is VcpuState.GUEST)
    assert {task.get_name() for task in asyncio.all_tasks() - before} == {"vm/cpu0", "vm/cpu1"}
    run.signal(Cause.SIGNAL)
    await run.result()
    await machine.stop_thread(1)
    assert asyncio.all_tasks() == before


async def test_cancelling_a_vcpus_task_kills_its_thread_and_gives_everything_back(registry):
    machine = await machine_with_ram(registry, [[["spin"]], [["spin"]]])
    run = machine.start_run(0)
    await machine.start_thread(1)
    await until(lambda: state_of(machine, 0) is VcpuState.GUEST and state_of(machine, 1) is VcpuState.GUEST)
    for task in asyncio.all_tasks():
        if task.get_name() in ("vm/cpu0", "vm/cpu1"):
            task.cancel()
    assert (await run.result())["errno"] == "EINTR"
    await until(lambda: not machine.threads[1].running)
    assert machine.describe_vcpu(1)["thread"]["ended"] == "killed"
    assert machine.locks()["readers"] == []
    assert (await machine.kick())["vcpus_stopped"] == 0


async def test_runs_in_a_task_group_that_fails_leave_as_departed_clients_do(registry):
    machine = await machine_with_ram(registry, [[["spin"]], [["spin"]]])

    async def fails():
        await until(lambda: state_of(machine, 1) is VcpuState.GUEST)
        raise ValueError

    async def together():
        async with asyncio.TaskGroup() as group:
            for vcpu_id in (0, 1, 1):
                group.create_task(machine.run(vcpu_id))
            group.create_task(fails())

    with pytest.raises(ExceptionGroup):
        await together()
    await until(lambda: not machine.runs)
    assert machine.locks() == {"readers": [], "writer": None, "queue": []}
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(machine.run(0), 0.001)
    await until(lambda: not machine.runs)


async def test_a_run_that_times_out_leaves_by_a_signal(registry):
    machine = await machine_with_ram(registry)
    answer = await machine.run(0, timeout_ms=5)
    assert (answer["errno"], answer["cause"], answer["exit_reason"]) == ("EINTR", "poll_timeout", "KVM_EXIT_INTR")
    assert not machine.vcpu(0).task.signal


async def test_a_departed_client_is_a_signal_and_the_next_run_is_not_disturbed(registry):
    machine = await machine_with_ram(registry)
    client = asyncio.create_task(machine.run(0))
    await until(lambda: state_of(machine) is VcpuState.GUEST)
    client.cancel()
    await until(lambda: not machine.runs)
    assert state_of(machine) is VcpuState.USER
    run = machine.start_run(0)
    await until(lambda: state_of(machine) is VcpuState.GUEST)
    run.signal(Cause.SIGNAL)
    assert (await run.result())["cause"] == "signal"


async def test_a_second_run_waits_on_the_vcpu_mutex_or_is_ebusy_with_nowait(registry):
    machine = await machine_with_ram(registry, [[["out", 1, 1], ["spin"]]])
    first, second = machine.start_run(0), machine.start_run(0)
    assert (await first.result())["exit_reason"] == "KVM_EXIT_IO"
    await until(lambda: state_of(machine) is VcpuState.GUEST)
    with pytest.raises(KvmError) as caught:
        machine.start_run(0, nowait=True)
    assert caught.value.errno == errno.EBUSY
    third = machine.start_run(0)
    third.signal(Cause.CLIENT_DISCONNECT)  # waits for the mutex: gives up without disturbing the one inside
    assert (await third.result())["errno"] == "EINTR"
    assert not second.task.done()


async def test_io_is_completed_with_the_reply_of_the_next_run(registry):
    machine = await machine_with_ram(registry, [[["in", 0x60, 2], ["read", 0x100000, 4], ["hlt"]]])
    first = await machine.run(0)
    assert first["io"] == {"direction": "in", "size": 2, "port": 0x60, "count": 1, "data": None}
    with pytest.raises(KvmError, match="takes 2 bytes"):
        await machine.run(0, reply=b"\x01")
    second = await machine.run(0, reply=b"\x01\x02")
    assert second["mmio"] == {"phys_addr": "0x100000", "len": 4, "is_write": False, "data": None}
    assert (await machine.run(0, reply=bytes(4)))["exit_reason"] == "KVM_EXIT_HLT"


async def test_immediate_exit_of_one_run_does_not_stay(registry):
    machine = await machine_with_ram(registry, [[["out", 1, 1]]])
    assert (await machine.run(0, immediate_exit=True))["cause"] == "immediate_exit"
    assert (await machine.run(0))["exit_reason"] == "KVM_EXIT_IO"


async def test_memory_writes_of_a_guest_reach_host_memory(registry):
    machine = await machine_with_ram(registry, [[["write", 0x10, 0x1122334455667788], ["hlt"]]])
    await machine.run(0)
    assert machine.memory.read(machine.memory.arenas[0].base + 0x10, 8) == bytes.fromhex("8877665544332211")


async def test_a_slot_without_host_memory_is_efault(registry):
    machine = await machine_with_ram(registry, [[["read", 0x100000]]])
    await machine.set_user_memory_region(Region(1, 0, 0x100000, PAGE, 0x1000))
    answer = await machine.run(0)
    assert (answer["ret"], answer["errno"]) == (-1, "EFAULT")


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["sticky", "holds", "accel_blocker", "srcu"])
async def test_runs_cancelled_at_random_points_leave_nothing(registry, variant):
    """Under four variants: client gone, timeout, signal, cancelled task, kick, end of the VM; 10,000: the long form."""
    rng = random.Random(variant)
    programs = [rng.choice([[["spin"]], [["read", 0]], [["hlt"]], [["out", 1, 1], ["write", 8, 1]]]) for _ in range(64)]
    machine = await machine_with_ram(registry, programs, variant=variant, irqchip=False)
    tasks_before = len(asyncio.all_tasks())
    clients = []
    for turn in range(either(600, 2_500)):
        run = machine.start_run(rng.randrange(64), timeout_ms=rng.choice([0, 1, 1_000]))
        clients.append(asyncio.create_task(run.result()))
        for _ in range(rng.randrange(3)):
            await asyncio.sleep(0)
        ending = rng.randrange(5)
        if ending == 0:
            clients[-1].cancel()
        elif ending == 1:
            run.signal(Cause.CLIENT_DISCONNECT)
        elif ending == 2:
            run.task.cancel()
        elif ending == 3 and turn % 10 == 0:
            await machine.kick()
            await machine.resume()
    for client in clients:
        client.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    for run in tuple(machine.runs):
        run.signal(Cause.SIGNAL)
    await until(lambda: not machine.runs)
    assert all(vcpu.mutex.owner is None and not vcpu.mutex.queue for vcpu in machine.vm.vcpus.values())
    assert machine.vm.srcu.counts == [0, 0]
    assert machine.locks() == {"readers": [], "writer": None, "queue": []}
    assert (await machine.kick())["vcpus_stopped"] == 0
    left = [machine.start_run(vcpu).task for vcpu in machine.vm.vcpus]
    await registry.destroy("vm")
    assert all(task.done() for task in left)
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == tasks_before
