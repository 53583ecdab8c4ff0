"""A CPU with the least memory that guest code needs, in each mode of the CPU and of the engine."""

import ctypes
import mmap
import struct

import pytest

from kickstand.guests.x86.cpu import X86Cpu
from kickstand.guests.x86.memory.physical import Segment

ENTRY = 0x1000


STACK = 0x7000


PAE = 0x20
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


engines = pytest.mark.parametrize("engine", ["precise", "fast"])


def modes(function):
    return engines(pytest.mark.parametrize("mode", ["real", "prot32", "long64"])(function))


def wide(mode, code):
    """32-bit code as it must be written in this mode (operand and address size prefixes in real mode)."""
    return ("6766" if mode == "real" else "") + code
