"""Bytes that could be an instruction of KVM's, but are in the middle of another: looked at once."""

import pytest

from kickstand.core.run.exits import HltExit, IoExit
from tests.guests.x86.machine import ENTRY, Machine

LOOP = "b8eeeeeeee" + "ffc9" + "75f7" + "f4"  # mov eax, 0xeeeeeeee; dec ecx; jnz; hlt
OUT = bytes.fromhex("90eeffc9" + "7500" + "7500")  # nop; out dx, al; dec ecx


def looked_at(machine):
    """Where the translator looks for stops from now on."""
    engine, addresses = machine.cpu._translator.engine, []
    find = engine.find_stops
    engine.find_stops = lambda start, size: addresses.append(start) or find(start, size)
    return addresses


def go(machine, *, window):
    machine.cpu.window_requested = window
    machine.cpu.set_registers({"rip": ENTRY, "rcx": 10})
    return machine.run()


@pytest.mark.parametrize("engine", ["precise", "fast"])
def test_runs_with_and_without_window_leave_each_other_their_code(engine):
    machine = Machine("long64", LOOP, engine=engine)
    for window in (False, True) * 2:
        assert go(machine, window=window) == HltExit()
    addresses = looked_at(machine)
    for window in (False, True) * 3:
        assert go(machine, window=window) == HltExit()
    assert ENTRY not in addresses


@pytest.mark.parametrize("engine", ["precise", "fast"])
def test_other_bytes_at_the_same_place_are_looked_at_again(engine):
    machine = Machine("long64", LOOP, engine=engine)
    for window in (False, True) * 2:
        assert go(machine, window=window) == HltExit()
    machine.poke(ENTRY, OUT)
    assert go(machine, window=False) == IoExit("out", 1, 0, 1, b"\xee")


@pytest.mark.parametrize("engine", ["precise", "fast"])
@pytest.mark.parametrize(("first", "then"), [("long64", "real"), ("real", "long64")])
def test_the_same_bytes_are_other_instructions_in_another_mode(engine, first, then):
    """In 16-bit code the immediate ends two bytes earlier; ``harmless`` is told by mode, place and length."""
    machine = Machine(first, "b8eeee" + "eb05" if first == "real" else LOOP, engine=engine)
    code = machine.cpu._translator._code
    if first == "real":
        machine.poke(ENTRY + 10, "f4")
    assert go(machine, window=False) == HltExit()
    (page,) = code._pages.values()
    assert page.harmless
    assert {bits for _, _, bits, _ in page.harmless} == {16 if first == "real" else 64}
    host, (start, size, bits, _) = next(iter(code._pages)), next(iter(page.harmless))
    assert code.is_harmless(host, range(start, start + size), bits)
    assert not code.is_harmless(host, range(start, start + size), 16 if then == "real" else 64)
