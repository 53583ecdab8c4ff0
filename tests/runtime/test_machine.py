"""A machine on the event loop: parked runs, signals, timeouts, transactions, and what cancellation leaves."""

from __future__ import annotations

import asyncio
import errno
import random
import re
from pathlib import Path

import pytest

from kickstand.core.atomics import outside
from kickstand.core.errors import KvmError
from kickstand.core.memslots import Region
from kickstand.core.run.exits import IoExit
from kickstand.core.run.run_page import Cause
from kickstand.core.trace import VcpuState
from kickstand.core.variants import variants
from kickstand.runtime.calls.history import History
from kickstand.runtime.registry import Limits, Registry
from kickstand.runtime.vmm.memory import RecordedMemory
from tests.long import either

PAGE = 4096
APP = Path(__file__).resolve().parents[2] / "kickstand"


@pytest.fixture
async def registry():
    registry = Registry(Limits())
    yield registry
    await registry.reset()
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []


async def machine_with_ram(registry, programs=None, pages=16, **options):
    machine = await registry.create("vm", vcpus=len(programs or [1]), programs=programs, **options)
    arena = machine.memory.allocate(pages * PAGE, "ram")
    await machine.set_user_memory_region(Region(0, 0, 0, pages * PAGE, arena.base))
    return machine


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


async def turns(count=20):
    for _ in range(count):
        await asyncio.sleep(0)


def state_of(machine, vcpu_id=0):
    return machine.vcpu(vcpu_id).watched.state


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


async def test_a_kick_that_times_out_names_the_vcpus_inside_and_is_taken_back(registry):
    machine = await machine_with_ram(registry)
    variant = machine.vm.variant
    await variant.memory_transaction.read_or_queue("stuck")  # a reader that never leaves
    with pytest.raises(KvmError) as caught:
        await machine.kick(timeout_ms=5)
    assert caught.value.errno == errno.ETIMEDOUT
    assert caught.value.extra == {"vcpus": []}
    assert machine.describe()["kicked"] is False
    run = machine.start_run(0)
    await until(lambda: state_of(machine) is VcpuState.GUEST)
    await variant.memory_transaction.up_read()
    run.signal(Cause.SIGNAL)
    await run.result()


async def test_a_transaction_is_all_or_nothing(registry):
    machine = await machine_with_ram(registry, [[["write", 0, 1]]])
    base = machine.memory.arenas[0].base
    await machine.set_user_memory_region(Region(0, 1, 0, 16 * PAGE, base))
    await machine.start_thread(0)
    await until(lambda: machine.vm.memslots.dirty[0])
    before = machine.regions()
    for protect in ("kick", "none", "list"):
        with pytest.raises(KvmError) as caught:
            await machine.memory_transaction([Region(0, 0, 0, 0, 0), Region(1, 0, 1, PAGE, base)], protect)
        assert caught.value.errno == errno.EINVAL
        assert machine.regions() == before
        assert machine.describe()["kicked"] is False
    assert await machine.get_dirty_log(0) == [0]


async def test_careless_userspace_spins_while_kicked_and_well_behaved_does_not(registry):
    machine = await machine_with_ram(registry, [[["read", 0]], [["read", 0]]])
    await machine.start_thread(0, "careless")
    await machine.start_thread(1, "well")
    await until(lambda: state_of(machine, 0) is VcpuState.GUEST and state_of(machine, 1) is VcpuState.GUEST)
    await machine.kick()
    await until(lambda: machine.threads[0].spins > 10)
    assert machine.threads[1].spins <= 1
    await machine.resume()
    await until(lambda: state_of(machine, 1) is VcpuState.GUEST)


@pytest.mark.parametrize("variant", ["holds", "accel_blocker"])
def test_careless_userspace_sleeps_under(variant):
    asyncio.run(_careless_sleeps(variant))


async def _careless_sleeps(variant):
    registry = Registry()
    machine = await machine_with_ram(registry, [[["read", 0]]], variant=variant)
    await machine.start_thread(0, "careless")
    await until(lambda: state_of(machine) is VcpuState.GUEST)
    await machine.kick()
    for _ in range(50):
        await asyncio.sleep(0)
    assert machine.threads[0].spins <= 1
    await machine.resume()
    await until(lambda: state_of(machine) is VcpuState.GUEST)
    await registry.reset()


async def test_stop_ends_a_thread_wherever_it_is(registry):
    machine = await machine_with_ram(registry, [[["spin"]], [["hlt"]], [["read", 0]]])
    for vcpu_id, behaviour in ((0, "well"), (1, "careless"), (2, "well")):
        await machine.start_thread(vcpu_id, behaviour)
    with pytest.raises(KvmError, match="EBUSY"):
        await machine.start_thread(0)
    await until(lambda: state_of(machine, 0) is VcpuState.GUEST)
    await machine.kick()  # vcpu 2 now waits for the resume flag
    await until(lambda: state_of(machine, 2) is VcpuState.USER)
    for vcpu_id in (0, 1, 2):
        await machine.stop_thread(vcpu_id)
    assert machine.threads == {}
    await machine.resume()


async def test_a_guest_that_fetches_from_a_hole_ends_its_thread_and_says_why(registry):
    machine = await machine_with_ram(registry, [[["fetch", 0x100000]]])
    await machine.start_thread(0)
    await until(lambda: not machine.threads[0].running)
    assert machine.describe_vcpu(0)["thread"]["ended"] == "KVM_EXIT_INTERNAL_ERROR"


async def test_destroy_ends_parked_runs_with_eio_and_later_calls_too(registry):
    machine = await machine_with_ram(registry, [[["spin"]], [["hlt"]]], irqchip=True)
    runs = [machine.start_run(0), machine.start_run(0), machine.start_run(1)]
    await until(lambda: state_of(machine) is VcpuState.GUEST)
    await registry.destroy("vm")
    for run in runs:
        with pytest.raises(KvmError) as caught:
            await run.result()
        assert caught.value.errno == errno.EIO
    with pytest.raises(KvmError, match="EIO"):
        await machine.kick()


async def test_destroy_works_while_kicked_and_while_a_kick_hangs(registry):
    machine = await machine_with_ram(registry)
    await machine.kick()
    await registry.destroy("vm")
    machine = await machine_with_ram(registry)
    await machine.vm.variant.memory_transaction.read_or_queue("stuck")
    hanging = asyncio.create_task(machine.kick())
    await until(lambda: machine.vm.variant.memory_transaction.queue)
    await registry.destroy("vm")
    with pytest.raises(KvmError, match="EIO"):
        await hanging


async def test_create_is_all_or_nothing(registry):
    with pytest.raises(KvmError, match=r"\[1\]"):
        await registry.create("bad", vcpus=2, programs=[[["spin"]], [["spin"], ["jump"]]])
    with pytest.raises(KvmError, match="no vcpu 3"):
        await registry.create("bad", vcpus=2, programs={"3": [["spin"]]})
    assert registry.machines == {}


async def test_locks_name_readers_and_the_queue_in_order_with_ages(registry):
    machine = await machine_with_ram(registry, [[["spin"]], [["spin"]]])
    machine.start_run(0)
    await until(lambda: state_of(machine) is VcpuState.GUEST)
    await machine.vm.variant.memory_transaction.read_or_queue("stuck")
    kick = asyncio.create_task(machine.kick())
    await until(lambda: machine.vm.variant.memory_transaction.queue)
    machine.start_run(1)
    await until(lambda: len(machine.locks()["queue"]) == 2 and machine.locks()["queue"][1]["age_ns"])
    locks = machine.locks()
    assert [(entry["who"], entry["side"]) for entry in locks["queue"]][1:] == [(1, "read")]
    assert locks["queue"][0]["age_ns"] >= locks["queue"][1]["age_ns"] > 0
    await machine.vm.variant.memory_transaction.up_read()
    await kick


@pytest.mark.parametrize("variant", variants())
async def test_whoever_a_variant_keeps_waiting_is_in_the_queue_of_its_locks(registry, variant):
    """A vCPU that is stuck in a completion lets a kick wait; another one waits for the kick, or not."""
    machine = await machine_with_ram(registry, [[["in", 1, 1], ["spin"]], [["spin"]]], variant=variant)
    await machine.run(0)
    stuck = asyncio.get_running_loop().create_future()
    machine.vcpu(0).guest.complete = lambda *_: outside(stuck)
    first = machine.start_run(0, reply=b"1")
    kick = asyncio.create_task(machine.kick())
    await turns()
    second = machine.start_run(1)
    await turns()
    queue = {(entry["who"], entry["side"]) for entry in machine.locks()["queue"] if entry["age_ns"] > 0}
    kicks = {side for who, side in queue if "kicker" in str(who)}
    at_door = state_of(machine, 1) in (VcpuState.USER, VcpuState.WAITING, VcpuState.BLOCKED)
    answered, second_answered = kick.done(), second.task.done()
    kick.cancel()
    await asyncio.wait({kick})
    left = [entry for entry in machine.locks()["queue"] if "kicker" in str(entry["who"])]
    del machine.vcpu(0).guest.complete
    stuck.set_result(IoExit("in", 1, 1, 1, b"0"))
    for run in (first, second):
        run.signal(Cause.SIGNAL)
        await run.result()
    assert (kicks, left) == (set() if answered else {"write"}, [])
    assert ((1, "read") in queue) is (at_door and not second_answered)


async def test_a_waiter_grows_old_although_it_is_woken_in_vain(registry):
    machine = await machine_with_ram(registry, variant="holds")
    await machine.kick()
    run = machine.start_run(0)
    await turns()
    (before,) = machine.locks()["queue"]
    machine.vm.variant.window.changed()
    await turns()
    (after,) = machine.locks()["queue"]
    assert after["age_ns"] > before["age_ns"]
    await machine.resume()
    await until(lambda: state_of(machine) is VcpuState.GUEST)
    run.signal(Cause.SIGNAL)
    await run.result()


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["sticky", "holds", "accel_blocker", "srcu"])
async def test_runs_cancelled_at_random_points_leave_nothing(registry, variant):
    """Under each of four variants: client gone, timeout, signal, kick, and a VM destroyed; 10,000 in the long form."""
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
        ending = rng.randrange(4)
        if ending == 0:
            clients[-1].cancel()
        elif ending == 1:
            run.signal(Cause.CLIENT_DISCONNECT)
        elif ending == 2 and turn % 50 == 0:
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
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == tasks_before


async def test_two_changes_of_one_segment_that_wait_for_a_run_are_both_there_when_it_has_left(registry):
    machine = await machine_with_ram(registry)
    run = machine.start_run(0)
    await until(lambda: state_of(machine) is VcpuState.GUEST)
    changes = [machine.set_sregs(0, {"cs": {"base": 0x1000}}), machine.set_sregs(0, {"cs": {"limit": 0xFFFF}})]
    waiting = [asyncio.create_task(change) for change in changes]
    await until(lambda: len(machine.vcpu(0).mutex.queue) == 2)
    run.signal(Cause.SIGNAL)
    await asyncio.gather(run.result(), *waiting)
    segment = (await machine.get_sregs(0))["cs"]
    assert (segment["base"], segment["limit"]) == (0x1000, 0xFFFF)


def test_a_history_that_had_to_forget_keeps_as_much_as_before():
    memory = RecordedMemory(None, history := History(payload=3 * PAGE))
    arena = memory.allocate(16 * PAGE)
    dropped = []
    for _ in range(8):
        memory.write(arena.base, bytes(PAGE - 1) + b"\1")
        dropped.append(history.dropped)
    assert dropped == [0, 0, 0, 5, 5, 5, 5, 9]


def test_nobody_asks_for_an_engine_or_a_mode_by_its_name():
    """``EngineFactory`` says what there is to know of an engine; another one is added in ``guests`` alone."""
    asked = re.compile(r"""(\bengine|\.mode)\s*(==|!=|in)\s*[("']""")
    above = [path for floor in ("runtime", "journal", "api", "traces") for path in (APP / floor).rglob("*.py")]
    assert above
    assert [path for path in (*above, APP / "scripts" / "play" / "player.py") if asked.search(path.read_text())] == []
