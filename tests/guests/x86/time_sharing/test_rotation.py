"""Guests of mode precise on the event loop: one slice in a few turns, and a kick that need not wait for it."""

import asyncio

import pytest

from kickstand.core.memslots import Region
from kickstand.core.trace import VcpuState
from kickstand.guests.x86.guest import X86Guest
from kickstand.guests.x86.time_sharing.shares import Share
from kickstand.guests.x86.time_sharing.slices import EXITS, OTHERS, Rotation
from kickstand.runtime.registry import Registry
from kickstand.scripts.language.presets import PRESETS

VCPUS = 6
SPIN = b"\xeb\xfe"


@pytest.fixture
async def machine():
    registry = Registry()
    made = await registry.create("vm", vcpus=VCPUS, engine="x86", variant="sticky")
    arena = made.memory.allocate(0x10000)
    made.memory.write(arena.base + 0x1000, SPIN)
    await made.set_user_memory_region(Region(0, 0, 0, 0x10000, arena.base))
    for vcpu in range(VCPUS):
        await made.set_sregs(vcpu, PRESETS["prot32"])
        await made.set_regs(vcpu, {"rip": 0x1000, "rsp": 0x7000, "rflags": 2})
    yield made
    await registry.reset()


@pytest.fixture
def slices(machine, monkeypatch):
    """The vCPU of each slice, in order; the slices themselves are short."""
    monkeypatch.setattr("kickstand.guests.x86.guest.SLICE", 10)
    taken = []
    cpus = {vcpu.guest.cpu: vcpu.id for vcpu in machine.vm.vcpus.values()}
    run = type(next(iter(cpus))).run

    def noted(cpu, budget):
        taken.append(cpus[cpu])
        return run(cpu, budget)

    monkeypatch.setattr(type(next(iter(cpus))), "run", noted)
    return taken


async def all_inside(machine):
    for vcpu in range(VCPUS):
        await machine.start_thread(vcpu)
    while any(vcpu.watched.state is not VcpuState.GUEST for vcpu in machine.vm.vcpus.values()):
        await asyncio.sleep(0)


async def test_between_two_slices_come_turns_of_the_loop_without_one(machine, slices, monkeypatch):
    monkeypatch.setattr("kickstand.guests.x86.time_sharing.slices.IDLE_S", 0)
    await all_inside(machine)
    before = len(slices)
    for _ in range(10 * (OTHERS + 1)):
        await asyncio.sleep(0)
    assert 9 <= len(slices) - before <= 11


async def test_turns_in_which_nobody_does_anything_are_not_waited_for(machine, slices, monkeypatch):
    monkeypatch.setattr("kickstand.guests.x86.time_sharing.slices.IDLE_S", 10)
    await all_inside(machine)
    before = len(slices)
    for _ in range(20):
        await asyncio.sleep(0)
    assert 19 <= len(slices) - before <= 20


async def test_a_turn_of_the_loop_waits_for_one_slice_however_many_guests_compute(machine, slices):
    await all_inside(machine)
    for _ in range(3 * VCPUS):
        before = len(slices)
        await asyncio.sleep(0)
        assert len(slices) - before <= 1


async def test_guests_take_their_slices_in_turn(machine, slices):
    await all_inside(machine)
    await asyncio.sleep(0)
    slices.clear()
    while len(slices) < 3 * VCPUS:
        await asyncio.sleep(0)
    assert slices[:VCPUS] == slices[VCPUS : 2 * VCPUS] == slices[2 * VCPUS : 3 * VCPUS]
    assert sorted(slices[:VCPUS]) == list(range(VCPUS))


async def test_a_kick_does_not_wait_for_the_turn_of_each_guest(machine, slices):
    await all_inside(machine)
    slices.clear()
    await machine.kick()
    assert len(slices) <= 2


async def test_a_guest_that_is_alone_needs_no_turn(machine, slices):
    await machine.start_thread(0)
    while len(slices) < 5:
        await asyncio.sleep(0)
    guest = machine.vm.vcpus[0].guest
    assert isinstance(guest, X86Guest)
    assert (await machine.kick())["vcpus_stopped"] == 1


async def test_a_guest_that_leaves_often_does_not_wait_for_a_whole_slice_of_another_each_time():
    rotation, leaving, computing, order = Rotation(asyncio.get_running_loop()), Share(), Share(), []

    async def run(share, use, name):
        while len(order) < 2 * (EXITS + 1):
            await rotation.turn(share)
            order.append(name)
            share.used += use

    await asyncio.gather(run(leaving, 1, "leaving"), run(computing, EXITS, "computing"))
    assert order.count("computing") <= 3
