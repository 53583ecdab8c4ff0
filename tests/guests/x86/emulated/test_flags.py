"""RFLAGS at instructions that stop in their middle, and what ends at the limit of CS."""

import random

import pytest

from kickstand.core.run.exits import HltExit, InternalErrorExit, IoExit, MmioExit
from kickstand.guests.x86.translated import nested_walk
from tests.guests.x86.machine import ENTRY, HOLE, STACK, Machine, Ram, modes, special_registers, wide

READONLY = 0x30000
CARRY = 1
COMPUTATIONS = ["39c8", "01c8", "29c8", "21c8", "f7d8", "ffc0"]  # cmp, add, sub, and, neg, inc
STORES = ["8813", "0f9a03", "0f9c03", "0f9603", "0f9303", "1103", "d113"]  # mov, setp, setl, setbe, setae, adc, rcl


def flags_after(machine):
    for _ in range(4):
        exit = machine.run(bytes(4))
        if exit == HltExit():
            return machine.reg("rflags")
        assert isinstance(exit, MmioExit)
    pytest.fail("no HLT")


@modes
@pytest.mark.parametrize("target", [HOLE, READONLY])
@pytest.mark.parametrize("store", STORES)
def test_an_access_that_stops_finds_the_flags_as_one_in_memory_does(mode, engine, store, target):
    for computation in COMPUTATIONS:
        code = ("66" if mode == "real" else "") + computation + wide(mode, store) + "f4"
        machines = []
        for address in (0x4000, target):
            machine = Machine(mode, code, engine=engine, rbx=address, rax=0x80000001, rcx=5)
            machine.slots.put(READONLY, Ram(0x1000), readonly=True)
            machines.append(machine)
        assert flags_after(machines[1]) == flags_after(machines[0]), computation


@modes
def test_every_flag_survives_a_store_to_a_device(mode, engine):
    code = ("66" if mode == "real" else "") + "83fa90" + wide(mode, "8813") + "f4"  # cmp edx, -0x70
    machine = Machine(mode, code, engine=engine, rbx=HOLE)
    assert machine.run() == MmioExit(HOLE, 1, is_write=True, data=b"\0")
    assert machine.cpu.complete(None) is None
    assert machine.reg("rflags") == 2 | CARRY
    assert machine.run() == HltExit()
    assert machine.reg("rflags") == 2 | CARRY


@pytest.mark.parametrize("engine", ["precise", "fast"])
def test_an_exception_pushes_the_flags_of_the_instruction_before(engine):
    machine = Machine("real", "83fa90f7f1", engine=engine, rcx=0)  # cmp dx, -0x70; div cx
    machine.poke(0, "00050000")
    machine.poke(0x500, "f4")
    assert machine.run() == HltExit()
    assert machine.peek(STACK - 6, 6) == bytes([ENTRY + 3 & 0xFF, ENTRY >> 8, 0, 0, 2 | CARRY, 0])


def test_a_cpu_may_change_between_counting_and_not_counting():
    machine = Machine("prot32", "83fa908813f4", engine="fast", rbx=HOLE)
    for budget in (0, 1000, 0, 1000):
        machine.cpu.set_registers({"rip": ENTRY, "rflags": 2})
        assert machine.cpu.run(budget) == MmioExit(HOLE, 1, is_write=True, data=b"\0")
        machine.cpu.complete(None)
        assert machine.reg("rflags") == 2 | CARRY


@pytest.mark.parametrize("engine", ["precise", "fast"])
@pytest.mark.parametrize(
    ("code", "at", "pushed"),
    [
        ("90909090", 0xFFFC, 0x10000),  # NOPs up to the limit
        ("b83412", 0xFFFE, 0xFFFE),  # MOV AX across it
        ("e642", 0xFFFE, 0x10000),  # OUT directly before it
    ],
)
def test_code_ends_at_the_limit_of_cs(engine, code, at, pushed):
    machine = Machine("real", code[: 2 * (0x10000 - at)], engine=engine, entry=at)
    machine.slots.put(0x10000, Ram(0x1000))
    machine.poke(13 * 4, "00050000")
    machine.poke(0x500, "f4")
    exit = machine.run()
    if isinstance(exit, IoExit):
        exit = machine.run()
    assert exit == HltExit()
    assert (machine.reg("rip"), machine.reg("rsp")) == (0x501, STACK - 6)
    assert machine.peek(STACK - 6, 2) == (pushed & 0xFFFF).to_bytes(2, "little")


@pytest.mark.parametrize("engine", ["precise", "fast"])
def test_code_ends_in_the_middle_of_a_page_if_the_limit_of_cs_does(engine):
    machine = Machine("real", "90" * 16 + "b83412f4", engine=engine)
    code = special_registers("real")["cs"] | {"limit": ENTRY + 17}
    machine.cpu.set_special_registers({"cs": code})
    machine.poke(13 * 4, "00050000")
    machine.poke(0x500, "f4")
    assert machine.run() == HltExit()
    assert machine.peek(STACK - 6, 2) == (ENTRY + 16).to_bytes(2, "little")
    assert machine.reg("rax") == 0


@modes
def test_an_instruction_before_the_end_of_memory_needs_no_bytes_behind_it(mode, engine):
    store = wide(mode, "8903")
    machine = Machine(mode, store + "9090", engine=engine, entry=0xFFFE - len(store) // 2, rbx=HOLE, rax=7)
    machine.cpu.set_special_registers({"cs": special_registers(mode)["cs"] | {"limit": 0xFFFFFFFF}})
    assert machine.run() == MmioExit(HOLE, 4, is_write=True, data=b"\x07\0\0\0")
    assert isinstance(machine.run(), InternalErrorExit)
    assert machine.reg("rip") == 0x10000


def program_with_flags(choice):
    """Computations, stores to pages that the TLB does not have, and instructions that look at all flags at once."""
    pages, code = iter(range(0x100000, 0x200000, 0x1000)), ""
    for _ in range(14):
        kind = choice.randrange(5)
        if kind < 2:
            code += choice.choice([*COMPUTATIONS, "83d803", "d1e8", "0fafc1"])  # sbb, shr, imul
        elif kind == 2:
            code += (
                choice.choice(["a2", "0f9205", "0f9f05"]) + next(pages).to_bytes(4, "little").hex()
            )  # mov, setb, setg
        elif kind == 3:
            # mov esp, a new page; pushf; pop edx; lea esi, [esi+esi+edx]: no flag changes
            code += "bc" + (next(pages) + 0x800).to_bytes(4, "little").hex() + "9c5a" + "8db416" + "00000000"
        else:
            code += choice.choice(["27", "2f", "37", "3f", "9f", "0f02d1", "0f00e1"])  # DAA and like, LAHF, LAR, VERR
    return code + "9c5a" + "f4"


@pytest.mark.parametrize("needed", [1, 0], ids=["virtual TLB", "own walk"])
def test_flags_are_those_of_code_that_does_not_count(monkeypatch, needed):
    monkeypatch.setattr(nested_walk, "NEEDED", needed)
    choice = random.Random(5)
    for number in range(30):
        code, ends = program_with_flags(choice), []
        for engine in ("precise", "fast"):
            machine = Machine("prot32", code, engine=engine, rax=0x80000001, rcx=5, rsi=1)
            machine.slots.put(0x100000, Ram(0x100000))
            assert machine.run() == HltExit()
            ends.append(machine.cpu.registers())
        assert ends[0] == ends[1], (number, code)
