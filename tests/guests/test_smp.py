"""Guests of many CPUs start, sleep, wake and interrupt each other, and lose nothing when they are kicked."""

import asyncio
import random

import pytest

from kickstand.core.uapi import MpState
from kickstand.runtime.registry import Registry
from tests.guests import smp_guest


@pytest.fixture
async def registry():
    registry = Registry()
    yield registry
    await registry.reset()


async def finished(machine, arena, cpus, rounds):
    """The ring has gone round so often, and every CPU has had its part in it."""
    async with asyncio.timeout(60):
        while smp_guest.counted(machine, arena, cpus)[1] < rounds:
            await asyncio.sleep(0.002)
    received, _, ticks = smp_guest.counted(machine, arena, cpus)
    assert received == [rounds] * cpus
    return ticks


@pytest.mark.parametrize("cpus", [2, pytest.param(16, marks=pytest.mark.slow)])
async def test_the_boot_cpu_starts_the_others_and_an_ipi_goes_round(registry, cpus):
    machine = await registry.create("vm", vcpus=cpus, engine="x86", irqchip=True, clock="virtual")
    arena = await smp_guest.load(machine, cpus, 3)
    states = [await machine.get_mp_state(vcpu) for vcpu in range(cpus)]
    assert states == [MpState.RUNNABLE] + [MpState.UNINITIALIZED] * (cpus - 1)
    for vcpu in range(cpus):
        await machine.start_thread(vcpu)
    await finished(machine, arena, cpus, 3)
    states = [machine.vcpu(vcpu).arch.mp_state for vcpu in range(1, cpus)]
    assert set(states) <= {MpState.HALTED, MpState.RUNNABLE}


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["sticky", "holds"])
async def test_kicked_a_thousand_times_it_loses_no_ipi(registry, variant):
    machine = await registry.create("vm", vcpus=4, engine="x86", irqchip=True, variant=variant, clock="virtual")
    rounds = 40
    arena = await smp_guest.load(machine, 4, rounds)
    for vcpu in range(4):
        await machine.start_thread(vcpu)
    draw = random.Random(1)
    for _ in range(1_000):
        for _ in range(draw.randrange(4)):
            await asyncio.sleep(0)
        await machine.kick(timeout_ms=5_000)
        await machine.resume()
    await finished(machine, arena, 4, rounds)
