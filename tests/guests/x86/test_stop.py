"""Stopping a CPU from outside, budgets, registers and snapshots."""

import json
import threading

import pytest

from kickstand.core.run.exits import HltExit, InterruptedExit, IoExit, MmioExit
from kickstand.guests.x86.cpu import X86Cpu
from tests.guests.x86.machine import ENTRY, HOLE, STACK, Machine, Ram, Slots, modes, special_registers

SPIN = "40ebfd"  # inc; jmp to it


@modes
def test_a_stop_before_the_run_is_not_lost(mode, engine):
    machine = Machine(mode, "b001f4", engine=engine)
    machine.cpu.stop()
    assert machine.cpu.run(0) == InterruptedExit()
    assert machine.reg("rip") == ENTRY
    assert machine.run() == HltExit()


def test_a_stop_can_be_taken_back():
    machine = Machine("prot32", "f4")
    machine.cpu.stop()
    machine.cpu.clear_stop()
    assert machine.cpu.run(10) == HltExit()


@pytest.mark.slow
def test_a_stop_from_another_thread_always_ends_the_run():
    machine = Machine("long64", "ffc0ebfc", engine="fast")
    results = []
    rounds = 300
    entered = threading.Semaphore(0)

    def guest():
        for _ in range(rounds):
            entered.release()
            results.append(machine.cpu.run(0))

    thread = threading.Thread(target=guest, daemon=True)
    thread.start()
    for done in range(rounds):
        entered.acquire()
        machine.cpu.stop()
        while len(results) == done:
            pass
    thread.join(10)
    assert results == [InterruptedExit()] * rounds


@pytest.mark.slow
def test_no_instruction_is_executed_twice_because_of_a_stop():
    """A store that is done when the stop is seen, and an instruction that reads what it writes."""
    rounds = 20_000_000
    machine = Machine("prot32", "ff0500400000" + "49" + "75f7" + "f4", engine="fast", rcx=rounds)  # inc dword [0x4000]
    done = threading.Event()

    def stop_often():
        while not done.wait(0.001):
            machine.cpu.stop()

    thread = threading.Thread(target=stop_often)
    thread.start()
    exit, stops = machine.cpu.run(0), 0
    while exit == InterruptedExit():
        exit, stops = machine.cpu.run(0), stops + 1
    done.set()
    machine.cpu.clear_stop()
    thread.join()
    assert (exit, stops > 10) == (HltExit(), True)
    assert int.from_bytes(machine.peek(0x4000, 4), "little") == rounds


def test_no_instruction_is_executed_twice_because_a_run_misses_too_often():
    # inc dword [ebx]; add ebx, 4096; loop: each page is read and then written to
    machine = Machine("prot32", "ff03" + "81c300100000" + "49" + "75f5" + "f4", rbx=0x100000, rcx=512)
    pages = Ram(512 << 12)
    machine.slots.put(0x100000, pages, log_dirty=True)
    assert machine.run() == HltExit()
    assert {pages.bytes[at] for at in range(0, 512 << 12, 4096)} == {1}


def test_an_endless_exception_can_be_stopped():
    machine = Machine("real", "0f0b", engine="fast")
    machine.poke(6 * 4, ENTRY.to_bytes(4, "little"))
    results = []
    thread = threading.Thread(target=lambda: results.append(machine.cpu.run(0)), daemon=True)
    thread.start()
    machine.cpu.stop()
    thread.join(10)
    assert results == [InterruptedExit()]


@modes
def test_a_budget_ends_a_run_without_an_exit(mode, engine):
    machine = Machine(mode, "ebfe", engine=engine)
    assert machine.cpu.run(1000) is None
    assert machine.reg("rip") == ENTRY


def test_a_budget_bounds_an_endless_exception_too():
    machine = Machine("real", "0f0b")
    machine.poke(6 * 4, ENTRY.to_bytes(4, "little"))
    assert machine.cpu.run(1000) is None


def test_the_same_calls_give_the_same_results():
    def play():
        machine = Machine("prot32", "40" * 50 + "ebcc")
        trace = []
        for budget in (1, 7, 100, 3):
            machine.cpu.run(budget)
            trace.append(machine.cpu.registers())
        return trace

    assert play() == play()


def test_a_run_with_an_exit_that_is_not_completed_is_refused():
    machine = Machine("prot32", "e642f4")
    machine.run()
    assert machine.cpu.pending
    with pytest.raises(RuntimeError, match="not completed"):
        machine.cpu.run(1)


def test_a_new_cpu_is_in_the_reset_state():
    cpu = X86Cpu(Slots())
    registers = cpu.registers()
    assert (registers["rip"], registers["rflags"], registers["rdx"]) == (0xFFF0, 2, 0x600)
    special = cpu.special_registers()
    assert (special["cr0"], special["cs"]["base"], special["cs"]["selector"]) == (0x60000010, 0xFFFF0000, 0xF000)
    assert special["idt"] == {"base": 0, "limit": 0xFFFF}


def test_set_registers_sets_exactly_the_named():
    machine = Machine("prot32", "f4", rax=1, r15=2)
    machine.cpu.set_registers({"rbx": 3})
    registers = machine.cpu.registers()
    assert (registers["rax"], registers["rbx"], registers["r15"], registers["rsp"]) == (1, 3, 2, STACK)
    with pytest.raises(ValueError, match="xax"):
        machine.cpu.set_registers({"xax": 1})


@modes
def test_all_flags_survive_a_run(mode, engine):
    machine = Machine(mode, "90f4", engine=engine, rflags=0xED7)
    machine.run()
    assert machine.reg("rflags") == 0xED7


def move(machine):
    """Take the CPU to another object by way of JSON."""
    state = json.loads(json.dumps(machine.cpu.state()))
    machine.cpu.close()
    machine.cpu = X86Cpu(machine.slots, mode=machine.cpu.mode)
    machine.cpu.load(state)


@modes
def test_a_snapshot_between_runs_goes_on_where_it_was(mode, engine):
    machine = Machine(mode, "b001e642b002f4", engine=engine, rbp=77)
    machine.run()
    move(machine)
    assert machine.cpu.pending
    assert machine.run() == HltExit()
    assert (machine.reg("rax"), machine.reg("rbp"), machine.reg("rip")) == (2, 77, ENTRY + 7)


def test_a_snapshot_before_the_first_run_is_complete():
    machine = Machine("prot32", "d9e8df3bf4", rbx=0x4000)
    move(machine)
    assert machine.run() == HltExit()
    assert machine.peek(0x4000, 1) == b"\x01"


def test_a_snapshot_holds_a_read_that_is_half_answered():
    machine = Machine("prot32", "0103f4", rbx=HOLE + 0xFFE, rax=1)
    assert machine.run() == MmioExit(HOLE + 0xFFE, 2, is_write=False)
    assert machine.run(b"\xff\xff") == MmioExit(HOLE + 0x1000, 2, is_write=False)
    move(machine)
    assert machine.run(b"\0\0") == MmioExit(HOLE + 0xFFE, 2, is_write=True, data=b"\0\0")
    move(machine)
    assert machine.run() == MmioExit(HOLE + 0x1000, 2, is_write=True, data=b"\x01\0")
    move(machine)
    assert machine.run() == HltExit()


def test_a_snapshot_holds_vector_registers_and_waiting_events():
    machine = Machine("long64", "f30f6f03" + "e642" + "f30f7f4310" + "f4", rbx=0x4000)
    machine.cpu.set_special_registers({"cr4": 0x620})
    machine.poke(0x4000, b"0123456789abcdef")
    assert isinstance(machine.run(), IoExit)
    machine.cpu.interrupt(0x20)
    machine.cpu.nmi()
    move(machine)
    assert machine.cpu.has_pending_interrupt
    assert machine.cpu.state()["nmis"] == 1
    machine.cpu.load({**machine.cpu.state(), "nmis": 0, "interrupt": None})
    assert machine.run() == HltExit()
    assert machine.peek(0x4010, 16) == b"0123456789abcdef"


def test_a_snapshot_holds_the_float_unit_with_its_rounding_and_its_stack():
    # fninit; fldcw, fld, ldmxcsr; out; fadd st, st; fst; movss, addss, movss; hlt
    code = "dbe3d92bd943040fae5308e642d8c0d95310f30f104304f30f58430cf30f114314f4"
    values = (0x0C3F).to_bytes(4, "little") + bytes.fromhex("0100c03f") + (0x7F80).to_bytes(4, "little")
    results = []
    for mover in (move, lambda _machine: None):
        machine = Machine("prot32", code, rbx=0x4000)
        machine.cpu.set_special_registers({"cr4": 0x600})
        machine.poke(0x4000, values + bytes.fromhex("01000033"))
        assert isinstance(machine.run(), IoExit)
        mover(machine)
        assert machine.run() == HltExit()
        results.append((machine.peek(0x4010, 8), machine.cpu.state()["fpu"]))
    assert results[0] == results[1]
    assert results[0][1]["fcw"] == 0x0C3F
    assert results[0][1]["mxcsr"] & 0x7F80 == 0x7F80


def test_a_snapshot_holds_model_specific_and_debug_registers():
    machine = Machine("long64", "b9820000c0" + "b878563412" + "0f30" + "0f23c0" + "e642" + "0f32" + "0f21c3" + "f4")
    assert isinstance(machine.run(), IoExit)
    move(machine)
    assert machine.run() == HltExit()
    assert (machine.reg("rax"), machine.reg("rbx")) == (0x12345678, 0x12345678)


def test_a_state_that_no_cpu_can_have_is_made_one():
    machine = Machine("prot32", "90f4")
    state = json.loads(json.dumps(machine.cpu.state()))
    state["sregs"] |= {"cr0": 1 << 63 | 0x80000000, "cr4": (1 << 64) - 1, "efer": 0xFFFFFFFF, "cr8": 200}
    state["fpu"] |= {"fsw": 0xFFFF, "fcw": 0xFFFF, "mxcsr": (1 << 32) - 1}
    machine.cpu.load(state)
    sregs = machine.cpu.special_registers()
    machine.cpu.set_special_registers(sregs)  # KVM would take it
    assert machine.run() is not None


def test_a_reply_for_another_length_than_the_instruction_reads_now_stays_within_it():
    machine = Machine("prot32", "8b03f4", rbx=HOLE)  # 32 bits wide here, 16 in real mode
    assert machine.run() == MmioExit(HOLE, 4, is_write=False)
    state = json.loads(json.dumps(machine.cpu.state()))
    state["pending"]["reads"] = ["11"]
    machine.cpu.load(state)
    machine.run(b"\x01\x02\x03\x04")
    assert machine.reg("rax") == 0x11


def test_a_snapshot_of_another_engine_is_refused():
    machine = Machine("prot32", "f4")
    with pytest.raises(ValueError, match="format 'other'"):
        machine.cpu.load({**machine.cpu.state(), "format": "other"})


def test_the_interrupt_that_waits_is_in_the_bitmap_and_goes_with_it():
    machine, other = Machine("prot32", "f4"), Machine("prot32", "f4")
    assert machine.cpu.special_registers()["interrupt_bitmap"] == [0, 0, 0, 0]
    machine.cpu.interrupt(0x41)
    sregs = machine.cpu.special_registers()
    assert sregs["interrupt_bitmap"] == [0, 2, 0, 0]
    other.cpu.set_special_registers(sregs)
    assert other.cpu.state()["interrupt"] == 0x41


def test_modes_can_change_between_runs():
    machine = Machine("real", "b80100f4")
    machine.poke(0x2000, "b878563412f4")
    assert machine.run() == HltExit()
    machine.cpu.set_special_registers(special_registers("prot32"))
    machine.cpu.set_registers({"rip": 0x2000})
    assert machine.run() == HltExit()
    assert machine.reg("rax") == 0x12345678
