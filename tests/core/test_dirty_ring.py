"""A dirty ring loses no page, whatever is written and harvested when."""

import pytest

from kickstand.core.errors import KvmError
from kickstand.core.memslots import Region
from kickstand.core.memslots.dirty_ring import DIRTY, ENTRY, RESERVED, RESET, DirtyRing
from kickstand.core.uapi import Cap
from kickstand.journal.records import Recorder
from kickstand.journal.restore import Saved, restore
from kickstand.runtime.registry import Registry
from kickstand.scripts.language.presets import PRESETS

RING, PAGES, CODE = 4096, 300, 0x1000
# mov edi, 0x2000; again: mov [edi], edi; add edi, 0x1000; jmp again
WRITES = "bf00200000" + "893f" + "81c700100000" + "ebf6"


@pytest.fixture
async def registry():
    registry = Registry()
    yield registry
    await registry.reset()


def test_what_is_harvested_is_freed_in_order_by_a_reset():
    ring = DirtyRing(256)
    view = memoryview(bytearray(256 * ENTRY.size))
    ring.map(view)
    for page in range(5):
        ring.push(3, page)
    assert ENTRY.unpack_from(view, 4 * ENTRY.size) == (DIRTY, 3, 4)
    for at in (0, 1, 3):  # the third is left: what comes after it has to wait
        ENTRY.pack_into(view, at * ENTRY.size, RESET, 3, at)
    assert ring.reset() == 2
    assert ring.unharvested() == [(3, 2), (3, 4)]
    assert ENTRY.unpack_from(view, 0)[0] == 0


def test_a_ring_that_is_full_keeps_what_comes_for_later():
    ring = DirtyRing(256)
    for page in range(300):
        ring.push(0, page)
        assert ring.soft_full is (page >= 255 - RESERVED)
    seen = ring.harvest()
    assert ring.reset() == 256
    assert seen + ring.harvest() == [(0, page) for page in range(300)]


async def made(registry, engine, mode="precise"):
    machine = await registry.create("vm", engine=engine, mode=mode)
    await machine.enable_cap(Cap.DIRTY_LOG_RING, 0, [RING, 0, 0, 0])
    await machine.create_vcpu(0)
    arena = machine.memory.allocate(PAGES << 12)
    await machine.set_user_memory_region(Region(7, 1, 0, PAGES << 12, arena.base))
    if engine == "x86":
        machine.memory.write(arena.base + CODE, bytes.fromhex(WRITES))
        await machine.set_sregs(0, PRESETS["prot32"])
        await machine.set_regs(0, {"rip": CODE, "rflags": 2})
    else:
        steps = [["write", page << 12, page, 4] for page in range(2, PAGES)]
        await machine.set_program(0, [*steps, ["hlt"]])
    return machine


@pytest.mark.parametrize(("engine", "mode"), [("x86", "precise"), ("x86", "fast"), ("script", "precise")])
async def test_a_guest_stops_at_a_full_ring_and_goes_on_after_a_reset(registry, engine, mode):
    machine = await made(registry, engine, mode)
    seen = []
    for _ in range(3):
        exit = await machine.run(0)
        if exit["exit_reason"] != "KVM_EXIT_DIRTY_RING_FULL":
            break
        assert (await machine.run(0))["exit_reason"] == "KVM_EXIT_DIRTY_RING_FULL"  # until it is reset
        seen += await machine.harvest_dirty_ring(0)
        assert await machine.reset_dirty_rings() >= RING // ENTRY.size - RESERVED
    seen += await machine.harvest_dirty_ring(0)
    assert {page for slot, page in seen if slot == 7} >= set(range(2, PAGES))
    with pytest.raises(KvmError, match="ENXIO"):
        await machine.get_dirty_log(7)


async def test_a_ring_outlives_a_restart(registry):
    machine = await made(registry, "script")
    await machine.run(0)
    before = machine.vm.vcpus[0].dirty_ring.unharvested()
    other = Registry()
    again = await restore(other, Saved(Recorder(machine).whole()), _memory)
    assert before
    assert await again.harvest_dirty_ring(0) == before
    await other.reset()


async def _memory(machine):
    machine.memory.allocate(PAGES << 12)


@pytest.mark.parametrize("size", [0, 4095, 4097, 6144, 512, 1 << 21])
async def test_a_size_that_kvm_refuses(registry, size):
    machine = await registry.create("vm")
    with pytest.raises(KvmError):
        await machine.enable_cap(Cap.DIRTY_LOG_RING_ACQ_REL, 0, [size, 0, 0, 0])


async def test_a_ring_is_enabled_once_and_before_the_first_vcpu(registry):
    machine = await registry.create("vm", vcpus=1)
    for _ in range(2):
        with pytest.raises(KvmError, match="EINVAL"):
            await machine.enable_cap(Cap.DIRTY_LOG_RING, 0, [RING, 0, 0, 0])
    with pytest.raises(KvmError, match="EINVAL"):
        await machine.reset_dirty_rings()
