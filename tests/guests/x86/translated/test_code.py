"""Translated code: where it stops, what makes it stale, and what a stop from outside leaves behind."""

import ctypes
import random
import struct
import threading
import time

import pytest
from unicorn import x86_const

from kickstand.core.run.exits import HltExit, InterruptedExit, IoExit, ShutdownExit
from kickstand.guests.x86.emulated.emulator import Emulator
from kickstand.guests.x86.translated import live_state, nested_walk
from kickstand.guests.x86.translated.unicorn_engine import Engine
from tests.guests.x86.machine import ENTRY, TABLES, Machine, Ram, modes, special_registers

engines = pytest.mark.parametrize("engine", ["precise", "fast"])

# Each round computes 0x1000 in ten blocks that follow one another directly, with a stop candidate in most of them;
# HLT if anything of it was left out:
#   1: inc ebx; call 2f; sub eax, ebx; cmp eax, 0x1000; jne 9f; jmp 1b; 9: hlt
#   2: mov ecx, 20; mov eax, ebx; xor edi, edi
#   3: movzx edx, byte [ecx+0x5000]; test dl, dl; jns 4f; hlt; 4: add edi, 3; add eax, 3; dec ecx; jne 3b
#      sub eax, edi; jmp 5f; hlt; 5: add eax, 0x1000; jmp 6f; hlt; 6: ret
CHECKED_LOOP = (
    "43e80c00000029d83d001000007502ebeff4b91400000089d831ff0fb691"
    "0050000084d27901f483c70383c0034975eb29f8eb01f40500100000eb01f4c3"
)


@pytest.fixture(autouse=True, params=[1, 0], ids=["virtual TLB", "own walk"])
def walk(request, monkeypatch):
    """Who walks the pages."""
    monkeypatch.setattr(nested_walk, "NEEDED", request.param)


@pytest.mark.slow
def test_a_stop_that_meets_code_being_translated_leaves_nothing_out():
    inside = threading.Event()
    choice = random.Random(1)
    machine, done = Machine("prot32", CHECKED_LOOP, engine="fast"), False

    def stop_often():
        while not done:
            inside.wait(1)
            time.sleep(choice.random() * 0.0006)  # at any point of the first translations
            if inside.is_set():
                machine.cpu.stop()

    thread = threading.Thread(target=stop_often, daemon=True)
    thread.start()
    for _ in range(60):
        machine = Machine("prot32", CHECKED_LOOP, engine="fast", rbx=0)
        for _ in range(5):
            inside.set()
            exit = machine.cpu.run(0)
            inside.clear()
            assert exit == InterruptedExit(), hex(machine.reg("rip"))
        machine.cpu.close()
    done = True
    thread.join()


def test_an_engine_that_does_not_report_its_translations_is_refused(monkeypatch):
    monkeypatch.setattr(Engine, "_translated", lambda *_: None)
    with pytest.raises(RuntimeError, match="does not report"):
        Engine()


@modes
def test_a_fault_in_the_search_for_stops_lets_nothing_run_unjudged(mode, engine):
    machine = Machine(mode, "40" * 3 + "e642" + "f4", engine=engine)
    assert isinstance(machine.run(), IoExit)
    machine.cpu.complete(None)
    machine.cpu.set_registers({"rip": 0x3000})
    machine.poke(0x3000, "e643f4")
    translated = machine.cpu._translator.engine  # the way into it
    find = translated.find_stops

    def fail(_start, _size):
        raise ZeroDivisionError

    translated.find_stops = fail
    with pytest.raises(ZeroDivisionError):
        machine.run()
    translated.find_stops = find
    assert machine.reg("rip") == 0x3000
    assert machine.run() == IoExit("out", 1, 0x43, 1, bytes([machine.reg("rax") & 0xFF]))


@modes
@pytest.mark.parametrize("at", [0x2FFF, 0x2FFE, 0x3000])
def test_a_stop_at_a_page_s_end_and_first_byte_is_seen(mode, engine, at):
    # nop; ...; o16 out 0x42, eax with its prefix on the page before
    machine = Machine(mode, "90" * 4 + "66e742" + "f4", engine=engine, entry=at - 4)
    size = 4 if mode == "real" else 2
    assert machine.run() == IoExit("out", size, 0x42, 1, bytes(size))
    assert machine.run() == HltExit()


@engines
def test_code_behind_four_gigabytes_wraps_to_zero_and_stops(engine):
    machine = Machine("prot32", "e642f4", engine=engine, entry=0x800)
    code = special_registers("prot32")["cs"] | {"base": 0xFFFFF000}
    machine.cpu.set_special_registers({"cs": code})
    machine.cpu.set_registers({"rip": 0x1800, "rax": 7})
    assert machine.run() == IoExit("out", 1, 0x42, 1, b"\x07")


@modes
def test_code_that_the_host_rewrites_between_runs_is_translated_again(mode, engine):
    machine = Machine(mode, "e642" + "e643" + "ebfa", engine=engine)
    ports = []
    for port in range(0x10, 0x1A):
        machine.poke(ENTRY + 1, bytes([port]))
        ports.append(machine.run().port)
        machine.run()
    assert ports == list(range(0x10, 0x1A))


def jump(at, target):
    return b"\xe9" + struct.pack("<i", target - at - 5)


def machine_of_many_pages(pages, engine):
    """OUT 0x42, then an INC EBX in each of the pages, and again."""
    machine = Machine("prot32", "e642", engine=engine)
    machine.slots.put(0x100000, Ram(pages * 0x1000))
    code = machine.slots.kept[-1].bytes
    machine.poke(ENTRY + 2, jump(ENTRY + 2, 0x100000))
    for offset in range(0, pages * 0x1000, 0x1000):
        following = ENTRY if offset == (pages - 1) * 0x1000 else 0x101000 + offset
        code[offset : offset + 6] = b"\x43" + jump(0x100001 + offset, following)
    return machine, code


@engines
def test_a_rewritten_page_among_many_is_seen(engine):
    machine, code = machine_of_many_pages(200, engine)
    counts = []
    for _ in range(6):
        before = machine.reg("rbx")
        machine.run()
        machine.cpu.complete(None)
        counts.append(machine.reg("rbx") - before)
        code[77 * 0x1000] = 0x90 if len(counts) % 2 else 0x43
    assert counts == [0, 199, 200, 199, 200, 199]


@engines
def test_a_stop_that_the_kernel_writes_at_the_address_where_the_user_executes_it_is_seen(engine):
    # kernel: mov [0x4000], bl; xchg bl, bh; mov rcx, 0x4000; mov r11, IOPL 3; sysretq
    code = "881c2500400000" + "86df" + "48c7c100400000" + "49c7c302300000" + "480f07"
    machine = Machine("long64", code, engine=engine, rbx=0xE6B0)
    machine.poke(0x4000, "b0420f05")  # user: mov al, 0x42, and then out 0x42, al; syscall
    machine.poke(TABLES, struct.pack("<Q", TABLES + 0x1067))
    machine.poke(TABLES + 0x1000, struct.pack("<Q", TABLES + 0x2067))
    machine.poke(TABLES + 0x2000, struct.pack("<Q", 0xE7))
    state = machine.cpu.state()
    state["sregs"]["efer"] |= 1
    state["msrs"] |= {"star": 0x10 << 48 | 8 << 32, "lstar": ENTRY}
    machine.cpu.load(state)
    assert [machine.run(), machine.run()] == [IoExit("out", 1, 0x42, 1, b"\x42")] * 2
    assert machine.reg("rip") == 0x4000


def test_the_state_of_every_engine_is_found_wherever_it_lies(walk, monkeypatch):
    found, others = [], []
    for number in range(12):
        others.append(bytes(60_000 + number))  # what lies beside it is not the same each time
        if number == 6:
            monkeypatch.setattr(live_state._Known, "offsets", (8, 16))
        found.append(Engine())
    states = [engine.state for engine in found]
    assert len({ctypes.addressof(state) for state in states}) == 12
    for number, engine in enumerate(found):
        engine._uc.reg_write(x86_const.UC_X86_REG_R9, number)
    assert [state.gpr[9] for state in states] == list(range(12))


@engines
@pytest.mark.parametrize(("code", "steps"), [("0f20d8" + "0f20d3", 0), ("0f20c0", 1), ("44" + "0f20c0", 1)])
def test_the_engine_reads_cr2_and_cr3_itself_and_no_other(engine, code, steps, monkeypatch):
    machine, begun, step = Machine("long64", code + "f4", engine=engine), [], Emulator.step
    machine.cpu.set_special_registers({"cr2": 0x1234})
    monkeypatch.setattr(Emulator, "step", lambda self: (begun.append(self), step(self))[1])
    assert isinstance(machine.run(), HltExit)
    assert len(begun) == steps + 1  # and HLT
    if not steps:
        assert (machine.cpu.registers()["rax"], machine.cpu.registers()["rbx"]) == (TABLES, 0x1234)


@engines
@pytest.mark.parametrize("register", ["c0", "d0", "d8"])
def test_control_registers_are_not_for_user_mode_to_read(engine, register):
    machine = Machine("prot32", "0f20" + register + "f4", engine=engine)
    segments = machine.cpu.special_registers()
    user = {name: segments[name] | {"dpl": 3, "selector": segments[name]["selector"] | 3} for name in ("cs", "ss")}
    machine.cpu.set_special_registers(user)
    assert isinstance(machine.run(), ShutdownExit)  # there is no handler for #GP
    assert machine.reg("rip") == ENTRY
