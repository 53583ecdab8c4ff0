"""The engine's own page walk through nested tables: when it is used, and that nothing of the guest escapes it."""

import struct
import threading
import time
from dataclasses import replace

import pytest

from kickstand.core.arch.cpu.cpuid import SUPPORTED
from kickstand.core.run.exits import HltExit, IoExit, MmioExit
from kickstand.guests.x86.emulated.emulator import Emulator
from kickstand.guests.x86.memory.physical import PhysicalMemory
from kickstand.guests.x86.translated import nested_walk
from kickstand.guests.x86.translated.nested_tables import Answer, NestedTables
from tests.guests.x86.machine import ENTRY, TABLES, Machine, Ram, Slots, special_registers

walks = pytest.mark.parametrize("needed", [1, 0], ids=["virtual TLB", "own walk"])
engines = pytest.mark.parametrize("engine", ["precise", "fast"])
MIB = 1 << 20
PAGES = 8 * MIB >> 12
# mov [rdi], rax; add rdi, 4096; dec rcx; jnz; hlt
NEW_PAGES = "4889074881c70010000048ffc975f1f4"


def walking(machine):
    return machine.cpu._translator._walk.active


def machine_with_memory(engine="precise", code=NEW_PAGES, *, mode="long64", size=8 * MIB, **slot):
    machine = Machine(mode, code, engine=engine, rdi=16 * MIB, rcx=PAGES, rax=0x5A)
    ram = Ram(size)
    machine.slots.put(16 * MIB, ram, **slot)
    return machine, ram


@engines
def test_a_guest_whose_misses_come_close_together_is_walked_by_the_engine(engine):
    machine, ram = machine_with_memory(engine)
    for _ in range(3):
        machine.cpu.set_registers({"rip": ENTRY, "rdi": 16 * MIB, "rcx": PAGES})
        assert machine.run() == HltExit()
    assert ram.bytes[::4096] == b"\x5a" * PAGES
    assert machine.cpu._translator._walk._tables is not None


def test_a_run_that_counts_ends_after_so_many_misses(monkeypatch):
    """Else four guests that miss all the time would keep everybody else on the loop waiting for seconds."""
    monkeypatch.setattr(nested_walk, "NEEDED", 1 << 30)  # the engine never walks by itself
    machine, ram = machine_with_memory()
    at, runs, exit = 16 * MIB, 0, None
    while exit != HltExit():
        exit = machine.cpu.run(100_000)
        before, at, runs = at, machine.reg("rdi"), runs + 1
        assert at - before <= (nested_walk.MOST_FILLS + 1) << 12
    assert runs >= PAGES // (nested_walk.MOST_FILLS + 1)
    assert ram.bytes[::4096] == b"\x5a" * PAGES


def test_a_logged_page_ends_it_and_every_page_is_logged():
    machine, _ = machine_with_memory()
    while not walking(machine):
        machine.cpu.run(1000)
    machine.slots.put(16 * MIB, machine.slots.kept[-1], log_dirty=True)
    machine.cpu.set_registers({"rip": ENTRY, "rdi": 16 * MIB, "rcx": PAGES})
    assert machine.run() == HltExit()
    assert sorted(set(machine.slots.dirty)) == list(range(16 * MIB, 24 * MIB, 4096))


@engines
def test_memory_beyond_what_the_engine_walks_to_is_not_stepped_through(engine, monkeypatch):
    machine, _ = machine_with_memory(engine)
    ram, far = Ram(8 * MIB), 1 << 44
    machine.slots.put(far, ram)
    for at in range(0, 8 * MIB, 2 * MIB):  # large pages
        machine.poke(TABLES + 0x2000 + (16 * MIB + at >> 21) * 8, struct.pack("<Q", far + at | 0xE3))
    steps = []
    monkeypatch.setattr(Emulator, "step", lambda self, step=Emulator.step: steps.append(self) or step(self))
    for _ in range(3):
        machine.cpu.set_registers({"rip": ENTRY, "rdi": 16 * MIB, "rcx": PAGES})
        assert machine.run() == HltExit()
    assert ram.bytes[::4096] == b"\x5a" * PAGES
    assert len(steps) < PAGES // 32


@walks
@engines
def test_code_of_a_page_that_the_tables_no_longer_name_is_searched_too(monkeypatch, engine, needed):
    """The TLB still has the page: whatever is executed, no port I/O goes by unseen."""
    monkeypatch.setattr(nested_walk, "NEEDED", needed)
    # call r9; mov [rdi], rax; lea r10, [r9+16]; call r10; hlt
    machine = Machine("long64", "41ffd1" + "488907" + "4d8d5110" + "41ffd2" + "f4", engine=engine)
    old, new = Ram(2 * MIB), Ram(2 * MIB)
    machine.slots.put(2 * MIB, old)
    machine.slots.put(4 * MIB, new)
    old.bytes[:1], old.bytes[16:20] = b"\xc3", bytes.fromhex("e64290c3")  # ret; out 0x42, al; nop; ret
    new.bytes[16:20] = bytes.fromhex("48ffc3c3")  # inc rbx; ret
    machine.cpu.set_registers({"r9": 2 * MIB, "rdi": TABLES + 0x2008, "rax": 4 * MIB | 0xE3})
    exit = machine.run()
    assert exit == IoExit("out", 1, 0x42, 1, b"\xe3") or (exit == HltExit() and machine.reg("rbx") == 1)


@walks
@engines
def test_each_store_to_code_through_another_address_is_seen(monkeypatch, engine, needed):
    monkeypatch.setattr(nested_walk, "NEEDED", needed)
    # Two routines of one page, each first run as it is, then written to through an alias that cannot be executed.
    call, store = "41ffd141ffd2", "c6070290c6471002"  # call r9; call r10; mov byte [rdi], 2; mov byte [rdi+16], 2
    machine = Machine("long64", call + store + call + "f4", engine=engine, r9=0x3000, r10=0x3010, rdi=2 * MIB + 0x3002)
    machine.cpu.set_special_registers({"efer": 0xD00})
    machine.poke(TABLES + 0x2008, struct.pack("<Q", 0xE3 | 1 << 63))  # the second 2 MiB are the first
    for at in (0x3000, 0x3010):
        machine.poke(at, "80c301c3")  # add bl, 1; ret
    assert machine.run() == HltExit()
    assert machine.reg("rbx") == 1 + 1 + 2 + 2


@engines
def test_holes_and_readonly_slots_are_where_they_were(monkeypatch, engine):
    monkeypatch.setattr(nested_walk, "NEEDED", 0)
    # mov eax, [rdi]; mov [rdi], eax (read-only); mov eax, [r9] (a hole beside it)
    machine = Machine("long64", "8b07" + "8907" + "418b01" + "f4", engine=engine, rdi=16 * MIB, r9=16 * MIB + 0x2000)
    rom = Ram(0x2000)
    rom.bytes[:4] = b"\1\2\3\4"
    machine.slots.put(16 * MIB, rom, readonly=True)
    assert machine.run() == MmioExit(16 * MIB, 4, is_write=True, data=b"\1\2\3\4")
    assert machine.run() == MmioExit(16 * MIB + 0x2000, 4, is_write=False)
    assert machine.run(b"\x07\0\0\0") == HltExit()
    assert machine.reg("rax") == 7


@engines
def test_a_page_fault_is_the_same_and_cr2_is_not_touched_before(monkeypatch, engine):
    monkeypatch.setattr(nested_walk, "NEEDED", 0)
    machine = Machine("long64", "48ff07" + "f4", engine=engine, rdi=1 << 40)  # inc qword [rdi]
    machine.poke(0x5000 + 14 * 16, struct.pack("<HHBBHII", 0x2000, 8, 0, 0x8E, 0, 0, 0))
    machine.poke(0x6008, struct.pack("<Q", 0x00AF9B000000FFFF))
    machine.poke(0x2000, "0f20d0" + "5b" + "f4")  # mov rax, cr2; pop rbx; hlt
    special = machine.cpu.special_registers()
    machine.cpu.set_special_registers(
        {
            "idt": {"base": 0x5000, "limit": 0xFFF},
            "gdt": {"base": 0x6000, "limit": 0x1F},
            "cr2": 0x1234,
            "cs": special["cs"],
        }
    )
    assert machine.run() == HltExit()
    assert (machine.reg("rax"), machine.reg("rbx")) == (1 << 40, 2)  # not present, a write


def test_guests_whose_data_could_be_executed_go_back_soon():
    machine, _ = machine_with_memory("fast", NEW_PAGES[:-2] + "488907ebfb")  # then: mov [rdi], rax; jmp to it
    for _ in range(2):
        machine.cpu.set_registers({"rip": ENTRY, "rdi": 16 * MIB, "rcx": PAGES - 1})
        thread = threading.Thread(target=machine.cpu.run, args=(0,))
        thread.start()
        time.sleep(0.3)
        machine.cpu.stop()
        thread.join()
    assert not walking(machine)


class TestTables:
    def memory(self, *slots):
        table = Slots()
        for gpa, ram, options in slots:
            table.put(gpa, ram, **options)
        memory = PhysicalMemory(table)
        memory.refresh()
        tables = NestedTables(memory)
        tables.clear()
        return tables

    def test_memory_is_granted_and_devices_are_not(self):
        tables = self.memory((0, Ram(0x3000), {}), (0x4000, Ram(0x1000), {"readonly": True}))
        assert tables.miss(0x2FFF, 2) is Answer.GO_ON
        assert tables.miss(0x3000, 0) is Answer.STEP
        assert tables.miss(0x4000, 2) is Answer.STEP
        assert tables.miss(0x4000, 0) is Answer.GIVE_UP  # it has an entry already: the walk should not have missed it

    def test_code_is_kept_from_being_written_once(self):
        tables = self.memory((0, Ram(4 * MIB), {}))
        assert tables.miss(2 * MIB, 0) is Answer.GO_ON
        assert tables.protect(2 * MIB)
        assert tables.miss(2 * MIB, 2) is Answer.WRITTEN
        assert tables.protect(2 * MIB)
        assert tables.miss(2 * MIB, 2) is Answer.STEP

    def test_what_cannot_be_said_is_given_up(self):
        shared = Ram(0x2000)
        tables = self.memory(
            (0, shared, {}), (4 * MIB, shared, {"offset": 0x1000}), (8 * MIB, Ram(4096), {"log_dirty": True})
        )
        assert tables.miss(0, 0) is Answer.GO_ON
        assert tables.miss(4 * MIB, 0) is Answer.GIVE_UP
        assert tables.miss(8 * MIB, 0) is Answer.GIVE_UP

    def test_where_a_page_is_comes_back(self):
        low, high = Ram(0x3000), Ram(0x5000)
        tables = self.memory((0, low, {}), (1 << 36, high, {}))
        tables.miss(0, 0)
        tables.miss(1 << 36, 0)
        assert tables.gpa_of(low.address + 0x2000) == 0x2000
        assert tables.gpa_of(high.address + 0x4000) == (1 << 36) + 0x4000


@pytest.mark.parametrize(
    ("place", "entry"),
    [
        pytest.param(TABLES, TABLES + 0x1163, id="global in the root"),
        pytest.param(TABLES + 0x1000, TABLES + 0x2163, id="global in the next level"),
    ],
)
def test_a_root_that_the_engine_would_take_is_not_given_to_it(monkeypatch, place, entry):
    monkeypatch.setattr(nested_walk, "NEEDED", 0)
    machine = Machine("long64", "f4")
    machine.poke(place, struct.pack("<Q", entry))
    machine.cpu.set_special_registers(special_registers("long64"))
    machine.run()
    assert not walking(machine)


def without_large_pages():
    """The CPUID of a CPU that knows no pages of 1 GiB."""
    return [
        replace(entry, edx=entry.edx & ~(1 << 26)) if entry.function == 0x80000001 else entry for entry in SUPPORTED
    ]


@engines
@pytest.mark.parametrize("large", [False, True])
def test_a_cpu_without_large_pages_is_walked_by_the_engine_unless_tables_have_one(engine, large):
    """The engine would take the entry, for which the CPU has a page fault."""
    machine, ram = machine_with_memory(engine)
    machine.cpu.set_cpuid(without_large_pages())
    if large:
        machine.poke(TABLES + 0x1008, struct.pack("<Q", 0xE3))  # the second GiB is the first
    while (exit := machine.cpu.run(0 if engine == "fast" else 1000)) is None:
        assert not (large and walking(machine))
    assert exit == HltExit()
    assert ram.bytes[::4096] == b"\x5a" * PAGES
    assert large == (machine.cpu._translator._walk._tables is None)


@engines
def test_tables_found_in_one_address_space_are_looked_at_again_when_it_comes_back(monkeypatch, engine):
    monkeypatch.setattr(nested_walk, "NEEDED", 1 << 30)
    # mov eax, [rdi]; mov cr3, r9; mov ebx, [rdi]; mov [rsi], r10; mov cr3, r8; mov ecx, [rdi]; hlt
    code = "8b07" + "410f22d9" + "8b1f" + "4c8916" + "410f22d8" + "8b0f" + "f4"
    other, at = 0xC000, 16 * MIB  # a second set of tables, and where both map two MiB
    machine = Machine("long64", code, engine=engine, rdi=at, r8=TABLES, r9=other, rsi=TABLES + 0x2000 + (at >> 21) * 8)
    for offset in (0, 0x1000):
        machine.poke(other + offset, struct.pack("<Q", other + offset + 0x1063))
    machine.poke(other + 0x2000, machine.peek(TABLES + 0x2000, 0x1000))
    rams = [Ram(2 * MIB) for _ in range(3)]
    for number, ram in enumerate(rams):
        machine.slots.put(at + number * 2 * MIB, ram)
        ram.bytes[:4] = struct.pack("<I", number)
    machine.poke(other + 0x2000 + (at >> 21) * 8, struct.pack("<Q", at + 2 * MIB | 0xE3))
    for first in (0, 2):
        machine.cpu.set_registers({"rip": ENTRY, "r10": at + 4 * MIB | 0xE3})
        assert machine.run() == HltExit()
        assert [machine.reg(name) for name in ("rax", "rbx", "rcx")] == [first, 1, 2]
