"""Guest memory as the CPU keeps it in view: slots that change, code that is rewritten, logs, sharing."""

import struct
import time
from pathlib import Path

import pytest

from kickstand.core.run.exits import HltExit, InternalErrorExit, IoExit, MmioExit, ShutdownExit
from kickstand.guests.x86.cpu import X86Cpu
from kickstand.guests.x86.translated import nested_walk
from tests.guests.x86.machine import ENTRY, HOLE, NO_BYTES, TABLES, Machine, Ram, modes, special_registers, wide
from tests.long import either


@pytest.fixture(autouse=True, params=[1, 0], ids=["virtual TLB", "own walk"])
def walk(request, monkeypatch):
    """Who walks the pages."""
    monkeypatch.setattr(nested_walk, "NEEDED", request.param)


@modes
def test_code_rewritten_by_the_host_is_seen(mode, engine):
    machine = Machine(mode, "b001e642f4", engine=engine)
    assert machine.run() == IoExit("out", 1, 0x42, 1, b"\x01")
    assert machine.run() == HltExit()
    machine.poke(ENTRY + 1, b"\x02")
    machine.cpu.set_registers({"rip": ENTRY})
    assert machine.run() == IoExit("out", 1, 0x42, 1, b"\x02")


@modes
def test_an_instruction_that_becomes_port_io_stops(mode, engine):
    machine = Machine(mode, "9090b001f4", engine=engine)
    assert machine.run() == HltExit()
    machine.poke(ENTRY, "e642")
    machine.cpu.set_registers({"rip": ENTRY})
    assert machine.run() == IoExit("out", 1, 0x42, 1, b"\x01")


@modes
def test_a_guest_that_writes_port_io_into_its_own_code_stops_there(mode, engine):
    store = "66c70342ee" if mode != "real" else "67c70342ee"
    # Twice over the same code: first harmless (inc), then rewritten to "out dx, al" before it runs again.
    code = store.replace("42ee", "90ee") + "ffe1"
    machine = Machine(mode, code, engine=engine, rbx=0x1010, rcx=0x1010, rdx=0x42)
    machine.poke(0x1010, "9090f4")
    machine.cpu.set_registers({"rip": 0x1010})
    assert machine.run() == HltExit()
    machine.cpu.set_registers({"rip": ENTRY})
    assert machine.run() == IoExit("out", 1, 0x42, 1, b"\x00")


def test_code_written_through_another_virtual_address_is_seen():
    store = "c603ee"  # mov byte [rbx], "out dx, al"
    machine = Machine("long64", store + "ffe1", rbx=0x200000 + 0x3000, rcx=0x3000, rdx=0x42)
    machine.poke(TABLES + 0x2008, struct.pack("<Q", 0xE3))  # the second 2 MiB are the first
    machine.poke(0x3000, "90f4")
    machine.cpu.set_registers({"rip": 0x3000})
    assert machine.run() == HltExit()
    machine.cpu.set_registers({"rip": ENTRY})
    assert machine.run() == IoExit("out", 1, 0x42, 1, b"\x00")


def test_self_modifying_code_in_a_loop_runs_the_new_code():
    # 1000: inc eax; mov byte [1000+1-1+...]: turns "inc eax" (40) into "dec eax" (48) after the first round
    machine = Machine("prot32", "40c6030049" + "75f9f4", rbx=ENTRY, rcx=3)
    machine.poke(ENTRY, "40" + "c60348" + "49" + "75f9" + "f4")
    assert machine.run() == HltExit()
    assert machine.reg("rax") == (1 - 2) & 0xFFFFFFFF


def test_port_io_that_begins_on_one_page_and_ends_on_the_next_stops():
    machine = Machine("prot32", "66", entry=0x1FFF, rax=0x1234)
    machine.poke(0x2000, "e742f4")
    assert machine.run() == IoExit("out", 2, 0x42, 1, b"\x34\x12")
    assert machine.run() == HltExit()


@modes
def test_port_io_at_the_start_of_a_page_stops_when_code_runs_into_it(mode, engine):
    machine = Machine(mode, "fec0" * 8, engine=engine, entry=0x1FF0)
    machine.poke(0x2000, "e642fec0f4")
    for _ in range(2):
        machine.cpu.set_registers({"rip": 0x1FF0, "rax": 0})
        assert machine.run() == IoExit("out", 1, 0x42, 1, b"\x08")
        assert machine.run() == HltExit()
        assert machine.reg("rax") == 9


def test_bytes_that_look_like_port_io_inside_an_instruction_do_not_stop():
    machine = Machine("prot32", "b8eeeeeeee" + "40" + "f4")
    assert machine.run() == HltExit()
    assert machine.reg("rax") == 0xEEEEEEEF


@modes
def test_a_slot_deleted_under_a_running_guest_is_gone_at_once(mode, engine):
    machine = Machine(mode, wide(mode, "8b03") + "e642" + wide(mode, "8b03") + "f4", engine=engine, rbx=HOLE)
    page = Ram(0x1000)
    machine.slots.put(HOLE, page)
    assert machine.run() == IoExit("out", 1, 0x42, 1, b"\0")
    machine.slots.remove(HOLE)
    assert machine.run() == MmioExit(HOLE, 4, is_write=False)


def test_when_the_slot_with_the_code_goes_the_next_fetch_fails():
    machine = Machine("prot32", "ebfe")
    assert machine.cpu.run(100) is None
    machine.slots.remove(0)
    assert machine.run() == InternalErrorExit(data=NO_BYTES, gpa=ENTRY)


def test_a_slot_that_moves_takes_its_memory_along():
    machine = Machine("prot32", "8b038b09f4", rbx=HOLE, rcx=HOLE + 0x1000)
    page = Ram(0x1000)
    page.bytes[:4] = b"\x07\0\0\0"
    machine.slots.put(HOLE, page)
    machine.cpu.run(1)
    machine.slots.remove(HOLE)
    machine.slots.put(HOLE + 0x1000, page)
    assert machine.run() == HltExit()
    assert machine.reg("rcx") == 7


def test_two_slots_may_share_host_memory_even_partly():
    machine = Machine("prot32", "8903" + "8b09" + "f4", rbx=HOLE + 0x1000, rcx=0x30000, rax=0x55)
    pages = Ram(0x3000)
    machine.slots.put(HOLE, pages, size=0x2000)
    machine.slots.put(0x30000, pages, offset=0x1000)
    assert machine.run() == HltExit()
    assert machine.reg("rcx") == 0x55


@modes
def test_each_logged_page_is_reported_when_it_is_first_written(mode, engine):
    machine = Machine(mode, wide(mode, "8b03") + wide(mode, "8903") * 2 + "f4", engine=engine, rbx=HOLE + 0xFFE)
    machine.slots.put(HOLE, Ram(0x3000), log_dirty=True)
    assert machine.run() == HltExit()
    assert set(machine.slots.dirty) == {HOLE, HOLE + 0x1000}


def test_a_page_is_reported_again_after_the_log_was_fetched():
    machine = Machine("prot32", "8903f48903f4", rbx=HOLE)
    machine.slots.put(HOLE, Ram(0x1000), log_dirty=True)
    machine.run()
    assert machine.slots.dirty == [HOLE]
    machine.slots.fetch_dirty()
    machine.run()
    assert machine.slots.dirty == [HOLE]


def test_reading_does_not_make_a_page_dirty():
    machine = Machine("prot32", "8b03f4", rbx=HOLE)
    machine.slots.put(HOLE, Ram(0x1000), log_dirty=True)
    machine.run()
    assert machine.slots.dirty == []


def test_ins_and_the_memory_part_of_a_straddling_write_are_logged():
    machine = Machine("prot32", "6c8903f4", rdi=HOLE, rbx=HOLE + 0xFFE, rdx=0x60)
    machine.slots.put(HOLE, Ram(0x1000), log_dirty=True)
    machine.run()
    assert machine.slots.dirty == []
    assert machine.run(b"x") == MmioExit(HOLE + 0x1000, 2, is_write=True, data=b"\0\0")
    assert set(machine.slots.dirty) == {HOLE}


def test_two_cpus_see_each_others_writes_and_code():
    first = Machine("prot32", "c6032af4", rbx=0x4000)
    second = X86Cpu(first.slots)
    second.set_special_registers(special_registers("prot32"))
    first.poke(0x2000, "8a03e642f4")
    second.set_registers({"rip": 0x2000, "rbx": 0x4000, "rflags": 2})
    assert second.run(100) == IoExit("out", 1, 0x42, 1, b"\0")
    assert first.run() == HltExit()
    second.complete(None)
    second.set_registers({"rip": 0x2000})
    assert second.run(100) == IoExit("out", 1, 0x42, 1, b"\x2a")
    first.cpu.set_registers({"rip": ENTRY, "rbx": 0x2003})  # rewrites the port number
    first.run()
    second.complete(None)
    second.set_registers({"rip": 0x2000})
    assert second.run(100) == IoExit("out", 1, 0x2A, 1, b"\x2a")


def test_a_closed_cpu_keeps_its_registers_and_can_run_again():
    machine = Machine("prot32", "404040f4")
    machine.cpu.run(1)
    machine.cpu.close()
    assert machine.run() == HltExit()
    assert machine.reg("rax") == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        pytest.param("830500180000" + "01ebf7", id="a guest that writes to its own code page"),  # add dword [0x1800], 1
        pytest.param("a100200000" + "a3f02f0000" + "49" + "ebf3", id="a loop that is left in its middle"),
    ],
)
def test_slices_do_not_take_more_and_more_memory(code):
    machine = Machine("prot32", code, engine="precise")

    def resident_after(slices):
        for _ in range(slices):
            assert machine.cpu.run(101) is None
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident_after(either(2_000, 3_000))  # room for translated code grows in steps of 2 MB
    assert resident_after(either(5_000, 12_000)) - before < 3 << 20


def test_a_guest_that_misses_the_tlb_at_every_access_gives_the_loop_back_early():
    # mov [ebx], al; add ebx, 4096; cmp ebx, 16 MiB; jne; hlt: one page after the other, three instructions each
    machine = Machine("prot32", "8803" + "81c300100000" + "81fb00000001" + "75f0" + "f4", rbx=0x100000, rax=0x5A)
    large = Ram(15 << 20)
    machine.slots.put(0x100000, large)
    longest, exit = 0.0, None
    while exit is None:
        began = time.thread_time()
        exit = machine.cpu.run(1 << 20)
        longest = max(longest, time.thread_time() - began)
    assert exit == HltExit()
    assert large.bytes[::4096] == b"\x5a" * (15 << 8)
    assert longest < 0.05


def test_a_large_page_that_the_guest_changes_is_another_for_the_parts_it_has_not_touched():
    # Store; then the page is changed; store to another part; then it is gone; store to a third.
    machine = Machine(
        "long64", "8803" + "488911" + "8806" + "488939" + "418800" + "f4",
        rax=0x5A, rbx=0x204000, rcx=TABLES + 0x2008, rdx=0x4000E3, rsi=0x205000, rdi=0, r8=0x206000,
    )  # fmt: skip
    there = Ram(1 << 16)
    machine.slots.put(0x400000, there)
    machine.poke(TABLES + 0x2008, struct.pack("<Q", 0xE3))  # the second 2 MiB are the first
    assert machine.run() == ShutdownExit()  # the third store finds nothing, and there is no handler
    assert (machine.peek(0x4000, 1), bytes(there.bytes[0x5000:0x5001])) == (b"\x5a", b"\x5a")
    assert machine.peek(TABLES + 0x2008, 8) == bytes(8)
    assert not machine.peek(0x5000, 1).strip(b"\0")
    assert not any(there.bytes[0x6000:])


def test_the_first_store_to_a_large_page_marks_it_and_reads_before_do_not():
    # mov al, [rbx]; mov rdx, [rcx]; mov [rsi], al; mov rdi, [rcx]; hlt
    machine = Machine(
        "long64", "8a03" + "488b11" + "8806" + "488b39" + "f4", rbx=0x204000, rcx=TABLES + 0x2008, rsi=0x205000
    )
    machine.poke(TABLES + 0x2008, struct.pack("<Q", 0x83))
    assert machine.run() == HltExit()
    assert (machine.reg("rdx"), machine.reg("rdi")) == (0xA3, 0xE3)


def test_page_tables_in_a_logged_slot_are_logged_when_they_are_marked():
    # mov [rbx], al; add rbx, 4096; dec rcx; jnz; hlt
    machine = Machine("long64", "88034881c30010000048ffc975f2f4", rbx=2 << 20, rcx=4)
    tables, table = Ram(0x1000), 0x100000
    machine.slots.put(table, tables, log_dirty=True)
    machine.slots.put(2 << 20, Ram(0x10000))
    for number in range(16):
        tables.bytes[8 * number : 8 * number + 8] = struct.pack("<Q", (2 << 20) + number * 4096 | 3)
    machine.poke(TABLES + 0x2008, struct.pack("<Q", table | 0x23))
    for _ in range(2):  # the second time in pages whose table is known
        assert machine.run() == HltExit()
        assert set(machine.slots.fetch_dirty()) == {table}
        machine.cpu.set_registers({"rip": ENTRY, "rcx": 4})
    entries = struct.unpack("<10Q", tables.bytes[:80])
    assert [entry & 0x60 for entry in entries] == [0x60] * 8 + [0] * 2
