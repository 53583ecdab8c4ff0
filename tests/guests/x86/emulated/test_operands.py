"""How an operand in memory becomes exits: what is read and stored together, in which order, and how often."""

import struct

import pytest

from kickstand.core.run.exits import HltExit, IoExit, MmioExit, ShutdownExit
from tests.guests.x86.machine import ENTRY, HOLE, STACK, TABLES, Machine, modes, wide

OSFXSR = 0x200
VECTORS = (12, 13, 14)


def read(gpa, length):
    return MmioExit(gpa, length, is_write=False)


def write(gpa, data):
    return MmioExit(gpa, len(data), is_write=True, data=data)


@modes
def test_lock_neg_reads_and_writes_a_device_once(mode, engine):
    machine = Machine(mode, "f0" + wide(mode, "f71b") + "f4", engine=engine, rbx=HOLE)
    assert machine.run() == read(HOLE, 4)
    assert machine.run(struct.pack("<I", 5)) == write(HOLE, struct.pack("<i", -5))
    assert machine.run() == HltExit()
    assert machine.reg("rflags") & 0x8D5 == 0x91  # CF, AF and SF; 0xFB has an odd number of ones


@modes
def test_lock_neg_in_memory_leaves_the_flags_of_the_result(mode, engine):
    machine = Machine(mode, "f0" + wide(mode, "f71b") + "f4", engine=engine, rbx=0x4000)
    machine.poke(0x4000, struct.pack("<I", 5))
    assert machine.run() == HltExit()
    assert machine.peek(0x4000, 4) == struct.pack("<i", -5)
    assert machine.reg("rflags") & 0x8D5 == 0x91


@modes
def test_the_carry_outlives_pushf_directly_after_arithmetic(mode, engine):
    machine = Machine(mode, ("66" if mode == "real" else "") + "39c59cf4", engine=engine, rax=0xD8FA, rbp=0xFF)
    assert machine.run() == HltExit()
    assert machine.reg("rflags") & 1


@modes
def test_cmpxchg8b_changes_no_flag_but_zf(mode, engine):
    code = ("66" if mode == "real" else "") + "39cd" + wide(mode, "0fc70b") + "f4"  # cmp ebp, ecx
    machine = Machine(mode, code, engine=engine, rbx=0x4000, rbp=0, rcx=0x7F, rax=1)
    assert machine.run() == HltExit()
    assert machine.reg("rflags") & 0x8D5 == 0x95  # CF, PF, AF, SF of the comparison


@modes
@pytest.mark.parametrize("computation", ["39cd", "01cd", "29cd", "21cd", "f7dd", "45", "d1e5", "0fbae500"])
@pytest.mark.parametrize("equal", [True, False])
def test_cmpxchg8b_leaves_the_flags_of_any_computation_before_it(mode, engine, computation, equal):
    """cmp, add, sub, and, neg, inc, shl, bt of ebp; the processor changes ZF alone."""
    if mode == "long64" and computation == "45":
        computation = "ffc5"
    before, after = ("66" if mode == "real" else "") + computation, wide(mode, "0fc70b")
    values = []
    for code in (before, before + after, before + "90" + after):
        machine = Machine(mode, code + "f4", engine=engine, rbx=0x4000, rbp=0x7FFFFFFF, rcx=0x7F, rax=5, rdx=6)
        machine.poke(0x4000, struct.pack("<II", 5, 6 if equal else 7))
        assert machine.run() == HltExit()
        values.append(machine.reg("rflags"))
        if len(values) > 1:
            assert machine.peek(0x4000, 8) == struct.pack("<II", *((0x4000, 0x7F) if equal else (5, 7)))
            assert machine.reg("rdx") == (6 if equal else 7)
    assert values[1] == values[2] == values[0] & ~0x40 | equal << 6


@pytest.mark.parametrize("engine", ["precise", "fast"])
@pytest.mark.parametrize("equal", [True, False])
def test_cmpxchg16b_exchanges_sixteen_bytes(engine, equal):
    machine = Machine("long64", "39cd480fc70bf4", engine=engine, rbx=0x4000, rcx=3, rax=5, rdx=6, rbp=1)
    machine.poke(0x4000, struct.pack("<QQ", 5, 6 if equal else 7))
    assert machine.run() == HltExit()
    assert machine.peek(0x4000, 16) == struct.pack("<QQ", *((0x4000, 3) if equal else (5, 7)))
    assert machine.reg("rflags") & 0x8D5 == 0x91 | equal << 6  # 1 - 3: CF, AF, SF


@pytest.mark.parametrize("engine", ["precise", "fast"])
def test_cmpxchg16b_to_an_address_that_is_no_multiple_of_sixteen_is_a_fault(engine):
    machine = Machine("long64", "480fc70bf4", engine=engine, rbx=0x4008)
    assert machine.run() == ShutdownExit()
    assert machine.reg("rip") == ENTRY


@pytest.mark.parametrize("engine", ["precise", "fast"])
def test_push_of_a_segment_register_stores_16_bits_in_the_room_of_32(engine):
    machine = Machine("prot32", "1ef4", engine=engine)
    machine.poke(STACK - 4, "aabbccdd")
    assert machine.run() == HltExit()
    assert machine.reg("rsp") == STACK - 4
    assert machine.peek(STACK - 4, 4) == bytes.fromhex("1000ccdd")


def test_cmps_asks_for_its_source_first():
    machine = Machine("prot32", "a7f4", rsi=HOLE, rdi=HOLE + 0x100)
    assert machine.run() == read(HOLE, 4)
    assert machine.run(b"\1\0\0\0") == read(HOLE + 0x100, 4)
    assert machine.run(b"\2\0\0\0") == HltExit()
    assert machine.reg("rflags") & 1  # source below destination


def test_cmps_of_eight_bytes_asks_for_eight():
    machine = Machine("long64", "48a7f4", rsi=HOLE, rdi=0x4000)
    assert machine.run() == read(HOLE, 8)
    assert machine.run(bytes(8)) == HltExit()
    assert machine.reg("rflags") & 0x40


@modes
def test_a_far_pointer_is_one_read(mode, engine):
    code = ("67" if mode == "real" else "66") + "0fb40bf4"  # lfs cx, [ebx]
    machine = Machine(mode, code, engine=engine, rbx=HOLE, rcx=0)
    machine.cpu.set_special_registers({"gdt": {"base": 0x5000, "limit": 23}})
    machine.poke(0x5010, "ffff00000093cf00")
    assert machine.run() == read(HOLE, 4)
    assert machine.run(struct.pack("<HH", 0x1234, 0x10)) == HltExit()
    assert machine.reg("rcx") == 0x1234
    assert machine.cpu.special_registers()["fs"]["selector"] == 0x10


@pytest.mark.parametrize(
    ("at", "reads"),
    [
        (HOLE, [(HOLE, 8), (HOLE + 8, 8)]),
        (HOLE + 0xFFC, [(HOLE + 0xFFC, 4), (HOLE + 0x1000, 8), (HOLE + 0x1008, 4)]),
        (0xFFFC, [(0x10000, 8), (0x10008, 4)]),
    ],
)
def test_a_vector_is_one_read_cut_at_pages_and_at_eight_bytes(at, reads):
    machine = Machine("prot32", "0f1003" + "0f110500400000" + "f4", rbx=at)  # movups xmm0, [ebx]; movups [4000], xmm0
    machine.cpu.set_special_registers({"cr4": OSFXSR})
    machine.poke(0xFFFC, "01020304")
    reply = None
    for number, expected in enumerate(reads):
        assert machine.run(reply) == read(*expected)
        reply = bytes([number + 0x10]) * expected[1]
    assert machine.run(reply) == HltExit()
    known = b"" if at != 0xFFFC else bytes([1, 2, 3, 4])
    expected = known + b"".join(bytes([number + 0x10]) * size for number, (_, size) in enumerate(reads))
    assert machine.peek(0x4000, 16) == expected


def test_an_aligned_vector_move_that_is_not_aligned_faults_on_a_device():
    machine = Machine("prot32", "0f2903f4", rbx=HOLE + 8)
    machine.cpu.set_special_registers(
        {"cr4": OSFXSR, "gdt": {"base": 0x5000, "limit": 23}, "idt": {"base": 0x5100, "limit": 0xFF}}
    )
    machine.poke(0x5008, "ffff0000009bcf00")
    machine.poke(0x5100 + 13 * 8, struct.pack("<HHHH", 0x5800, 8, 0x8E00, 0))
    machine.poke(0x5800, "e60df4")
    assert machine.run() == IoExit("out", 1, 13, 1, b"\0")


def test_of_several_stores_to_a_device_only_the_last_is_seen():
    machine = Machine("prot32", "60f4", rsp=HOLE + 0x20, rdi=0xD1)
    assert machine.run() == write(HOLE, struct.pack("<I", 0xD1))
    assert machine.run() == HltExit()
    assert machine.reg("rsp") == HOLE


def test_a_store_to_memory_after_one_to_a_device_leaves_the_first_part_of_that_exit():
    machine = Machine("prot32", "60f4", rsp=0x10008, rax=1, rcx=2)
    assert machine.run() == write(0x10000, struct.pack("<I", 2))
    assert machine.run() == HltExit()
    assert machine.reg("rsp") == 0x10008 - 0x20


def long_machine(code, **regs):
    machine = Machine("long64", code, **regs)
    machine.poke(TABLES + 0x2008, struct.pack("<Q", 0))  # nothing at 2 MiB
    machine.cpu.set_special_registers({"gdt": {"base": 0x5000, "limit": 23}, "idt": {"base": 0x5100, "limit": 0xFFF}})
    machine.poke(0x5008, "ffff0000009baf00")
    for vector in VECTORS:
        machine.poke(0x5100 + vector * 16, struct.pack("<HHHHQ", 0x5800 + 4 * vector, 8, 0x8E00, 0, 0))
        machine.poke(0x5800 + 4 * vector, bytes([0xE6, vector, 0xF4]))
    return machine


@pytest.mark.parametrize("code", ["830301", "f0830301", "0fc103", "8703", "0fab03", "d103", "f71b", "0fb103"])
def test_the_page_fault_of_a_read_modify_write_is_one_of_a_write(code):
    machine = long_machine(code, rbx=2 << 20)
    assert machine.run() == IoExit("out", 1, 14, 1, b"\0")
    assert machine.peek(machine.reg("rsp"), 8) == struct.pack("<Q", 2)


@pytest.mark.parametrize("code", ["8b03", "833b01", "3903", "0fa303", "f60301"])
def test_the_page_fault_of_a_read_is_one_of_a_read(code):
    machine = long_machine(code, rbx=2 << 20)
    assert machine.run() == IoExit("out", 1, 14, 1, b"\0")
    assert machine.peek(machine.reg("rsp"), 8) == bytes(8)


def test_a_pop_from_an_address_that_is_not_canonical_is_a_stack_fault():
    machine = long_machine("c9f4", rbp=1 << 60)
    assert machine.run() == IoExit("out", 1, 12, 1, b"\0")


def test_other_accesses_there_are_protection_faults():
    machine = long_machine("8b03f4", rbx=1 << 60)
    assert machine.run() == IoExit("out", 1, 13, 1, b"\0")


def test_the_fpu_starts_as_after_power_on():
    machine = Machine("prot32", "d93d00400000" + "0fae1d04400000" + "f4")  # fnstcw [4000]; stmxcsr [4004]
    machine.cpu.set_special_registers({"cr4": OSFXSR})
    assert machine.run() == HltExit()
    assert machine.peek(0x4000, 8) == struct.pack("<HHI", 0x37F, 0, 0x1F80)


@pytest.mark.parametrize("engine", ["precise", "fast"])
@pytest.mark.parametrize(
    ("code", "popped"),
    [("cb", "09100000"), ("66cb", "0910000000000000"), ("ca0600", "09100000")],
    ids=["16", "32", "n"],
)
def test_a_far_return_of_real_mode_may_pop_from_two_pages(engine, code, popped):
    size = len(popped) // 2
    top = STACK - size // 2
    machine = Machine("real", code, engine=engine, rsp=top)
    machine.poke(top, popped)
    machine.poke(0x1009, "f4")
    assert machine.run() == HltExit()
    assert (machine.reg("rip"), machine.reg("rsp")) == (0x100A, top + size + (6 if code == "ca0600" else 0))


def test_registers_set_while_a_read_waits_do_not_change_its_instruction_but_lose_its_result():
    machine = Machine("prot32", "010bf4", rbx=HOLE, rcx=5)  # add [ebx], ecx
    assert machine.run() == read(HOLE, 4)
    machine.cpu.set_registers({"rbx": 0x2000, "rcx": 7, "rip": 0x3000})
    assert machine.run(b"\1\0\0\0") == write(HOLE, b"\6\0\0\0")
    assert machine.run() == HltExit()
    assert (machine.reg("rip"), machine.reg("rbx"), machine.reg("rcx")) == (ENTRY + 3, 0x2000, 7)
    machine = Machine("prot32", "8b03f4", rbx=HOLE)  # mov eax, [ebx]
    assert machine.run() == read(HOLE, 4)
    machine.cpu.set_registers({"rax": 9, "rip": 0x3000})
    machine.cpu.load(machine.cpu.state())
    assert machine.run(b"\1\0\0\0") == HltExit()
    assert (machine.reg("rip"), machine.reg("rax")) == (ENTRY + 3, 9)
