"""A machine on the event loop: kicks, transactions, its threads, its end."""

from __future__ import annotations

import asyncio
import errno
import re
from pathlib import Path

import pytest

from kickstand.core.errors import KvmError
from kickstand.core.memslots import Region
from kickstand.core.run.run_page import Cause
from kickstand.core.trace import VcpuState
from kickstand.runtime.calls.history import History
from kickstand.runtime.registry import Registry
from kickstand.runtime.vmm.memory import RecordedMemory
from tests.runtime.machines import PAGE, machine_with_ram, state_of, until

APP = Path(__file__).resolve().parents[2] / "kickstand"


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
