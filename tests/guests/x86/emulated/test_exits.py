"""Each kind of exit in each mode of the CPU."""

import struct

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
from tests.guests.x86.handlers import code_descriptor, gate_table, machine_frame
from tests.guests.x86.machine import ENTRY, HOLE, NO_BYTES, Machine, Ram, modes, special_registers, wide


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


@modes
def test_port_io_at_address_zero_leaves(mode, engine):
    machine = Machine(mode, "f4", engine=engine)
    machine.poke(0, "e460f4")
    machine.cpu.set_registers({"rip": 0})
    assert machine.run() == IoExit("in", 1, 0x60)
    assert machine.cpu.complete(b"\x05") is None
    assert machine.run() == HltExit()
    assert machine.cpu.registers()["rip"] == 3
