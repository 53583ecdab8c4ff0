"""A machine with memory, and ways to wait for it."""

from __future__ import annotations

import asyncio

from kickstand.core.memslots import Region

PAGE = 4096


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
