"""Between two ioctls of its VMM a running guest gets somewhere, as a CPU of its own would."""

import asyncio

import pytest

from kickstand.core.memslots import Region
from kickstand.core.trace import VcpuState
from kickstand.scripts.language.presets import PRESETS

PAGE, RAM, CODE, M2 = 0x1000, 0x10000, 0x1000, 0x200000
READER = b"\xa1" + M2.to_bytes(4, "little") + b"\xeb\xf9"  # again: mov eax, [M2]; jmp again
GONE = Region(1, 0, M2, 0, 0)
PHASES = 8  # turns of the loop that a change may begin after a guest's slice: more than there are between two slices


async def reading(registry, mode):
    """A VM whose guest does nothing but read a page."""
    machine = await registry.create("vm", vcpus=1, engine="x86", mode=mode)
    base = machine.memory.allocate(RAM).base
    machine.memory.write(base + CODE, READER)
    await machine.set_user_memory_region(Region(0, 0, 0, RAM - PAGE, base))
    machine.page = Region(1, 0, M2, PAGE, base + RAM - PAGE)
    await machine.set_user_memory_region(machine.page)
    await machine.set_sregs(0, PRESETS["prot32"])
    await machine.set_regs(0, {"rip": CODE, "rflags": 2})
    await machine.start_thread(0, "careless")
    return machine


async def inside(machine):
    while machine.vm.vcpus[0].watched.state is not VcpuState.GUEST:
        await asyncio.sleep(0)


def mmio(machine):
    return machine.vm.vcpus[0].watched.counters.mmio


@pytest.mark.parametrize("protect", ["none", "kick"])
@pytest.mark.parametrize("turns", range(PHASES))
async def test_a_hole_is_seen_whenever_a_change_without_protection_begins(registry, turns, protect):
    """Slices come every few turns of the loop, and a change took no more: some were never seen."""
    machine = await reading(registry, "precise")
    seen = []
    for _ in range(3):
        await inside(machine)
        for _ in range(turns):
            await asyncio.sleep(0)
        before = mmio(machine)
        await machine.memory_transaction([GONE, machine.page], protect)
        seen.append(mmio(machine) > before)
    assert seen == [protect == "none"] * 3
