"""Page tables: reserved bits, marks of what was accessed, and when a change of a table counts."""

import struct

import pytest

from kickstand.core.run.exits import HltExit, IoExit, ShutdownExit
from tests.guests.x86.machine import ENTRY, HOLE, PAE, TABLES, Machine, Ram, engines


@engines
@pytest.mark.parametrize(
    ("level", "bit"),
    [(0, 7), (0, 48), (0, 51), (0, 8), (1, 48), (1, 8), (2, 13), (2, 20), (2, 50), (2, 63)],
)
def test_a_reserved_bit_in_a_page_table_is_a_fault_that_says_so(level, bit, engine):
    machine = Machine("long64", "8a042500004000f4", engine=engine)  # mov al, [0x400000]: another table than code's
    at = TABLES + 0x1000 * level + (0, 0, 16)[level]
    entry = int.from_bytes(machine.peek(at, 8), "little")
    machine.cpu.set_special_registers({"idt": {"base": 0x6000, "limit": 0xFFF}, "gdt": {"base": 0x5000, "limit": 23}})
    if level < 2:  # the code lies under it too
        machine.poke(at, struct.pack("<Q", entry | 1 << bit))
        assert machine.run() == ShutdownExit()
        return
    machine.poke(at, struct.pack("<Q", entry | 1 << bit))
    machine.poke(0x5008, struct.pack("<Q", 0x00209B0000000000))
    machine.poke(0x6000 + 14 * 16, struct.pack("<HHHHII", 0x2000, 8, 0x8E00, 0, 0, 0))
    machine.poke(0x2000, "59f4")  # pop rcx: the error code
    assert machine.run() == HltExit()
    assert machine.reg("rcx") == 9
    assert machine.cpu.special_registers()["cr2"] == 0x400000


@engines
def test_the_top_entries_of_pae_paging_get_no_accessed_bit(engine):
    machine = Machine("prot32", "a100200000f4", engine=engine)
    machine.poke(TABLES, struct.pack("<Q", TABLES + 0x1001))
    machine.poke(TABLES + 0x1000, struct.pack("<Q", 0xE3))
    machine.cpu.set_special_registers({"cr0": 0x80000011, "cr3": TABLES, "cr4": PAE})
    assert machine.run() == HltExit()
    assert machine.peek(TABLES, 8) == struct.pack("<Q", TABLES + 0x1001)


@engines
@pytest.mark.parametrize("entry", [3, 0x1E1, 1 << 48 | 1])
def test_a_reserved_bit_in_the_top_entries_of_pae_paging_is_refused_with_cr3(entry, engine):
    machine = Machine("prot32", "0f22d8f4", engine=engine, rax=TABLES + 0x20)
    machine.poke(TABLES, struct.pack("<Q", TABLES + 0x1001))
    machine.poke(TABLES + 0x20, struct.pack("<QQ", TABLES + 0x1001, entry))
    machine.poke(TABLES + 0x1000, struct.pack("<Q", 0xE3))
    paging = {"cr0": 0x80000011, "cr3": TABLES, "cr4": PAE}
    machine.cpu.set_special_registers({**paging, "idt": {"base": 0, "limit": 0}})
    assert machine.run() == ShutdownExit()


def paged(code, engine, **regs):
    """64-bit code at ENTRY with 4 KiB pages under 0x200000 to 0x3fffff, whose table lies at 0xc000."""
    machine = Machine("long64", code, engine=engine, **regs)
    machine.poke(TABLES + 0x2000 + 8, struct.pack("<Q", 0xC003))
    machine.poke(0xC000, b"".join(struct.pack("<Q", 0x4000 | 3) for _ in range(512)))
    return machine


@engines
def test_pages_of_one_table_get_their_own_accessed_and_dirty_bits(engine):
    # mov al, [0x200000]; mov al, [0x201000]; mov [0x202000], al; mov [0x203000], al
    code = "8a042500002000" + "8a042500102000" + "88042500202000" + "88042500302000" + "f4"
    machine = paged(code, engine)
    assert machine.run() == HltExit()
    marks = [machine.peek(0xC000 + 8 * page, 1)[0] & 0x60 for page in range(5)]
    assert marks == [0x20, 0x20, 0x60, 0x60, 0]


@engines
def test_a_table_that_is_exchanged_above_is_seen_after_the_tlb_was_flushed(engine):
    # mov al, [0x200000]; mov al, [0x201000]; mov qword [PDE], another; CR3 to itself; mov bl, [0x202000]
    exchange = f"48c70425{struct.pack('<I', TABLES + 0x2008).hex()}03d00000"
    code = "8a042500002000" + "8a042500102000" + exchange + "0f20d9" + "0f22d9" + "8a1c2500202000" + "f4"
    machine = paged(code, engine)
    machine.poke(0xD000, b"".join(struct.pack("<Q", 0x5000 | 3) for _ in range(512)))
    machine.poke(0x4000, b"\x11")
    machine.poke(0x5000, b"\x22")
    assert machine.run() == HltExit()
    assert (machine.reg("rax") & 0xFF, machine.reg("rbx") & 0xFF) == (0x11, 0x22)
    machine.cpu.set_registers({"rip": ENTRY})


@engines
def test_what_the_host_writes_into_a_table_counts_for_the_next_page(engine):
    machine = paged("8a042500002000" + "8a042500102000" + "e642" + "8a042500202000" + "f4", engine)
    assert isinstance(machine.run(), IoExit)
    machine.poke(0xC010, bytes(8))
    machine.cpu.set_special_registers({"idt": {"base": 0, "limit": 0}})
    assert machine.run() == ShutdownExit()


@engines
def test_a_table_in_a_logged_slot_is_logged_for_each_mark(engine):
    machine = paged("8a042500002000" + "8a042500102000" + "f4", engine)
    tables = Ram(0x1000)
    tables.bytes[:] = b"".join(struct.pack("<Q", 0x4000 | 3) for _ in range(512))
    machine.slots.put(HOLE, tables, log_dirty=True)
    machine.poke(TABLES + 0x2008, struct.pack("<Q", HOLE | 3))
    assert machine.run() == HltExit()
    assert machine.slots.dirty == [HOLE] * 2
