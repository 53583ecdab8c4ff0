"""Interrupts, exceptions and system calls: how handlers are entered and left."""

import struct

import pytest

from kickstand.core.errors import KvmError
from kickstand.core.run.exits import HltExit, InternalErrorExit, IoExit, MmioExit, ShutdownExit, WindowExit
from tests.guests.x86.handlers import (
    DESCRIPTORS,
    HANDLER,
    IRET,
    TASK,
    USER_CODE,
    USER_DATA,
    VECTORS,
    frame,
    gate_table,
    machine_with_handlers,
    user_machine,
)
from tests.guests.x86.machine import ENTRY, HOLE, NO_BYTES, STACK, TABLES, Machine, Ram, modes


@modes
def test_a_divide_error_returns_to_the_instruction(mode, engine):
    machine = machine_with_handlers(mode, "f6f1f4", {0: "b101" + IRET[mode]}, engine=engine, rax=6)
    assert machine.run() == HltExit()
    assert machine.reg("rax") & 0xFF == 6
    assert machine.reg("rsp") == STACK


@modes
def test_a_software_interrupt_returns_behind_itself(mode, engine):
    machine = machine_with_handlers(
        mode, "cd20ccf4", {0x20: "b007" + IRET[mode], 3: "b308" + IRET[mode]}, engine=engine
    )
    assert machine.run() == HltExit()
    assert machine.reg("rip") == ENTRY + 4
    assert (machine.reg("rax"), machine.reg("rbx")) == (7, 8)


@modes
def test_an_undefined_instruction_directly_after_sti_is_reported(mode, engine):
    machine = machine_with_handlers(mode, "fb0f0b", {6: "f4"}, engine=engine)
    assert machine.run() == HltExit()
    assert frame(machine, 1) == [ENTRY + 1]


@modes
@pytest.mark.parametrize("code", ["f090", "f001c8", "f03908"])  # nop; add to a register; cmp
def test_lock_where_nothing_is_modified_in_memory_is_undefined(mode, engine, code):
    machine = machine_with_handlers(mode, "40" * (mode != "long64") + code, {6: "f4"}, engine=engine, rbx=0x2000)
    assert machine.run() == HltExit()
    assert frame(machine, 1) == [ENTRY + (mode != "long64")]


@modes
@pytest.mark.parametrize("prefix", ["", "2e", "66"])
@pytest.mark.parametrize("code", ["c5f877", "c5f890c1", "c4e27100c2", "8fe97801c1"])  # vzeroupper, kmovw, vpshufb, xop
def test_vector_extensions_that_the_cpu_does_not_have_are_undefined(mode, engine, prefix, code):
    machine = machine_with_handlers(mode, "90" + prefix + code + "f4", {6: "f4"}, engine=engine)
    assert machine.run() == HltExit()
    assert frame(machine, 1) == [ENTRY + 1]


@pytest.mark.parametrize("engine", ["precise", "fast"])
@pytest.mark.parametrize("mode", ["prot32", "long64"])
def test_bit_manipulation_and_far_pointers_are_none_of_these(mode, engine):
    far = "c41d00200000" if mode == "prot32" else ""  # les ebx,[0x2000]
    machine = machine_with_handlers(mode, "c4e270f3c9" + "c4e37bf0d105" + far + "f4", {6: "f4"}, engine=engine, rcx=6)
    assert machine.run() == HltExit()
    assert machine.reg("rip") == ENTRY + (18 if far else 12)
    assert machine.reg("rcx") == 4


@modes
def test_lock_on_an_operand_in_memory_that_is_modified_is_allowed(mode, engine):
    machine = machine_with_handlers(
        mode, "f0010f" + "f4", {6: "b8ffff0000f4"}, engine=engine, rcx=5, rbx=0x2000, rdi=0x2000
    )
    assert machine.run() == HltExit()
    assert machine.reg("rip") == ENTRY + 4


@modes
@pytest.mark.parametrize("instruction", ["0f32", "0f30"])
def test_a_model_specific_register_that_nobody_knows_is_a_protection_fault(mode, engine, instruction):
    machine = machine_with_handlers(mode, instruction, {13: "f4"}, engine=engine, rcx=0x12345)
    assert machine.run() == HltExit()
    words = frame(machine, 2)
    assert words[0] == ENTRY if mode == "real" else words == [0, ENTRY]


@modes
def test_an_interrupt_is_delivered_before_the_next_instruction(mode, engine):
    machine = machine_with_handlers(mode, "f4", {0x20: "b001e642" + IRET[mode]}, engine=engine, rflags=0x202)
    machine.cpu.interrupt(0x20)
    assert machine.cpu.has_pending_interrupt
    assert machine.run() == IoExit("out", 1, 0x42, 1, b"\x01")
    assert not machine.cpu.if_flag
    assert machine.run() == HltExit()
    assert machine.cpu.if_flag


@modes
def test_an_interrupt_is_delivered_at_the_next_entry_whatever_if_says(mode, engine):
    machine = machine_with_handlers(mode, "b003f4", {0x20: "88c3" + IRET[mode]}, engine=engine, rax=1)
    machine.cpu.interrupt(0x20)
    assert not machine.cpu.interrupts_allowed
    assert machine.run() == HltExit()
    assert machine.reg("rbx") == 1
    assert machine.reg("rax") == 3


@modes
def test_an_nmi_comes_on_top_of_an_interrupt(mode, engine):
    machine = machine_with_handlers(
        mode, "f4", {0x20: "b320" + IRET[mode], 2: "88df" + "b302" + IRET[mode]}, engine=engine
    )
    machine.cpu.nmi()
    machine.cpu.interrupt(0x20)
    assert machine.run() == HltExit()
    assert machine.reg("rbx") == 0x20  # BH kept what the NMI's handler found: nothing


@modes
def test_a_later_interrupt_replaces_one_that_still_waits(mode, engine):
    machine = machine_with_handlers(
        mode, "90f4", {0x20: "b020" + IRET[mode], 0x21: "b021" + IRET[mode]}, engine=engine, rflags=0x202
    )
    machine.cpu.interrupt(0x20)
    machine.cpu.interrupt(0x21)
    assert machine.run() == HltExit()
    assert machine.reg("rax") == 0x21


@modes
def test_an_nmi_ignores_if_and_masks_the_next_until_iret(mode, engine):
    machine = machine_with_handlers(mode, "f4", {2: "fec0e642" + IRET[mode]}, engine=engine)
    machine.cpu.nmi()
    machine.cpu.nmi()
    machine.cpu.nmi()
    assert machine.run() == IoExit("out", 1, 0x42, 1, b"\x01")
    assert machine.cpu.has_pending_interrupt
    assert machine.run() == IoExit("out", 1, 0x42, 1, b"\x02")
    assert machine.run() == HltExit()
    assert machine.reg("rip") == ENTRY + 1


@modes
def test_userspace_is_told_when_the_window_opens(mode, engine):
    machine = Machine(mode, "b001fbb002b003f4", engine=engine)
    machine.cpu.window_requested = True
    assert machine.run() == WindowExit()
    assert machine.reg("rax") == 2
    machine.cpu.window_requested = False
    assert machine.run() == HltExit()


@modes
def test_interrupts_are_not_allowed_directly_after_sti(mode, engine):
    machine = Machine(mode, "fb9090f4", engine=engine)
    assert machine.cpu.run(1) is None
    assert machine.cpu.if_flag
    assert not machine.cpu.interrupts_allowed
    assert machine.cpu.run(1) is None
    assert machine.cpu.interrupts_allowed


def test_a_frame_in_long_mode_has_five_words_and_an_error_code():
    machine = machine_with_handlers("long64", "488b03", {14: "f4"}, rbx=1 << 40)
    machine.poke(TABLES + 0x1000, bytes(8))
    machine.poke(TABLES + 0x1000 + 8, struct.pack("<Q", TABLES + 0x2063))
    machine.poke(TABLES + 0x1000, struct.pack("<Q", TABLES + 0x2063))
    assert machine.run() == HltExit()
    error, rip, code, flags, stack = frame(machine, 5)
    assert (error, rip, code, stack) == (0, ENTRY, 8, STACK)
    assert flags & ~0x10000 == 2
    assert machine.cpu.special_registers()["cr2"] == 1 << 40


def test_a_bad_selector_is_named_in_the_error_code():
    machine = machine_with_handlers("prot32", "f6f1" + "b834020000" + "8ed8", {0: "b101cf", 13: "f4"})
    assert machine.run() == HltExit()
    assert frame(machine, 2) == [0x234, ENTRY + 7]


def test_the_resume_flag_is_set_in_the_frame_of_a_fault_but_not_of_a_breakpoint():
    machine = machine_with_handlers("prot32", "cc0f0b", {3: "cf", 6: "f4"})
    machine.poke(HANDLER, "8b442408" + "cf")  # mov eax, [esp+8]
    assert machine.run() == HltExit()
    assert machine.reg("rax") & 0x10000 == 0
    assert frame(machine, 3)[2] & 0x10000


def test_a_page_fault_tells_the_exact_address_and_the_kind_of_access():
    machine = machine_with_handlers("long64", "8803", {14: "f4"}, rbx=0x20000123)
    machine.poke(TABLES + 0x2000 + 0x100 * 8, bytes(8))
    assert machine.run() == HltExit()
    assert frame(machine, 1) == [2]
    assert machine.cpu.special_registers()["cr2"] == 0x20000123


def test_paging_marks_entries_accessed_and_dirty():
    machine = Machine("long64", "8803f4", rbx=0x3000)
    machine.poke(TABLES + 0x2000, struct.pack("<Q", 0x83))
    assert machine.run() == HltExit()
    assert machine.peek(TABLES + 0x2000, 1) == b"\xe3"


def test_a_fault_in_ring_3_switches_to_the_stack_of_the_task():
    machine = user_machine("long64", "0f0b", {6: "f4"})
    assert machine.run() == HltExit()
    assert machine.reg("rsp") == TASK - 40
    assert frame(machine, 5)[1] == USER_CODE
    assert frame(machine, 5)[3:] == [STACK, USER_DATA]


def test_a_fault_in_ring_3_switches_stacks_in_protected_mode_too():
    machine = user_machine("prot32", "0f0b", {6: "f4"})
    assert machine.run() == HltExit()
    assert machine.reg("rsp") == TASK - 20
    assert frame(machine, 5) == [ENTRY, USER_CODE, frame(machine, 5)[2], STACK, USER_DATA]


def test_hlt_and_port_io_in_ring_3_are_general_protection_faults():
    for code in ("f4", "e642", "6c"):
        machine = user_machine("long64", code, {13: "f4"})
        assert machine.run() == HltExit()
        assert frame(machine, 2) == [0, ENTRY]


def test_the_permission_map_of_the_task_opens_single_ports():
    machine = user_machine("long64", "e642e643", {13: "f4"})
    machine.poke(TASK + 0x68 + 8, b"\xfb\xff")
    task = machine.cpu.special_registers()["tr"]
    machine.cpu.set_special_registers({"tr": {**task, "limit": 0x68 + 10}})
    assert machine.run() == IoExit("out", 1, 0x42, 1, b"\0")
    assert machine.run() == HltExit()
    assert frame(machine, 2) == [0, ENTRY + 2]


def test_a_fetch_in_a_hole_in_ring_3_is_an_undefined_instruction():
    machine = user_machine("long64", "ffe3", {6: "f4"}, rbx=HOLE)
    assert machine.run() == HltExit()
    assert frame(machine, 1) == [HOLE]


def test_a_gate_that_ring_3_may_not_call_is_protected():
    machine = user_machine("long64", "cd20", {0x20: "90f4", 13: "f4"})
    raw = machine.peek(VECTORS + 0x200 + 5, 1)[0]
    machine.poke(VECTORS + 0x200 + 5, bytes([raw & 0x9F]))
    assert machine.run() == HltExit()
    assert frame(machine, 2) == [0x20 * 8 + 2, ENTRY]


def test_syscall_and_sysret_go_to_the_kernel_and_back():
    machine = user_machine("long64", "0f0590f4", {13: "90f4"}, entry=ENTRY)
    machine.poke(0x1800, "b005480f07")
    setup = (
        "b9800000c00f3283c8010f30"  # EFER.SCE
        "b9810000c031c0ba080010000f30"  # STAR: kernel 8, user base 0x10
        "b9820000c0b80018000031d20f30"  # LSTAR
        "f4"
    )
    machine.poke(0x1900, setup)
    user = machine.cpu.special_registers()
    kernel = Machine("long64", "").cpu.special_registers()
    machine.cpu.set_special_registers({name: kernel[name] for name in ("cs", "ss")})
    machine.cpu.set_registers({"rip": 0x1900})
    assert machine.run() == HltExit()
    machine.cpu.set_special_registers({name: user[name] for name in ("cs", "ss")})
    machine.cpu.set_registers({"rip": ENTRY, "rax": 0})
    machine.poke(DESCRIPTORS + 0x28, bytes(8))
    machine.poke(VECTORS + 13 * 16, gate_table("long64", {0: 0x1A00})[:16])
    machine.poke(0x1A00, "f4")
    assert machine.run() == HltExit()  # the HLT in ring 3 is a fault, whose handler halts
    assert machine.reg("rax") == 5
    assert machine.reg("rcx") == ENTRY + 2
    assert frame(machine, 2) == [0, ENTRY + 3]


@modes
def test_three_faults_in_a_row_shut_down(mode, engine):
    machine = machine_with_handlers(mode, "0f0b", {}, engine=engine)
    machine.cpu.set_special_registers({"idt": {"base": VECTORS, "limit": 8}})
    assert machine.run() == ShutdownExit()


def test_after_a_failed_emulation_the_instruction_is_tried_again():
    machine = machine_with_handlers("prot32", "ffe3", {6: "f4"}, rbx=HOLE)
    assert machine.run() == InternalErrorExit(data=NO_BYTES, gpa=HOLE)
    assert machine.run() == InternalErrorExit(data=NO_BYTES, gpa=HOLE)
    code = Ram(0x1000)
    code.bytes[:1] = b"\xf4"
    machine.slots.put(HOLE, code)
    assert machine.run() == HltExit()
    assert (machine.reg("rip"), machine.reg("rsp")) == (HOLE + 1, STACK)


def test_a_fault_while_an_mmio_answer_is_used_reaches_the_guest():
    machine = machine_with_handlers("prot32", "f733f4", {0: "f4"}, rbx=HOLE, rax=1)
    assert machine.run() == MmioExit(HOLE, 4, is_write=False)
    assert machine.run(bytes(4)) == HltExit()
    assert frame(machine, 1) == [ENTRY]


@pytest.mark.parametrize(
    "changes",
    [
        {"cr0": 1 << 31},
        {"cr0": 1 << 33},
        {"cr4": 1 << 30},
        {"efer": 0x400},
        {"cr0": 0x80000011, "efer": 0x100},
        {"nonsense": 1},
    ],
)
def test_impossible_special_registers_are_einval_and_change_nothing(changes):
    machine = Machine("prot32", "f4")
    before = machine.cpu.special_registers()
    with pytest.raises(KvmError, match="EINVAL"):
        machine.cpu.set_special_registers(changes)
    assert machine.cpu.special_registers() == before
