"""Each kind of exit in each mode of the CPU."""

import ctypes
import mmap
import struct

import pytest

from kickstand.core.run.exits import (
    FaultExit,
    HltExit,
    InternalErrorExit,
    IoExit,
    MmioExit,
    RetryExit,
    ShutdownExit,
)
from kickstand.core.uapi import InternalError
from kickstand.guests.x86.cpu import X86Cpu
from kickstand.guests.x86.memory.physical import Segment

ENTRY = 0x1000
STACK = 0x7000
TABLES = 0x8000  # page tables of the long mode machines
HOLE = 0x20000
NO_BYTES = (0,) * 6  # of an instruction that could not be fetched: flags, and five words about hardware

_DATA = {"type": 3, "present": 1, "dpl": 0, "s": 1, "l": 0, "avl": 0, "unusable": 0, "base": 0, "limit": 0xFFFFFFFF}
_CODE = {**_DATA, "type": 11, "selector": 8, "g": 1}


def special_registers(mode):
    """Flat segments for the mode; long mode finds an identity map at TABLES."""
    if mode == "real":
        data = {**_DATA, "selector": 0, "g": 1, "db": 0}
        code = {**_CODE, "selector": 0, "limit": 0xFFFF, "g": 0, "db": 0}
        control = {"cr0": 0x10, "cr3": 0, "cr4": 0, "efer": 0}
    else:
        data = {**_DATA, "selector": 16, "g": 1, "db": 1}
        code = {**_CODE, "db": 1} if mode == "prot32" else {**_CODE, "l": 1, "db": 0}
        control = {"cr0": 0x11, "cr3": 0, "cr4": 0, "efer": 0}
        if mode == "long64":
            control = {"cr0": 0x80000011, "cr3": TABLES, "cr4": 0x20, "efer": 0x500}
    return {"cs": code, **dict.fromkeys(("ds", "es", "fs", "gs", "ss"), data), **control}


class Ram:
    """Anonymous host memory with an address."""

    def __init__(self, size):
        self.bytes = mmap.mmap(-1, size)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.bytes))
        self.size = size


class Slots:
    """The least a CPU needs of a memory slot table."""

    def __init__(self):
        self.generation = 0
        self.table = {}
        self.dirty = []
        self.kept = []

    def put(self, gpa, ram, *, size=None, offset=0, readonly=False, log_dirty=False, invalid=False):
        address = None if ram is None else ram.address + offset
        length = size or ram.size - offset
        self.kept.append(ram)  # host memory must outlive its slot
        self.table[gpa] = Segment(gpa, length, address, readonly, log_dirty, invalid)
        self.generation += 1

    def remove(self, gpa):
        del self.table[gpa]
        self.generation += 1

    def find(self, gpa):
        return next((s for s in self.table.values() if s.gpa <= gpa < s.gpa + s.size), None)

    def mark_dirty(self, gpa):
        self.dirty.append(gpa)

    def fetch_dirty(self):
        fetched, self.dirty = self.dirty, []
        self.generation += 1
        return fetched


class Machine:
    """64 KiB of memory at 0 and one CPU that is about to execute ``code``."""

    def __init__(self, mode, code, *, engine="precise", entry=ENTRY, arch=None, **regs):
        self.ram, self.slots = Ram(0x10000), Slots()
        self.slots.put(0, self.ram)
        self.mode = mode
        self.poke(entry, code)
        if mode == "long64":
            self.poke(TABLES, struct.pack("<Q", TABLES + 0x1063))
            self.poke(TABLES + 0x1000, struct.pack("<Q", TABLES + 0x2063))
            self.poke(TABLES + 0x2000, b"".join(struct.pack("<Q", n << 21 | 0xE3) for n in range(512)))
        self.cpu = X86Cpu(self.slots, mode=engine, arch=arch)
        self.cpu.set_special_registers(special_registers(mode))
        self.cpu.set_registers({"rip": entry, "rsp": STACK, "rdx": 0, "rflags": 2, **regs})

    def poke(self, offset, data):
        data = bytes.fromhex(data) if isinstance(data, str) else data
        self.ram.bytes[offset : offset + len(data)] = data

    def peek(self, offset, length):
        return bytes(self.ram.bytes[offset : offset + length])

    def run(self, reply=None):
        """KVM_RUN: complete what is pending, then execute up to the next exit."""
        exit = self.cpu.complete(reply) if self.cpu.pending else None
        for _ in range(1000):
            if exit is not None:
                return exit
            exit = self.cpu.run(0 if self.cpu.mode == "fast" else 1000)
        pytest.fail("no exit")

    def reg(self, name):
        return self.cpu.registers()[name]


def modes(function):
    both = pytest.mark.parametrize("engine", ["precise", "fast"])
    return both(pytest.mark.parametrize("mode", ["real", "prot32", "long64"])(function))


def wide(mode, code):
    """32-bit code as it must be written in this mode (operand and address size prefixes in real mode)."""
    return ("6766" if mode == "real" else "") + code


@modes
def test_out_stops_with_its_data_and_moves_rip_on_completion(mode, engine):
    machine = Machine(mode, "e642f4", engine=engine, rax=0x1234)
    assert machine.run() == IoExit("out", 1, 0x42, 1, b"\x34")
    assert machine.reg("rip") == ENTRY
    assert machine.cpu.complete(None) is None
    assert machine.reg("rip") == ENTRY + 2
    assert machine.run() == HltExit()
    assert machine.reg("rip") == ENTRY + 3


@modes
def test_in_merges_a_small_reply_into_rax(mode, engine):
    machine = Machine(mode, "ecf4", engine=engine, rax=0x11223344, rdx=0x60)
    assert machine.run() == IoExit("in", 1, 0x60)
    assert machine.run(b"\xaa") == HltExit()
    assert machine.reg("rax") == 0x112233AA


@modes
def test_a_read_in_a_hole_is_answered_by_userspace(mode, engine):
    machine = Machine(mode, wide(mode, "8b03") + "f4", engine=engine, rbx=HOLE + 1)
    assert machine.run() == MmioExit(HOLE + 1, 4, is_write=False)
    assert machine.run(b"\x01\x02\x03\x04") == HltExit()
    assert machine.reg("rax") == 0x04030201


@modes
def test_a_write_in_a_hole_is_finished_when_it_exits(mode, engine):
    machine = Machine(mode, wide(mode, "8903") + "f4", engine=engine, rbx=HOLE, rax=0x04030201)
    assert machine.run() == MmioExit(HOLE, 4, is_write=True, data=b"\x01\x02\x03\x04")
    assert machine.cpu.complete(None) is None
    assert machine.run() == HltExit()


@modes
def test_a_read_modify_write_stops_for_the_read_and_for_the_write(mode, engine):
    machine = Machine(mode, wide(mode, "014b02") + "f4", engine=engine, rbx=HOLE - 2, rcx=5)
    assert machine.run() == MmioExit(HOLE, 4, is_write=False)
    assert machine.run(b"\x03\0\0\0") == MmioExit(HOLE, 4, is_write=True, data=b"\x08\0\0\0")
    assert machine.run() == HltExit()


@modes
def test_an_access_across_the_end_of_memory_is_cut_there(mode, engine):
    machine = Machine(mode, wide(mode, "8903") + wide(mode, "8b0b") + "f4", engine=engine, rbx=0xFFFD, rax=0x44332211)
    assert machine.run() == MmioExit(0x10000, 1, is_write=True, data=b"\x44")
    assert machine.peek(0xFFFD, 3) == b"\x11\x22\x33"
    assert machine.run() == MmioExit(0x10000, 1, is_write=False)
    assert machine.run(b"\x99") == HltExit()
    assert machine.reg("rcx") == 0x99332211


@modes
def test_a_readonly_slot_is_memory_for_reads_and_a_device_for_writes(mode, engine):
    machine = Machine(mode, wide(mode, "014b02") + "f4", engine=engine, rbx=0x30000, rcx=1)
    rom = Ram(0x1000)
    rom.bytes[2:6] = b"\x07\0\0\0"
    machine.slots.put(0x30000, rom, readonly=True)
    assert machine.run() == MmioExit(0x30002, 4, is_write=True, data=b"\x08\0\0\0")
    assert machine.run() == HltExit()
    assert rom.bytes[2] == 7


@modes
def test_a_fetch_in_a_hole_cannot_be_emulated(mode, engine):
    machine = Machine(mode, "ffe3", engine=engine, rbx=0xFFFF)
    machine.slots.put(0, machine.ram, size=0xF000)
    assert machine.run() == InternalErrorExit(data=NO_BYTES, gpa=0xFFFF)


@modes
def test_an_instruction_that_runs_into_a_hole_cannot_be_emulated(mode, engine):
    machine = Machine(mode, "b8", engine=engine, entry=0xFFFF)
    machine.cpu.set_special_registers({"cs": special_registers(mode)["cs"] | {"limit": 0xFFFFFFFF}})
    exit = machine.run()
    assert isinstance(exit, InternalErrorExit)
    assert exit.gpa == 0x10000


@modes
def test_without_usable_vectors_an_exception_shuts_down(mode, engine):
    machine = Machine(mode, "0f0b", engine=engine)
    machine.cpu.set_special_registers({"idt": {"base": 0, "limit": 0}})
    assert machine.run() == ShutdownExit()


@modes
def test_a_slot_without_host_memory_is_a_fault(mode, engine):
    machine = Machine(mode, wide(mode, "8b03") + "f4", engine=engine, rbx=HOLE + 4)
    machine.slots.put(HOLE, None, size=0x1000)
    assert machine.run() == FaultExit(HOLE + 4)


@modes
def test_a_slot_in_the_middle_of_an_update_is_tried_again(mode, engine):
    machine = Machine(mode, wide(mode, "8903") + "f4", engine=engine, rbx=HOLE + 4, rax=9)
    page = Ram(0x1000)
    machine.slots.put(HOLE, page, invalid=True)
    assert machine.run() == RetryExit(HOLE + 4)
    assert page.bytes[4] == 0
    machine.slots.put(HOLE, page)
    assert machine.run() == HltExit()
    assert page.bytes[4] == 9


@modes
def test_hlt_can_be_run_past(mode, engine):
    machine = Machine(mode, "f4b001f4", engine=engine)
    assert machine.run() == HltExit()
    assert machine.run() == HltExit()
    assert machine.reg("rax") == 1


@modes
def test_a_frame_that_cannot_be_pushed_is_a_delivery_error(mode, engine):
    machine = Machine(mode, "0f0b", engine=engine, rsp=0xF800)
    machine.poke(0, struct.pack("<HHHH", 0, 0, 0, 0) * 3)
    machine.poke(0x5000, gate_table(mode, {6: 0x1100}))
    machine.cpu.set_special_registers({"idt": {"base": 0x5000, "limit": 0xFFF}, "gdt": {"base": 0x4000, "limit": 0x17}})
    machine.poke(0x4008, code_descriptor(mode))
    machine.slots.put(0, machine.ram, size=0xF000)
    assert machine.run() == InternalErrorExit(InternalError.DELIVERY_EV, gpa=machine_frame(mode))


def machine_frame(mode):
    """Where the first refused byte of the frame is."""
    return {"real": 0xF7FE, "prot32": 0xF7F4, "long64": 0xF7D8}[mode]


def code_descriptor(mode):
    return struct.pack("<Q", 0x00AF9B000000FFFF if mode == "long64" else 0x00CF9B000000FFFF)


def gate_table(mode, handlers):
    """A vector table with interrupt gates, or the one of real mode."""
    size = {"real": 4, "prot32": 8, "long64": 16}[mode]
    table = bytearray(64 * size)
    for vector, target in handlers.items():
        if mode == "real":
            entry = struct.pack("<HH", target, 0)
        else:
            entry = struct.pack("<HHHH", target & 0xFFFF, 8, 0xEE00, target >> 16).ljust(size, b"\0")
        table[vector * size : (vector + 1) * size] = entry
    return bytes(table)


@modes
def test_port_io_at_address_zero_leaves(mode, engine):
    machine = Machine(mode, "f4", engine=engine)
    machine.poke(0, "e460f4")
    machine.cpu.set_registers({"rip": 0})
    assert machine.run() == IoExit("in", 1, 0x60)
    assert machine.cpu.complete(b"\x05") is None
    assert machine.run() == HltExit()
    assert machine.cpu.registers()["rip"] == 3
