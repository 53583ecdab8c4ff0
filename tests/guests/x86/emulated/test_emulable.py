"""Instructions on a device that KVM's emulator has, and those that it lacks."""

import struct

import pytest

from kickstand.core.run.exits import HltExit, InternalErrorExit, MmioExit
from tests.guests.x86.machine import ENTRY, HOLE, Machine, engines, modes

# instructions with a memory operand [disp32] in 64-bit code that KVM's emulator lacks
UNKNOWN = {
    "fld": "dd0425", "fst": "dd1425", "fild": "df0425", "fnstenv": "d93425", "fldcw": "d92c25", "fadd": "d80425",
    "popcnt": "f30fb80425", "crc32": "f20f38f00425", "movq store": "660fd60425", "movd": "660f6e0425",
    "movss": "f30f100425", "movsd": "f20f110425", "movntq": "0fe70425", "stmxcsr": "0fae1c25", "ldmxcsr": "0fae1425",
    "paddb": "660ffc0425", "pshufb": "660f38000425", "cvtsi2sd": "f20f2a0425", "sqrtps": "0f510425",
    "andps": "0f540425", "cmpps": "0fc20425", "lddqu": "f20ff00425", "pinsrw": "660fc40425", "movlps": "0f120425",
    "lar": "0f020425", "verr": "0f002425",
}  # fmt: skip


KNOWN = {
    "mov": "8b0425", "movzx": "0fb60425", "movups": "0f100425", "movdqu": "f30f6f0425", "cmov": "0f440425",
    "bsf": "0fbc0425", "bt": "0fa30425", "test": "850425", "add": "030425", "movbe": "0f38f00425", "imul": "0faf0425",
    "clflush": "0fae3c25", "clflushopt": "660fae3c25",
}  # fmt: skip


def machine_at(code, engine):
    tail = "00" if code.startswith(("0fc2", "660fc4")) else ""
    machine = Machine("long64", code + struct.pack("<I", HOLE).hex() + tail + "f4", engine=engine, rax=5)
    machine.cpu.set_special_registers({"cr4": 0x620})
    return machine


@engines
@pytest.mark.parametrize("name", UNKNOWN)
def test_an_instruction_that_kvm_cannot_emulate_on_a_device_has_no_effect_and_says_what_it_is(name, engine):
    machine = machine_at(UNKNOWN[name], engine)
    exit = machine.run()
    assert isinstance(exit, InternalErrorExit)
    flags, first, second, *_ = exit.data
    known = struct.pack("<QQ", first, second)
    assert (flags, known[0]) == (1, 15)
    assert known[1:].startswith(bytes.fromhex(UNKNOWN[name]))
    assert (machine.reg("rip"), machine.reg("rax")) == (ENTRY, 5)


@engines
@pytest.mark.parametrize("name", KNOWN)
def test_one_that_it_can_reads_the_device(name, engine):
    machine = machine_at(KNOWN[name], engine)
    exit = machine.run()
    assert isinstance(exit, MmioExit)
    assert not exit.is_write
    while isinstance(exit, MmioExit):
        exit = machine.run(bytes(exit.len))
    assert exit == HltExit()


@modes
def test_clflush_reads_one_byte_and_changes_no_register(mode, engine):
    machine = Machine(
        mode, ("67" if mode == "real" else "") + "0fae3b" + "f4", engine=engine, rbx=HOLE, rdi=7, rflags=2
    )
    assert machine.run() == MmioExit(HOLE, 1, is_write=False)
    before = machine.cpu.registers()
    assert machine.run(b"\xff") == HltExit()
    after = machine.cpu.registers()
    assert {name for name in after if after[name] != before[name]} == {"rip"}


@modes
def test_the_other_code_of_test_is_one(mode, engine):
    machine = Machine(mode, "b080" + "f6c880" + "f4", engine=engine)  # mov al, 0x80; test al, 0x80
    assert machine.run() == HltExit()
    assert (machine.reg("rflags"), machine.reg("rip")) == (0x82, ENTRY + 6)
    machine.cpu.set_registers({"rip": ENTRY + 0x100, "rbx": HOLE, "rflags": 2})
    machine.poke(ENTRY + 0x100, ("67" if mode == "real" else "") + "f60b01" + "f4")  # test byte [rbx], 1
    assert machine.run() == MmioExit(HOLE, 1, is_write=False)
    assert machine.run(b"\x02") == HltExit()
    assert machine.reg("rflags") == 0x46
