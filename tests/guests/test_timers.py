"""Timers of guests on a virtual clock: an idle VM jumps to the next one, and no test sleeps."""

import asyncio

import pytest

from kickstand.runtime.registry import Registry
from tests.api.live import until
from tests.guests import apic_guest, smp_guest
from tests.guests.apic_guest import APIC

ENABLE = ("write", APIC + 0xF0, 0x1FF)
TSC, TSC_DEADLINE = 0x10, 0x6E0
MASTER = (("out", 0x20, 0x11), ("out", 0x21, 0x20), ("out", 0x21, 4), ("out", 0x21, 3))  # automatic EOI


@pytest.fixture
async def registry():
    registry = Registry()
    yield registry
    await registry.reset()


async def performed(registry, *accesses, pit=False):
    machine = await registry.create("vm", engine="x86", irqchip=True, clock="virtual")
    if pit:
        await machine.create_pit()
    await machine.create_vcpu(0)
    arena = await apic_guest.load(machine, accesses)
    answer = await machine.run(0, timeout_ms=5_000)
    assert answer.get("io", {}).get("port") == apic_guest.DONE_PORT, answer
    return machine, *apic_guest.results(machine, arena)


async def test_a_halted_vcpu_sleeps_for_an_hour_in_no_time(registry):
    machine, _, log = await performed(
        registry, ENABLE, ("write", APIC + 0x3E0, 0b1010), ("write", APIC + 0x320, 0x41),
        ("write", APIC + 0x380, 0xFFFF_FFFF), ("halt",),
    )  # fmt: skip
    assert log == [0x41]
    assert machine.clock.time > 128 * 0xFFFF_FFFF


async def test_a_periodic_timer_ticks_until_it_is_stopped(registry):
    machine, _, log = await performed(
        registry, ENABLE, ("write", APIC + 0x3E0, 0b1011), ("write", APIC + 0x320, 1 << 17 | 0x42),
        ("write", APIC + 0x380, 10_000_000), *[("halt",)] * 5, ("write", APIC + 0x380, 0),
    )  # fmt: skip
    assert log == [0x42] * 5
    assert 50_000_000 <= machine.clock.time < 51_000_000
    assert machine.clock.timers == ()


async def test_the_current_count_goes_down_as_time_passes(registry):
    _, reads, _ = await performed(
        registry, ENABLE, ("write", APIC + 0x3E0, 0b1011), ("write", APIC + 0x380, 1_000_000),
        ("read", APIC + 0x390), ("read", APIC + 0x390),
    )  # fmt: skip
    assert 1_000_000 > reads[0] > reads[1] > 900_000


async def test_the_8254_ticks_through_the_8259(registry):
    machine, _, log = await performed(
        registry, *MASTER, ("out", 0x43, 0x34), ("out", 0x40, 0x9C), ("out", 0x40, 0x2E), *[("halt",)] * 3, pit=True
    )
    assert log == [0x20] * 3
    assert 30_000_000 <= machine.clock.time < 31_000_000


async def test_a_deadline_of_the_time_stamp_counter_interrupts(registry):
    _, _, log = await performed(
        registry, ENABLE, ("write", APIC + 0x320, 2 << 17 | 0x43), ("wrmsr", 0x6E0, 1 << 60), ("halt",),
    )  # fmt: skip
    assert log == [0x43]


async def test_userspace_sets_a_deadline_that_is_ahead(registry):
    machine = await registry.create("vm", engine="x86", irqchip=True, clock="virtual")
    await machine.create_vcpu(0)
    arena = await apic_guest.load(
        machine, (ENABLE, ("write", APIC + 0x320, 2 << 17 | 0x43), ("out", 0x10, 0), ("halt",))
    )
    assert (await machine.run(0))["io"]["port"] == 0x10
    [(_, now)] = await machine.get_msrs(0, [TSC])
    assert await machine.set_msrs(0, [(TSC_DEADLINE, now + 10**12)]) == 1
    before = machine.clock.time
    assert machine.clock.timers != ()
    assert (await machine.run(0, timeout_ms=5_000))["io"]["port"] == apic_guest.DONE_PORT
    assert apic_guest.results(machine, arena)[1] == [0x43]
    assert machine.clock.time - before > 10**11


async def test_a_priority_that_is_lowered_lets_an_interrupt_in_at_once(registry):
    machine = await registry.create("vm", vcpus=1, engine="x86", irqchip=True, clock="virtual")
    arena = await smp_guest.load(machine, 1, 1, boot="""
        b80f000000 440f22c0 c7830003000040400400    mov cr8, 15; an IPI to itself
        fb 31c0 440f22c0                            sti; mov cr8, 0
        f390 833c250470000001 72f4                  1: pause; cmp dword [0x7004], 1; jb 1b
        66baf003 ee                                 mov dx, 0x3f0; out dx, al
    """)  # fmt: skip
    assert (await machine.run(0, timeout_ms=5_000))["io"]["port"] == apic_guest.DONE_PORT
    assert smp_guest.counted(machine, arena, 1)[0] == [1]


PERIODIC, MASKED = 1 << 17, 1 << 16
TEN_MS = ("write", APIC + 0x3E0, 0b1011), ("write", APIC + 0x380, 10_000_000)
NO_PRIORITY = ("write", APIC + 0x80, 0xFF)


@pytest.mark.parametrize(
    ("accesses", "ticks"),
    [
        ((("write", APIC + 0x320, PERIODIC | MASKED | 0x42), *TEN_MS, ("halt",)), 0),
        ((("write", APIC + 0x320, PERIODIC | 0x42), *TEN_MS, ("sleep",)), 1),
        ((("write", APIC + 0x320, PERIODIC | 0x42), NO_PRIORITY, *TEN_MS, ("halt",)), 1),
    ],
    ids=["masked", "interrupts off", "priority too low"],
)
async def test_time_stands_where_a_periodic_timer_wakes_nobody(registry, accesses, ticks):
    machine = await registry.create("vm", engine="x86", irqchip=True, clock="virtual")
    await machine.create_vcpu(0)
    await apic_guest.load(machine, (ENABLE, *accesses))
    run = asyncio.create_task(machine.run(0))
    await until(lambda: machine.vcpu(0).task.sleeping, "sleep")
    for _ in range(200):
        await asyncio.sleep(0)
    assert machine.clock.time // 10_000_000 == ticks
    run.cancel()
    await asyncio.wait({run})


async def test_a_timer_that_wakes_somebody_comes_after_any_number_of_ticks_in_vain(registry):
    machine, _, log = await performed(
        registry, *MASTER, ENABLE, ("write", APIC + 0x320, PERIODIC | 0x42), NO_PRIORITY, *TEN_MS,
        ("out", 0x43, 0x30), ("out", 0x40, 0xFF), ("out", 0x40, 0xFF), ("halt",), pit=True,
    )  # fmt: skip
    assert log == [0x20]
    assert 54_000_000 < machine.clock.time < 56_000_000


async def test_a_masked_periodic_timer_counts_on_and_interrupts_from_its_next_tick_once_it_is_not(registry):
    """TMCCT goes round while it is masked; the ticks of that time are not made up for."""
    machine = await registry.create("vm", engine="x86", irqchip=True, clock="virtual")
    await machine.create_vcpu(0)
    count, unmask = ("read", APIC + 0x390), ("write", APIC + 0x320, PERIODIC | 0x42)
    start = ("write", APIC + 0x320, PERIODIC | MASKED | 0x42), *TEN_MS
    arena = await apic_guest.load(
        machine,
        (ENABLE, *start, count, ("out", 0x10, 0), count, unmask, ("halt",), ("halt",), ("write", APIC + 0x380, 0)),
    )
    assert (await machine.run(0))["io"]["port"] == 0x10
    assert machine.clock.timers == ()
    machine.clock.set_time(23_000_000)
    assert (await machine.run(0, timeout_ms=5_000))["io"]["port"] == apic_guest.DONE_PORT
    (first, second), log = apic_guest.results(machine, arena)
    assert first > 9_900_000
    assert 6_900_000 < second < 7_100_000
    assert log == [0x42, 0x42]
    assert 40_000_000 < machine.clock.time < 41_000_000
