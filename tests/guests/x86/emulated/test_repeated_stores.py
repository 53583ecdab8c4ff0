"""A repeated store that the kernel itself takes: the emulator goes on with it, and it comes to the same."""

from __future__ import annotations

import pytest

from kickstand.core.arch.coalesced import ENTRIES, Zone
from kickstand.runtime.registry import Registry
from tests.runtime.ioctls.test_x86_exits_to_userspace import HLT, made

ZONE = 0xD0000
PREFIXES = {
    "b": "f3aa",
    "w": "66f3ab",
    "d": "f3ab",
    "d, repne": "f2ab",
    "movsw": "f366a5",
}
SIZES = {"b": 1, "w": 2, "movsw": 2}
STARTS = {"in a page": 0x40, "across pages": 0xFE0, "an element in two pages": 0xFDF}


@pytest.fixture
async def registry():
    registry = Registry()
    yield registry
    await registry.reset()


async def stored(registry, code, **regs):
    """What the device got, and the registers at the HLT."""
    machine = await made(registry, code + HLT, rax=0x11223344, rsi=0x100, rflags=2, **regs)
    await machine.register_coalesced(Zone(ZONE, 0x4000, 0))
    ring = []
    while (exit := await machine.run(0))["exit_reason"] == "KVM_EXIT_MMIO":
        ring += [(entry.phys_addr, entry.data) for entry in await machine.drain_coalesced()]
        ring.append((int(exit["mmio"]["phys_addr"], 16), bytes.fromhex(exit["mmio"]["data"])))
    assert exit["exit_reason"] == "KVM_EXIT_HLT"
    ring += [(entry.phys_addr, entry.data) for entry in await machine.drain_coalesced()]
    registers = await machine.get_regs(0)
    await registry.destroy(machine.id)
    return ring, {name: registers[name] for name in ("rcx", "rdi", "rsi", "rax", "rip", "rflags")}


@pytest.mark.parametrize("direction", ["fc", "fd"])
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("form", PREFIXES)
async def test_it_stores_what_it_stores_element_by_element(registry, monkeypatch, form, start, direction):
    at = {"rcx": 40, "rdi": ZONE + 0x1000 + STARTS[start]}
    here = await stored(registry, direction + PREFIXES[form], **at)
    monkeypatch.setattr("kickstand.guests.x86.guest.X86Guest.next_element", lambda _self: None)
    assert here == await stored(registry, direction + PREFIXES[form], **at)
    written = b"".join(data for _, data in here[0])
    assert len(written) == 40 * SIZES.get(form, 4)
    assert here[1]["rcx"] == 0


async def test_a_screen_that_is_cleared_fills_the_ring_and_leaves_only_when_it_is_full(registry):
    machine = await made(registry, "f366ab" + HLT, rax=0x0720, rcx=2000, rdi=ZONE, rflags=2)
    await machine.register_coalesced(Zone(ZONE, 0x4000, 0))
    addresses, left = [], 0
    while (exit := await machine.run(0))["exit_reason"] == "KVM_EXIT_MMIO":
        addresses += [entry.phys_addr for entry in await machine.drain_coalesced()]
        addresses.append(int(exit["mmio"]["phys_addr"], 16))
        left += 1
    addresses += [entry.phys_addr for entry in await machine.drain_coalesced()]
    assert addresses == list(range(ZONE, ZONE + 4000, 2))
    assert left == 2000 // ENTRIES


async def test_it_steps_under_a_debugger_element_by_element(registry, monkeypatch):
    asked = []
    monkeypatch.setattr("kickstand.guests.x86.emulated.instructions.repeated.Repeated.next_store", asked.append)
    machine = await made(registry, "f366ab" + HLT, rcx=3, rdi=ZONE, rflags=0x102)  # TF
    await machine.register_coalesced(Zone(ZONE, 0x4000, 0))
    await machine.run(0)
    assert not asked
