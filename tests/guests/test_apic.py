"""Machine code programs the controllers: on the emulated kernel and, where there is one, on the real one alike."""

import pytest

from kickstand.guests.kvm.device import unusable
from kickstand.runtime.registry import Registry
from tests.guests import apic_guest
from tests.guests.apic_guest import APIC, FAULT, IOAPIC

KERNELS = [
    pytest.param("x86", id="emulated"),
    pytest.param("kvm", id="real", marks=pytest.mark.skipif(bool(unusable()), reason="needs /dev/kvm")),
]
ENABLE = ("write", APIC + 0xF0, 0x1FF)
SELF = 0x44000
X2APIC = ("wrmsr", 0x1B, 0xFEE00D00)


@pytest.fixture(params=KERNELS)
async def performed(request):
    registry = Registry()

    async def perform(*accesses, **options):
        machine = await registry.create("vm", vcpus=1, engine=request.param, irqchip=True)
        arena = await apic_guest.load(machine, accesses, **options)
        answer = await machine.run(0, timeout_ms=5_000)
        assert answer.get("io", {}).get("port") == apic_guest.DONE_PORT, answer
        return apic_guest.results(machine, arena)

    yield perform
    await registry.reset()


async def test_an_apic_after_reset(performed):
    offsets = (0x20, 0x30, 0x80, 0xA0, 0xD0, 0xE0, 0xF0, 0x280, 0x300, 0x320, 0x350, 0x360, 0x390, 0x3E0)
    reads, _ = await performed(*(("read", APIC + offset) for offset in offsets))
    assert reads == (0, 0x50014, 0, 0, 0, 0xFFFFFFFF, 0xFF, 0, 0, 0x10000, 0x700, 0x10000, 0, 0)


async def test_an_ipi_to_itself_wakes_it_from_hlt(performed):
    reads, log = await performed(
        ENABLE, ("write", APIC + 0x300, SELF | 0x55), ("halt",), ("write", APIC + 0x300, SELF | 0x66),
        ("read", APIC + 0x220), ("read", APIC + 0x230), ("halt",), ("read", APIC + 0x300),
    )  # fmt: skip
    assert reads == (0, 1 << 6, SELF | 0x66)
    assert log == [0x55, 0x66]


@pytest.mark.parametrize("engine", KERNELS)
async def test_an_interrupt_injected_before_an_entry_that_a_signal_prevents_is_not_replaced_by_a_higher_one(engine):
    registry = Registry()
    machine = await registry.create("vm", vcpus=1, engine=engine, irqchip=True)
    both_came = ("until", apic_guest.LOG_END, apic_guest.LOG + 2)
    arena = await apic_guest.load(machine, (ENABLE, ("sti",), ("out", 0x80, 0), both_came))
    assert (await machine.run(0, timeout_ms=5_000))["io"]["port"] == 0x80
    assert await machine.signal_msi(APIC, 0x41) == 1
    await machine.signal(0)
    assert (await machine.run(0, timeout_ms=5_000))["cause"] == "signal"
    assert await machine.signal_msi(APIC, 0x99) == 1
    assert (await machine.run(0, timeout_ms=5_000))["io"]["port"] == apic_guest.DONE_PORT
    assert apic_guest.results(machine, arena)[1] == [0x41, 0x99]
    await registry.reset()


async def test_an_apic_that_is_disabled_by_software_masks_its_vectors_and_ignores_ipis(performed):
    reads, _ = await performed(
        ENABLE, ("write", APIC + 0x370, 0x33), ("write", APIC + 0xF0, 0xFF), ("read", APIC + 0x370),
        ("write", APIC + 0x370, 0x34), ("read", APIC + 0x370), ("write", APIC + 0x300, SELF | 0x66),
        ("read", APIC + 0x230),
    )  # fmt: skip
    assert reads == (0x10033, 0x10034, 0)


async def test_x2apic_mode_and_the_way_there_and_back(performed):
    reads, log = await performed(
        ("rdmsr", 0x1B), ("rdmsr", 0x802), X2APIC, ("rdmsr", 0x1B), ("rdmsr", 0x803), ("rdmsr", 0x80D),
        ("wrmsr", 0x80F, 0x1FF), ("wrmsr", 0x83F, 0x77), ("rdmsr", 0x823), ("halt",), ("read", APIC + 0x20),
        ("wrmsr", 0x1B, 0xFEE00900), ("wrmsr", 0x1B, 0xFEE00100), ("rdmsr", 0x1B),
    )  # fmt: skip
    fault = (FAULT, FAULT, 0)  # by the handler, and what EAX and EDX held
    assert reads == (
        0xFEE00900, 0, *fault, 0xFEE00D00, 0, 0x50014, 0, 1, 0, 1 << 23, 0, 0xFFFFFFFF, FAULT, 0xFEE00100, 0,
    )  # fmt: skip
    assert log == [0x77]


async def test_the_8259_pair_is_initialised_and_masked(performed):
    reads, _ = await performed(
        ("out", 0x20, 0x11), ("out", 0x21, 0x20), ("out", 0x21, 4), ("out", 0x21, 1), ("in", 0x21), ("in", 0x20),
        ("out", 0x21, 0xFB), ("in", 0x21), ("out", 0x4D0, 0xFF), ("in", 0x4D0), ("out", 0x4D1, 0xFF), ("in", 0x4D1),
    )  # fmt: skip
    assert reads == (0, 0, 0xFB, 0xF8, 0xDE)


async def test_the_ioapic_has_24_masked_pins(performed):
    accesses = []
    for register in (0, 1, 0x10, 0x11, 0x3E, 0x40):
        accesses += [("write", IOAPIC, register), ("read", IOAPIC + 0x10)]
    reads, _ = await performed(*accesses)
    assert reads == (0, 0x170011, 0x10000, 0, 0x10000, 0xFFFFFFFF)
