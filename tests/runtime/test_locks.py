"""Who waits, for what and for how long, as ``GET /vm/locks`` tells it."""

from __future__ import annotations

import asyncio

import pytest

from kickstand.core.atomics import outside
from kickstand.core.run.exits import IoExit
from kickstand.core.run.run_page import Cause
from kickstand.core.trace import VcpuState
from kickstand.core.variants import variants
from tests.runtime.machines import machine_with_ram, state_of, turns, until


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
    assert state_of(machine, 1) is VcpuState.WAITING
    assert locks["readers"] == []  # whoever waits at the gate holds nothing
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
