"""Guests whose data lie on a page of their code, and code that changes its own operands: every store counts, at once.

The engine stores there itself and forgets what it had translated from these bytes; if that is what it is executing, it
repeats the instruction alone. Nothing of it may be done twice, and the flags are those from before.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass

import pytest

from kickstand.core.run.exits import HltExit, IoExit
from kickstand.guests.x86.emulated.instructions.stepper import Stepper
from kickstand.guests.x86.translated import nested_walk
from kickstand.guests.x86.translated.translator import Translator
from kickstand.guests.x86.translated.unicorn_engine import Engine
from tests.guests.x86.machine import Machine
from tests.guests.x86.translated.test_rewritten_code import rel, run

START, ROUNDS, BYTES = 0x3000, 60, 0x6000
MASK = (1 << 64) - 1
SITE = bytes.fromhex("0f1f40004983c4")  # nop; add r12, (the next byte)
ONCE = bytes.fromhex("b90000000080e9ff")  # mov ecx, 0; sub cl, -1: with a carry
CARRY, COUNT_IT = b"\x04\x60", bytes.fromhex("4983d500")  # add al, 0x60; adc r13, 0
STORES = ("mov8", "mov16", "mov32", "push", "add8", "add16", "xchg", "movs", "repeated")


def store(how: str, at: int, number: int) -> bytes:
    """An instruction that makes the operand at ``at`` this number, or adds it, and little else."""
    address, before = struct.pack("<I", at), struct.pack("<I", at - 1)
    whole = SITE + bytes([number])
    return {
        "mov8": b"\xc6\x04\x25" + address + bytes([number]),
        "mov16": b"\x66\xc7\x04\x25" + before + whole[6:],
        "mov32": b"\xc7\x04\x25" + struct.pack("<I", at - 3) + whole[4:],
        "push": b"\x48\xb9" + whole + b"\x48\xc7\xc4" + struct.pack("<I", at + 1) + b"\x51",
        "add8": b"\x80\x04\x25" + address + bytes([number]),
        "add16": b"\x66\x81\x04\x25" + before + bytes([0, number]),
        "xchg": b"\xb1" + bytes([number]) + b"\x86\x0c\x25" + address,
        "movs": b"\xbe" + struct.pack("<I", BYTES + number) + b"\xbf" + address + b"\xa4",
        "repeated": b"\xbe" + struct.pack("<I", BYTES + number) + b"\xbf" + address + ONCE + b"\xf3\xa4",
    }[how]


@dataclass
class Step:
    """Adds its operand to R12, changes that of ``target``, and adds to R13 the carry that it finds after the store."""

    operand: int
    how: str
    target: int
    number: int
    adds_first: bool
    jumps: bool
    at: int = START  # of the operand


class Loop:
    """Steps in a row, round and round."""

    def __init__(self, seed: int) -> None:
        choice = random.Random(seed)
        count = choice.randrange(2, 9)
        self.steps = [
            Step(choice.randrange(128), choice.choice(STORES), choice.choice((mine, mine, choice.randrange(count))),
                 choice.randrange(1, 100), choice.random() < 0.5, choice.random() < 0.3)
            for mine in range(count)
        ]  # fmt: skip
        self.code()  # finds where the operands are

    def code(self) -> bytes:
        code = b""
        for step in self.steps:
            code += CARRY + b"\xeb\0" * step.jumps
            stored = store(step.how, self.steps[step.target].at, step.number) + COUNT_IT
            add = SITE + bytes([step.operand])
            step.at = START + len(code) + len(add) - 1 + (0 if step.adds_first else len(stored))
            code += add + CARRY + stored if step.adds_first else stored + add
        code += bytes.fromhex("49ffce0f85")  # dec r14; jne
        return code + rel(START + len(code), START) + b"\xf4"

    def result(self) -> tuple[int, int]:
        """R12 and R13 in the end."""
        operands, al, r12, r13 = [step.operand for step in self.steps], 0, 0, 0
        for mine, step in list(enumerate(self.steps)) * ROUNDS:
            al = (al & 0xFF) + 0x60
            if step.adds_first:
                r12 += (operands[mine] ^ 0x80) - 0x80
                al = (al & 0xFF) + 0x60
            adds = step.how.startswith("add")
            changed = operands[step.target] * adds + step.number
            operands[step.target] = changed & 0xFF
            r13 += 1 if step.how == "repeated" else (changed if adds else al) >> 8
            if not step.adds_first:
                r12 += (operands[mine] ^ 0x80) - 0x80
        return r12 & MASK, r13


@pytest.mark.parametrize("walk", [1, 0], ids=["virtual TLB", "own walk"])
@pytest.mark.parametrize("engine", ["precise", "fast"])
@pytest.mark.parametrize("slices", [(3, 50, 1000), (49_999,)], ids=["short", "long"])
@pytest.mark.parametrize("seed", range(6))
def test_operands_that_code_changes_count_at_once(engine, walk, slices, seed, monkeypatch):
    monkeypatch.setattr(nested_walk, "NEEDED", walk)
    loop = Loop(seed)
    machine = Machine("long64", loop.code(), engine=engine, entry=START, rax=0, r12=0, r13=0, r14=ROUNDS)
    machine.poke(BYTES, bytes(range(256)))
    run(machine, random.Random(seed), slices)
    assert (machine.reg("r12"), machine.reg("r13")) == loop.result()
    machine.cpu.close()


@pytest.mark.parametrize("engine", ["precise", "fast"])
def test_the_engine_stores_to_data_and_stack_beside_the_code(engine, monkeypatch):
    steps, real = [], Stepper.step
    monkeypatch.setattr(Stepper, "step", lambda *args: steps.append(1) or real(*args))
    code = "a300380000" + "5058" + "4975f6" + "f4"  # 1: mov [0x3800], eax; push eax; pop eax; dec ecx; jne 1b; hlt
    machine = Machine("prot32", code, engine=engine, entry=START, rcx=10_000, rsp=0x3FF0)
    run(machine, random.Random(1))
    assert (machine.reg("rcx"), machine.reg("rip")) == (0, START + 11)
    assert len(steps) < 500  # one for each slice
    machine.cpu.close()


@pytest.mark.parametrize("engine", ["precise", "fast"])
def test_data_that_the_host_changes_beside_code_leave_the_code_as_it_is(engine, monkeypatch):
    dropped, real = [], Translator._drop
    monkeypatch.setattr(
        Translator, "_drop", lambda self, hosts: real(self, [dropped.append(1) or one for one in hosts])
    )
    code = "a30038000066e742ebf6"  # 1: mov [0x3800], eax; out 0x42, ax; jmp 1b
    machine = Machine("prot32", code, engine=engine, entry=START)
    for number in range(20):
        machine.run()
        machine.poke(0x3900, bytes([number]))
    assert not dropped
    machine.cpu.close()


@pytest.mark.parametrize("engine", ["precise", "fast"])
def test_code_that_a_loop_writes_beside_itself_stops_where_it_should(engine):
    # 1: mov byte [3f], 0x90; dec ecx; jne 1b; mov word [3f], 0x42e6; jmp 3f; 3: (nop; nop, then out 0x42, al); hlt
    code = "c60519300000904975f666c70519300000e642eb00" + "90909090" + "9090f4"
    machine = Machine("prot32", code, engine=engine, entry=START, rcx=100, rax=7)
    assert machine.run() == IoExit("out", 1, 0x42, 1, b"\x07")
    machine.cpu.close()


@pytest.mark.parametrize("engine", ["precise", "fast"])
def test_code_that_the_host_rewrote_is_gone_when_the_guest_stores_beside_it(engine):
    # start: add bl, 1; hlt; other: mov [start + 0x800], eax; jmp start
    machine = Machine("prot32", "80c301f4", engine=engine, entry=START, rbx=0)
    machine.poke(START + 0x1000, "a300380000" + "e9f6efffff")
    assert machine.run() == HltExit()
    machine.poke(START + 2, "05")
    machine.slots.generation += 1
    machine.cpu.set_registers({"rip": START + 0x1000})
    assert machine.run() == HltExit()
    assert machine.reg("rbx") == 6
    machine.cpu.close()


@pytest.mark.parametrize("engine", ["precise", "fast"])
def test_a_block_that_is_cut_in_two_is_searched_as_before(engine, monkeypatch):
    """What is behind decides whether the last byte of the first half could begin an instruction."""
    translated, real = [], Engine._translated
    monkeypatch.setattr(
        Engine, "_translated", lambda self, _, block, *more: translated.append(1) or real(self, _, block, *more)
    )
    code = "a300380000" + "eb00" + "89c1" + "e492" + "e2f3" + "f4"  # 1: mov [0x3800], eax; jmp 2f; 2: mov ecx, eax; in
    machine = Machine("prot32", code, engine=engine, entry=START, rax=5)
    machine.run()
    assert machine.reg("rip") == START + 9
    assert len(translated) < 20
    machine.cpu.close()


def test_a_store_of_several_bytes_to_its_own_block_hides_no_other():
    """Nothing in this code is translated twice for what lies in its middle: the engine is never left."""
    # 1: add al, 0x60; mov dword [2f + 1], 5; 2: mov edx, 0; adc ebx, 0; jmp 3f
    code = "0460" + "c7050d30000005000000" + "ba00000000" + "83d300" + "eb00"
    # 3: add al, 0x60; mov byte [4f + 1], 5; 4: mov dl, 0; adc ebx, 0; dec ecx; jne 1b; hlt
    code += "0460" + "c6052030000005" + "b200" + "83d300" + "49" + "75d9" + "f4"
    machine = Machine("prot32", code, entry=START, rax=0, rbx=0, rcx=100)
    run(machine, random.Random(1), (49_999,))
    assert (machine.reg("rbx"), machine.reg("rdx")) == (200 * 0x60 >> 8, 5)
    machine.cpu.close()


def test_a_count_that_ends_behind_an_access_to_a_new_page_leaves_the_flags():
    """The engine goes back to what computed the flags before that, to tell where the access was."""
    code = "0460" + "021d00500000" + "9090f4"  # add al, 0x60; add bl, [0x5000]; two nops; hlt
    machine = Machine("prot32", code, entry=START, rax=0xA0, rbx=1)
    machine.poke(0x5000, "7f")
    machine.cpu.run(2)
    assert (machine.reg("rip"), machine.reg("rflags"), machine.reg("rbx")) == (START + 8, 0x892, 0x80)
    machine.cpu.close()
