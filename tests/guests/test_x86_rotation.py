"""Guests that compute share the event loop with everybody else: one slice for each turn of it."""

import asyncio

from app.core.memslots import Region
from app.guests.x86.cpu import X86Cpu
from app.guests.x86.rotation import Rotation, rotation
from app.runtime.registry import Registry
from app.scripts.presets import PRESETS

SPIN = b"\xeb\xfe"
VCPUS = 12


async def test_turns_are_given_one_by_one_in_order():
    shared = Rotation()
    turns = [shared.turn() for _ in range(3)]
    for given in range(1, 4):
        await asyncio.sleep(0)
        assert [turn.done() for turn in turns] == [True] * given + [False] * (3 - given)


async def test_who_was_woken_early_or_has_left_costs_no_turn():
    shared = Rotation()
    woken, cancelled, waiting = (shared.turn() for _ in range(3))
    woken.set_result(None)
    cancelled.cancel()
    await asyncio.sleep(0)
    assert waiting.done()


async def test_an_empty_rotation_starts_again():
    shared = Rotation()
    first = shared.turn()
    await asyncio.sleep(0)
    second = shared.turn()
    await asyncio.sleep(0)
    assert first.done()
    assert second.done()


async def spinning(vcpus):
    machine = await Registry().create("vm", vcpus=vcpus, engine="x86", variant="sticky")
    arena = machine.memory.allocate(0x10000)
    machine.memory.write(arena.base + 0x1000, SPIN)
    await machine.set_user_memory_region(Region(0, 0, 0, 0x10000, arena.base))
    for vcpu in range(vcpus):
        await machine.set_sregs(vcpu, PRESETS["prot32"])
        await machine.set_regs(vcpu, {"rip": 0x1000, "rflags": 2})
    return machine, [machine.start_run(vcpu) for vcpu in range(vcpus)]


async def test_between_two_slices_the_loop_makes_a_turn(monkeypatch):
    slices, turns = [], []
    run = X86Cpu.run
    monkeypatch.setattr(X86Cpu, "run", lambda cpu, budget: (slices.append(len(turns)), run(cpu, budget))[1])
    machine, runs = await spinning(VCPUS)
    while len(slices) < 3 * VCPUS:
        turns.append(None)
        await asyncio.sleep(0)
    assert len(set(slices[1:])) == len(slices) - 1  # the first guest does not know of the others
    await machine.destroy()
    await asyncio.gather(*(run.result() for run in runs), return_exceptions=True)
    assert rotation().guests == 0


async def test_a_kick_waits_for_no_slices_of_guests_that_wait_for_their_turn(monkeypatch):
    machine, runs = await spinning(VCPUS)
    for _ in range(4 * VCPUS):
        await asyncio.sleep(0)
    slices = []
    run = X86Cpu.run
    monkeypatch.setattr(X86Cpu, "run", lambda cpu, budget: (slices.append(cpu), run(cpu, budget))[1])
    await machine.kick()
    answers = await asyncio.gather(*(run.result() for run in runs))
    assert {answer["errno"] for answer in answers} == {"EINTR"}
    assert len(slices) <= 1
    assert rotation().guests == 0
    await machine.destroy()
