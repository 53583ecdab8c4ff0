"""Mode fast: an exit that is near is met on the event loop's own thread; a guest that computes goes to another."""

import asyncio
import threading

import pytest

from kickstand.core.memslots import Region
from kickstand.core.run.exits import IoExit
from kickstand.runtime.registry import Registry
from kickstand.scripts.language.presets import PRESETS

OUT_LOOP = b"\xe6\x10\xeb\xfc"
SPIN = b"\xeb\xfe"


@pytest.fixture
async def machine():
    registry = Registry()
    made = await registry.create("vm", vcpus=2, engine="x86", variant="sticky", mode="fast")
    arena = made.memory.allocate(0x10000)
    made.memory.write(arena.base + 0x1000, OUT_LOOP)
    made.memory.write(arena.base + 0x2000, SPIN)
    await made.set_user_memory_region(Region(0, 0, 0, 0x10000, arena.base))
    for vcpu in range(2):
        await made.set_sregs(vcpu, PRESETS["prot32"])
    yield made
    await registry.reset()


@pytest.fixture
def ran_by(monkeypatch):
    """The threads that ran a guest, in order."""
    from kickstand.guests.x86.cpu import X86Cpu

    threads, run = [], X86Cpu.run

    def noted(cpu, budget):
        threads.append(threading.current_thread())
        return run(cpu, budget)

    monkeypatch.setattr(X86Cpu, "run", noted)
    return threads


async def at(machine, vcpu, rip):
    await machine.set_regs(vcpu, {"rip": rip, "rsp": 0x7000, "rflags": 2})


class Patient:
    """A watch on a machine that may be busy with something else: it stops nobody."""

    def run(self, cpu):
        cpu.clear_stop()
        return cpu.run(0)


async def test_an_exit_that_is_near_needs_no_other_thread(machine, ran_by, monkeypatch):
    monkeypatch.setattr("kickstand.guests.x86.guest.WATCH", Patient())
    await at(machine, 0, 0x1000)
    for _ in range(5):
        run = machine.start_run(0)
        assert run.task.done()
        assert isinstance(run.task.result().exit, IoExit)
    assert set(ran_by) == {threading.current_thread()}


class Hasty(Patient):
    """One that takes it that the host's time was the guest's, once."""

    def __init__(self):
        self.stops = 1

    def run(self, cpu):
        cpu.clear_stop()
        if self.stops:
            self.stops -= 1
            cpu.stop()
        return cpu.run(0)


async def test_a_guest_that_was_stopped_before_it_had_its_time_is_looked_at_again(machine, ran_by, monkeypatch):
    monkeypatch.setattr("kickstand.guests.x86.guest.WATCH", Hasty())
    monkeypatch.setattr("kickstand.guests.x86.guest.LIMIT_S", 1)
    await at(machine, 0, 0x1000)
    run = machine.start_run(0)
    assert run.task.done()
    assert isinstance(run.task.result().exit, IoExit)
    assert ran_by == [threading.current_thread()] * 2


async def test_a_guest_that_computes_leaves_the_loop(machine, ran_by):
    await at(machine, 0, 0x2000)
    run = machine.start_run(0)
    while not ran_by or ran_by[-1] is threading.current_thread():  # again, if the host had something else to do
        await asyncio.sleep(0.001)
    assert ran_by[0] is threading.current_thread()
    assert (await machine.kick())["vcpus_stopped"] == 1
    await run.result()


async def test_guests_of_one_vm_never_run_at_once(machine, ran_by):
    await at(machine, 0, 0x2000)
    await at(machine, 1, 0x1000)
    computing = machine.start_run(0)
    while not ran_by or ran_by[-1] is threading.current_thread():
        await asyncio.sleep(0.001)
    before = len(ran_by)
    await machine.start_run(1).result()
    assert threading.current_thread() not in ran_by[before:]
    await machine.kick()
    await computing.result()
