"""What userspace sees and sets of a guest's APIC: ends of interrupts, accesses of the task priority, the VAPIC word."""

import asyncio
import errno
import struct

import pytest

from kickstand.core.arch.irq.routing import MsiRoute
from kickstand.core.errors import KvmError
from kickstand.core.uapi import Cap
from kickstand.runtime.registry import Registry
from tests.guests import apic_guest
from tests.guests.apic_guest import APIC

ENABLE = ("write", APIC + 0xF0, 0x1FF)
TASK_PRIORITY = APIC + 0x80
WORD = 0x600  # of guest memory


@pytest.fixture
async def registry():
    registry = Registry()
    yield registry
    await registry.reset()


async def made(registry, *accesses, split=False):
    machine = await registry.create("vm", engine="x86", irqchip=not split, vcpus=0, clock="virtual")
    if split:
        await machine.enable_cap(Cap.SPLIT_IRQCHIP, 0, [24, 0, 0, 0])
    await machine.create_vcpu(0)
    return machine, await apic_guest.load(machine, accesses)


async def done(machine):
    answer = await machine.run(0, timeout_ms=5_000)
    assert answer.get("io", {}).get("port") == apic_guest.DONE_PORT, answer


# -- split irqchip -------------------------------------------------------------------------------------------


async def test_userspaces_ioapic_is_told_the_end_of_its_level_triggered_interrupts_only(registry):
    machine, arena = await made(registry, ENABLE, ("halt",), ("halt",), split=True)
    routes = [(3, MsiRoute(0xFEE00000, 0x8041), 0), (4, MsiRoute(0xFEE00000, 0x0042), 0)]
    await machine.set_gsi_routing(routes)
    assert await machine.signal_msi(0xFEE00000, 0x0042) == 0  # not enabled by software yet
    run = machine.start_run(0, timeout_ms=5_000)
    while machine.vcpu(0).watched.counters.halts == 0:
        await asyncio.sleep(0)
    await machine.irq_line(4, 1)
    while machine.vcpu(0).watched.counters.halts == 1:
        await asyncio.sleep(0)
    await machine.irq_line(3, 1)
    answer = await run.result()
    assert (answer["exit_reason"], answer["eoi"]) == ("KVM_EXIT_IOAPIC_EOI", {"vector": 0x41})
    await done(machine)
    assert apic_guest.results(machine, arena)[1] == [0x42, 0x41]


async def test_lines_behind_the_reserved_ones_are_no_pins(registry):
    machine, _ = await made(registry, ENABLE, ("halt",), split=True)
    await machine.set_gsi_routing([(24, MsiRoute(0xFEE00000, 0x8041), 0)])
    run = machine.start_run(0, timeout_ms=5_000)
    while machine.vcpu(0).watched.counters.halts == 0:
        await asyncio.sleep(0)
    await machine.irq_line(24, 1)
    assert (await run.result()).get("io", {}).get("port") == apic_guest.DONE_PORT


# -- reports -------------------------------------------------------------------------------------------------


async def test_an_access_of_the_task_priority_is_reported_after_it_was_done(registry):
    machine, arena = await made(registry, ENABLE, ("write", TASK_PRIORITY, 0x20), ("read", TASK_PRIORITY))
    await machine.report_tpr_access(0, 1)
    exits = [await machine.run(0, timeout_ms=5_000) for _ in range(2)]
    assert [exit["exit_reason"] for exit in exits] == ["KVM_EXIT_TPR_ACCESS"] * 2
    assert [exit["tpr_access"]["is_write"] for exit in exits] == [True, False]
    image = apic_guest.image((ENABLE, ("write", TASK_PRIORITY, 0x20), ("read", TASK_PRIORITY)))
    for exit, code in zip(exits, (apic_guest.code(("write", TASK_PRIORITY, 0x20)), b"\x66\x67\xa1"), strict=True):
        rip = int(exit["tpr_access"]["rip"], 16)
        assert image[rip : rip + len(code)] == code
    await done(machine)
    assert apic_guest.results(machine, arena)[0] == (0x20,)


async def test_reports_can_be_turned_off_and_other_registers_are_none_of_them(registry):
    machine, _ = await made(registry, ENABLE, ("write", TASK_PRIORITY, 0x20), ("read", APIC + 0xA0))
    await machine.report_tpr_access(0, 1)
    await machine.report_tpr_access(0, 0)
    await done(machine)
    with pytest.raises(KvmError) as refused:
        await machine.report_tpr_access(0, 1, flags=1)
    assert refused.value.errno == errno.EINVAL


# -- the VAPIC word ------------------------------------------------------------------------------------------


def word(machine, arena):
    return struct.unpack("<I", machine.memory.read(arena.base + WORD, 4))[0]


async def test_the_word_shows_priority_and_what_waits_and_lowering_it_lets_an_interrupt_in(registry):
    machine, arena = await made(
        registry, ENABLE, ("write", TASK_PRIORITY, 0x60), ("write", APIC + 0x300, 0x44051), ("out", 0x10, 0),
        ("write8", WORD, 0x10), ("halt",),
    )  # fmt: skip
    await machine.set_vapic_addr(0, WORD)
    assert (await machine.run(0, timeout_ms=5_000))["io"]["port"] == 0x10
    assert word(machine, arena) == 0x51 << 24 | 0x60
    await done(machine)
    assert apic_guest.results(machine, arena)[1] == [0x51]


async def test_a_word_that_no_memory_holds_is_einval(registry):
    machine, _ = await made(registry)
    for address in (1 << 40, 0xFFE):
        with pytest.raises(KvmError) as refused:
            await machine.set_vapic_addr(0, address)
        assert refused.value.errno == errno.EINVAL
    await machine.set_vapic_addr(0, 0)
