"""String instructions and wide accesses on devices: what exits, in which order, and what is left half done."""

import pytest

from kickstand.core.run.exits import HltExit, IoExit, MmioExit, ShutdownExit
from tests.guests.x86.machine import ENTRY, HOLE, Machine, Ram, modes

PORT = 0x60


@modes
def test_rep_outs_exits_per_element_with_its_registers_written(mode, engine):
    machine = Machine(mode, "f36ef4", engine=engine, rsi=0x4000, rcx=3, rdx=PORT)
    machine.poke(0x4000, b"abc")
    for index, byte in enumerate((b"a", b"b", b"c")):
        assert machine.run() == IoExit("out", 1, PORT, 1, byte)
        assert machine.reg("rcx") == 2 - index
        assert machine.reg("rsi") == 0x4001 + index
    assert machine.run() == HltExit()


@modes
def test_rep_ins_asks_for_one_element_per_byte_left_in_the_page(mode, engine):
    machine = Machine(mode, "f36df4", engine=engine, rdi=0x4FFE, rcx=5, rdx=PORT)
    size = 2 if mode == "real" else 4
    data = bytes(range(1, 5 * size + 1))
    assert machine.run() == IoExit("in", size, PORT, 2)
    assert machine.cpu.complete(data[: 2 * size]) is None
    assert machine.reg("rcx") == 3
    assert machine.reg("rip") == ENTRY
    assert machine.run() == IoExit("in", size, PORT, 3)
    assert machine.run(data[2 * size :]) == HltExit()
    assert machine.peek(0x4FFE, len(data)) == data


@pytest.mark.parametrize(
    ("rdi", "count", "exits"),
    [(0x2BF1, 5, [5]), (0x2FF1, 20, [15, 5]), (0x2FFE, 3, [2, 1]), (0x2FFC, 300, [4, 256, 40])],
)
def test_rep_insd_counts_as_kvm_does(rdi, count, exits):
    machine = Machine("prot32", "f36df4", rdi=rdi, rcx=count, rdx=PORT)
    for elements in exits:
        assert machine.run() == IoExit("in", 4, PORT, elements)
        machine.cpu.complete(bytes(4 * elements))
    assert machine.run() == HltExit()


@modes
@pytest.mark.parametrize(
    ("code", "exit"),
    [
        ("f36d", IoExit), ("f36e", IoExit), ("f3a5", MmioExit), ("f3ab", MmioExit), ("f3ad", MmioExit),
    ],
)  # fmt: skip
def test_a_repeated_instruction_is_left_by_the_guest_when_its_count_is_zero(mode, engine, code, exit):
    prefix = "67" if mode == "real" else ""
    rdi = 0x4000 if exit is IoExit else HOLE
    rsi = HOLE if code == "f3ad" else 0x4000
    machine = Machine(mode, prefix + code + "f4", engine=engine, rdi=rdi, rsi=rsi, rcx=1, rdx=PORT)
    assert isinstance(machine.run(), exit)
    assert machine.cpu.complete(bytes(4)) is None
    assert (machine.reg("rcx"), machine.reg("rip"), machine.reg("rflags")) == (0, ENTRY, 0x10002)
    assert machine.run() == HltExit()
    assert (machine.reg("rip"), machine.reg("rflags")) == (ENTRY + len(prefix + code) // 2 + 1, 2)


@modes
def test_rep_ins_reads_at_most_1024_bytes_at_once(mode, engine):
    machine = Machine(mode, "f36cf4", engine=engine, rdi=0x4000, rcx=1500, rdx=PORT)
    assert machine.run() == IoExit("in", 1, PORT, 1024)
    assert machine.run(bytes(1024)) == IoExit("in", 1, PORT, 476)


@modes
def test_ins_downwards_stores_each_element_below_the_last(mode, engine):
    machine = Machine(mode, "fdf36cf4", engine=engine, rdi=0x4002, rcx=2, rdx=PORT)
    assert machine.run() == IoExit("in", 1, PORT, 2)
    assert machine.run(b"ab") == HltExit()
    assert machine.peek(0x4001, 2) == b"ba"
    assert machine.reg("rdi") == 0x4000


@modes
def test_ins_into_a_hole_goes_on_as_mmio_of_at_most_eight_bytes(mode, engine):
    prefix = "67" if mode == "real" else ""
    machine = Machine(mode, prefix + "f36cf4", engine=engine, rdi=HOLE, rcx=10, rdx=PORT)
    assert machine.run() == IoExit("in", 1, PORT, 10)
    assert machine.run(b"0123456789") == MmioExit(HOLE, 8, is_write=True, data=b"01234567")
    assert machine.run() == MmioExit(HOLE + 8, 2, is_write=True, data=b"89")
    assert machine.run() == HltExit()


@modes
def test_outs_from_a_hole_reads_it_first(mode, engine):
    prefix = "67" if mode == "real" else ""
    machine = Machine(mode, prefix + "6ef4", engine=engine, rsi=HOLE, rdx=PORT)
    assert machine.run() == MmioExit(HOLE, 1, is_write=False)
    assert machine.run(b"x") == IoExit("out", 1, PORT, 1, b"x")
    assert machine.run() == HltExit()
    assert machine.reg("rsi") == HOLE + 1


@modes
def test_a_repeated_port_string_with_count_zero_does_nothing(mode, engine):
    machine = Machine(mode, "f36ef36cf4", engine=engine, rsi=0x4000, rdi=0x4000, rcx=0)
    assert machine.run() == HltExit()


@modes
def test_the_emulator_reads_a_repeated_move_from_a_hole_to_its_end(mode, engine):
    prefix = "67" if mode == "real" else ""
    machine = Machine(mode, prefix + "f3a4f4", engine=engine, rsi=HOLE, rdi=0x4000, rcx=3)
    assert machine.run() == MmioExit(HOLE, 1, is_write=False)
    # Completing an element begins the next one: EMULATION_RESTART, without entering the guest.
    assert machine.cpu.complete(b"a") == MmioExit(HOLE + 1, 1, is_write=False)
    assert machine.cpu.complete(b"b") == MmioExit(HOLE + 2, 1, is_write=False)
    assert machine.cpu.complete(b"c") is None
    assert machine.reg("rcx") == 0
    assert machine.run() == HltExit()
    assert machine.peek(0x4000, 3) == b"abc"


@modes
def test_a_repeated_store_to_a_hole_enters_the_guest_for_each_element(mode, engine):
    prefix = "67" if mode == "real" else ""
    machine = Machine(mode, prefix + "f3aaf4", engine=engine, rdi=HOLE, rcx=2, rax=0x3C)
    assert machine.run() == MmioExit(HOLE, 1, is_write=True, data=b"\x3c")
    assert machine.cpu.complete(None) is None
    assert (machine.reg("rcx"), machine.reg("rip")) == (1, ENTRY)
    assert machine.run() == MmioExit(HOLE + 1, 1, is_write=True, data=b"\x3c")
    assert machine.run() == HltExit()


@modes
def test_a_repeated_move_starts_in_memory_and_ends_in_the_hole(mode, engine):
    prefix = "67" if mode == "real" else ""
    machine = Machine(mode, prefix + "f3a4f4", engine=engine, rsi=0x4000, rdi=0xFFFE, rcx=3)
    machine.poke(0x4000, b"abc")
    assert machine.run() == MmioExit(0x10000, 1, is_write=True, data=b"c")
    assert machine.peek(0xFFFE, 2) == b"ab"
    assert machine.run() == HltExit()


@modes
def test_a_repeated_compare_stops_at_the_first_difference(mode, engine):
    prefix = "67" if mode == "real" else ""
    machine = Machine(mode, prefix + "f3aef4", engine=engine, rdi=HOLE, rcx=5, rax=0x41)
    assert machine.run() == MmioExit(HOLE, 1, is_write=False)
    assert machine.run(b"A") == MmioExit(HOLE + 1, 1, is_write=False)
    assert machine.run(b"B") == HltExit()
    assert machine.reg("rcx") == 3


def test_a_read_across_two_pages_of_a_hole_is_two_exits():
    machine = Machine("long64", "488b03f4", rbx=HOLE + 0xFFD)
    assert machine.run() == MmioExit(HOLE + 0xFFD, 3, is_write=False)
    assert machine.run(b"abc") == MmioExit(HOLE + 0x1000, 5, is_write=False)
    assert machine.run(b"defgh") == HltExit()
    assert machine.reg("rax").to_bytes(8, "little") == b"abcdefgh"


def test_virtual_pages_side_by_side_may_be_far_apart():
    machine = Machine("long64", "488903f4", rbx=0x3FFFFC, rax=0x8877665544332211)
    table = 0xB000  # 0x200000 stays a 2 MiB page, but its last 4 KiB page goes to a hole
    machine.poke(0xA008, (table | 0x63).to_bytes(8, "little"))
    entries = [(0x3000 | 0x63) if n == 511 else (n << 12 | 0x63) for n in range(512)]
    machine.poke(table, b"".join(entry.to_bytes(8, "little") for entry in entries))
    machine.poke(0xA010, (0x400000 | 0xE3).to_bytes(8, "little"))
    assert machine.run() == MmioExit(0x400000, 4, is_write=True, data=b"\x55\x66\x77\x88")
    assert machine.peek(0x3FFC, 4) == b"\x11\x22\x33\x44"


@pytest.mark.parametrize(
    ("code", "replies", "writes"),
    [
        ("ff33", [b"12345678"], []),  # push [hole]
        ("8f03", [], [b"stacked!"]),  # pop [hole]
        ("f0480fc70b", [b"\0" * 8, b"\0" * 8], [HOLE.to_bytes(8, "little"), b"\0" * 8]),  # lock cmpxchg16b
        ("f30f7f03", [], [b"\0" * 8, b"\0" * 8]),  # movdqu
        ("0f94c00f9403", [], [b"\0"]),  # sete [hole]
        ("480fc103", [b"\x01" + b"\0" * 7], [b"\x01" + b"\0" * 7]),  # xadd
    ],
)
def test_any_instruction_can_meet_a_device(code, replies, writes):
    machine = Machine("long64", code + "f4", rbx=HOLE)
    machine.poke(0x7000, b"stacked!")
    machine.cpu.set_special_registers({"cr4": 0x620})
    exit = machine.run()
    for reply in replies:
        assert isinstance(exit, MmioExit)
        assert not exit.is_write
        exit = machine.run(reply)
    for data in writes:
        assert isinstance(exit, MmioExit)
        assert exit.data == data
        exit = machine.run()
    assert exit == HltExit()


def test_what_userspace_does_not_answer_is_what_the_shared_page_holds():
    machine = Machine("prot32", "89038b0b8b13f4", rbx=HOLE, rax=0x04030201)
    machine.run()
    assert machine.run() == MmioExit(HOLE, 4, is_write=False)
    machine.run()
    assert machine.run(b"\x0a") == HltExit()
    assert machine.reg("rcx") == 0x04030201
    assert machine.reg("rdx") == 0x0403020A


def test_a_port_read_without_an_answer_gives_zero():
    machine = Machine("prot32", "e460f4", rax=0xFF)
    machine.run()
    assert machine.run() == HltExit()
    assert machine.reg("rax") == 0


def test_completing_a_read_does_not_look_at_the_slots_again():
    machine = Machine("prot32", "8b038b0bf4", rbx=HOLE)
    assert machine.run() == MmioExit(HOLE, 4, is_write=False)
    page = Ram(0x1000)
    page.bytes[:4] = b"\x33\x33\x33\x33"
    machine.slots.put(HOLE, page)
    assert machine.run(b"\x01\0\0\0") == HltExit()
    assert (machine.reg("rax"), machine.reg("rcx")) == (1, 0x33333333)


def test_the_part_in_memory_is_read_before_the_exit_and_not_again():
    machine = Machine("prot32", "8b03f4", rbx=0xFFFE)
    machine.poke(0xFFFE, b"\x11\x22")
    assert machine.run() == MmioExit(0x10000, 2, is_write=False)
    machine.poke(0xFFFE, b"\x99\x99")
    assert machine.run(b"\x33\x44") == HltExit()
    assert machine.reg("rax") == 0x44332211


@pytest.mark.parametrize("engine", ["precise", "fast"])
def test_ins_reads_its_port_before_it_looks_at_its_target(engine):
    machine = Machine("long64", "6cf4", engine=engine, rdi=0x4800_0000_0000, rdx=PORT)
    assert machine.run() == IoExit("in", 1, PORT, 1)
    assert machine.run(b"x") == ShutdownExit()  # a page fault that cannot be delivered
    assert machine.cpu.special_registers()["cr2"] == 0x4800_0000_0000


@modes
def test_ins_downwards_into_a_hole_forgets_what_it_read_ahead(mode, engine):
    prefix = "67" if mode == "real" else ""
    machine = Machine(mode, "fd" + prefix + "f36cf4", engine=engine, rdi=HOLE + 5, rcx=3, rdx=PORT)
    assert machine.run() == IoExit("in", 1, PORT, 3)
    assert machine.run(b"abc") == MmioExit(HOLE + 5, 1, is_write=True, data=b"a")
    assert machine.run() == IoExit("in", 1, PORT, 2)


@pytest.mark.parametrize(("left", "written"), [(1, 1), (0, 1), (600, 600), (4000, 1024)])
def test_ins_goes_on_with_the_count_that_userspace_leaves_in_rcx(left, written):
    machine = Machine("prot32", "f36cf4", rdi=0x4000, rcx=3, rdx=0x80)
    machine.poke(0x4000, b"\xee" * 0x1000)
    assert machine.run() == IoExit("in", 1, 0x80, 3)
    machine.cpu.set_registers({"rcx": left})
    assert machine.cpu.complete(b"abc") is None
    assert machine.peek(0x4000, written) == b"abc"[:written].ljust(written, b"\0")
    assert machine.peek(0x4000 + written, 1) == b"\xee"
    assert machine.reg("rdi") == 0x4000 + written
    assert machine.reg("rcx") == (left - written) & 0xFFFFFFFF
