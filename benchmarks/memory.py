"""Memory of x86 guests: pages touched for the first time and again, with and without a dirty log, and many slots.

    python benchmarks/memory.py [--json]

The peer of the page rows is Unicorn alone with its own page walk, in the same process.
"""

from __future__ import annotations

import asyncio
import ctypes
import mmap
import struct
import time
from importlib import import_module

from harness import Ratio, at_least, at_most, compare, cpu_ns, measured, process_ns, report

from kickstand.core.memslots import Region
from kickstand.core.run.exits import HltExit
from kickstand.guests.x86.cpu import X86Cpu
from kickstand.guests.x86.guest import SLICE
from kickstand.guests.x86.memory.physical import Segment
from kickstand.runtime.registry import Registry
from kickstand.scripts.language.presets import PRESETS

PAGE = 4096
SIZE, TABLES, ENTRY, DATA = 160 << 20, 0x1000, 0x10000, 16 << 20
PAGES, STORES = 32_768, 20_000_000
_HALT = "f4"
NEXT_PAGE = "4889074881c70010000048ffc975f1"  # mov [rdi], rax; add rdi, 4096; dec rcx; jnz
SAME_PAGE = "48890748ffc975f8"
_SEGMENT = {"base": 0, "limit": 0xFFFFFFFF, "present": 1, "dpl": 0, "s": 1, "g": 1, "avl": 0, "unusable": 0}
_CODE = {**_SEGMENT, "selector": 8, "type": 11, "l": 1, "db": 0}
_FLAT = {**_SEGMENT, "selector": 16, "type": 3, "l": 0, "db": 1}
SLOTS = 4_000


class Memory:
    """One slot with an identity map of pages; ``never``: data cannot be executed."""

    def __init__(self, *, never: bool, logged: bool) -> None:
        self.area = mmap.mmap(-1, SIZE)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.area))
        self.segment = Segment(0, SIZE, self.address, False, logged)
        self.generation = 1
        self.dirty: set[int] = set()
        tables = SIZE >> 21
        at = 0x100000
        self.put(TABLES, [TABLES + PAGE | 3])
        self.put(TABLES + PAGE, [TABLES + 2 * PAGE | 3])
        self.put(TABLES + 2 * PAGE, [at + number * PAGE | 3 for number in range(tables)])
        bit = 1 << 63 if never else 0
        self.put(at, [gpa | 3 | (bit if gpa >= DATA else 0) for gpa in range(0, SIZE, PAGE)])

    def put(self, gpa: int, entries: list[int]) -> None:
        self.area[gpa : gpa + 8 * len(entries)] = struct.pack(f"<{len(entries)}Q", *entries)

    def find(self, gpa: int) -> Segment | None:
        return self.segment if gpa < SIZE else None

    def mark_dirty(self, gpa: int) -> None:
        self.dirty.add(gpa)


def guest(code: str, count: int, *, mode: str = "fast", never: bool = True, logged: bool = False):
    """A function that runs the loop once."""
    memory = Memory(never=never, logged=logged)
    program = bytes.fromhex(code + _HALT)
    memory.area[ENTRY : ENTRY + len(program)] = program
    cpu = X86Cpu(memory, mode=mode)
    control = {"cr0": 0x80010031, "cr3": TABLES, "cr4": 0x20, "efer": 0xD00}
    cpu.set_special_registers({"cs": _CODE, "ds": _FLAT, "es": _FLAT, "ss": _FLAT, **control})

    def run() -> None:
        cpu.set_registers({"rip": ENTRY, "rcx": count, "rdi": DATA, "rflags": 2})
        cpu.flush_tlb()
        memory.dirty.clear()
        memory.generation += logged
        exit = None
        while exit is None:
            exit = cpu.run(SLICE if mode == "precise" else 0)
        if exit != HltExit() or (logged and code == NEXT_PAGE and len(memory.dirty) < count):
            raise RuntimeError(f"the guest ended with {exit}")

    return run


def raw(code: str, count: int, *, never: bool = True):
    """The same loop on Unicorn alone."""
    unicorn, registers = import_module("unicorn"), import_module("unicorn.x86_const")
    memory = Memory(never=never, logged=False)
    program = bytes.fromhex(code)
    memory.area[ENTRY : ENTRY + len(program)] = program
    engine = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    engine.mem_map_ptr(0, SIZE, unicorn.UC_PROT_ALL, memory.address)
    engine.reg_write(registers.UC_X86_REG_CR3, TABLES)
    engine.reg_write(registers.UC_X86_REG_CR4, 0x20)
    engine.msr_write(0xC0000080, 0xD00)
    engine.reg_write(registers.UC_X86_REG_CR0, 0x80010031)

    def run(_kept: object = memory) -> None:
        engine.reg_write(registers.UC_X86_REG_RCX, count)
        engine.reg_write(registers.UC_X86_REG_RDI, DATA)
        engine.ctl(unicorn.UC_CTL_TLB_FLUSH, unicorn.UC_CTL_IO_WRITE)
        engine.emu_start(ENTRY, ENTRY + len(program))

    return run


def pages() -> list[Ratio]:
    rows = []
    for words, never in (("", True), (", data that could be executed", False)):
        row = f"x86 fast, stores to a new page each time{words}"
        ours, theirs = guest(NEXT_PAGE, PAGES, never=never), raw(NEXT_PAGE, PAGES, never=never)
        rows.append(compare(row, "Unicorn", ours, theirs, goal=at_least(0.5), clock=process_ns, faster=True))
        row = f"x86 fast, stores to one page{words}"
        ours, theirs = guest(SAME_PAGE, STORES, never=never), raw(SAME_PAGE, STORES, never=never)
        rows.append(compare(row, "Unicorn", ours, theirs, goal=at_least(0.9), clock=process_ns, faster=True))
    for words, mode, logged, goal in (
        ("fast", "fast", False, 3.0),
        ("precise", "precise", False, 3.0),
        ("fast, logged", "fast", True, 0.5),
    ):
        run = guest(NEXT_PAGE, PAGES, mode=mode, logged=logged)
        run()
        speeds = [PAGES * 1e3 / cpu_ns(run, process_ns) for _ in range(5)]
        rows.append(measured(f"x86 {words}, new pages", sorted(speeds)[2], "M/s", at_least(goal)))
    return rows


async def many_slots() -> list[Ratio]:
    """A VM with thousands of slots of one page each, beside the one that the guest runs in."""
    machine = await Registry().create("slots", vcpus=1, engine="x86", mode="precise", variant="sticky")
    arena = machine.memory.allocate((SLOTS + 17) * PAGE)
    machine.memory.write(arena.base + PAGE, bytes.fromhex(_HALT))
    await machine.set_user_memory_region(Region(0, 0, 0, 16 * PAGE, arena.base))
    await machine.set_sregs(0, PRESETS["prot32"])

    def region(slot: int, size: int = PAGE) -> Region:
        return Region(slot, 0, (1 << 30) + 2 * slot * PAGE, size, arena.base + (16 + slot) * PAGE)

    async def entry() -> float:
        await machine.set_regs(0, {"rip": PAGE, "rflags": 2})
        began = time.process_time_ns()
        await machine.run(0, timeout_ms=None)
        return (time.process_time_ns() - began) / 1e6

    began = time.process_time_ns()
    for slot in range(1, SLOTS + 1):
        await machine.set_user_memory_region(region(slot))
    ioctl = (time.process_time_ns() - began) / 1e6 / SLOTS
    first, changed = await entry(), []
    for slot in range(1, 65):
        await machine.set_user_memory_region(region(slot, 0))
        changed.append(await entry())
    still = sorted([await entry() for _ in range(64)])[32]
    await machine.destroy()
    return [
        measured(f"one of {SLOTS:,} slots made", ioctl, "ms", at_most(0.05)),
        measured(f"first entry with {SLOTS:,} slots", first, "ms", at_most(20)),
        measured("what an entry takes more after a change of them", sorted(changed)[32] - still, "ms", at_most(0.2)),
    ]


if __name__ == "__main__":
    report([*pages(), *asyncio.run(many_slots())])
