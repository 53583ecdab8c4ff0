"""Guests that mean harm: whatever bytes they execute, they stay in their slots, and every entry comes back."""

import mmap
import random
from ctypes import addressof, c_char

import pytest

from kickstand.core.run.exits import HltExit, InternalErrorExit, ShutdownExit
from tests.guests.x86.handlers import DESCRIPTORS, VECTORS, machine_with_handlers
from tests.guests.x86.machine import ENTRY, TABLES, Machine, Ram, modes

SEEDS = range(12)
ENTRIES = 40
BUDGET = 2_000
CANARY = b"\xc5" * 0x10000
TEMPTING = (
    "0f22d8",
    "0f22c0",
    "0f01f8",
    "0f0108",
    "0f01",
    "0f30",
    "0f32",
    "cd80",
    "0f05",
    "0f34",
    "f3a4",
    "f36d",
    "0fae",
)


class Between(Ram):
    """Guest memory with host memory that is nobody's on both sides."""

    def __init__(self):
        self.whole = mmap.mmap(-1, 3 * len(CANARY))
        self.whole[: len(CANARY)] = self.whole[2 * len(CANARY) :] = CANARY
        self.address = addressof(c_char.from_buffer(self.whole)) + len(CANARY)
        self.size = len(CANARY)

    def write(self, data):
        self.whole[len(CANARY) : 2 * len(CANARY)] = data

    def neighbours(self):
        return self.whole[: len(CANARY)], self.whole[2 * len(CANARY) :]


def hostile(seed):
    """64 KiB of noise, sprinkled with instructions that reach for what is not the guest's."""
    noise = random.Random(seed)
    memory = bytearray(noise.randbytes(0x10000))
    for _ in range(400):
        at = noise.randrange(0xFF00)
        code = bytes.fromhex(noise.choice(TEMPTING))
        memory[at : at + len(code)] = code
    return bytes(memory)


@pytest.mark.parametrize("seed", SEEDS)
@modes
def test_noise_stays_in_its_memory_and_every_entry_comes_back(mode, engine, seed):
    machine = machine_with_handlers(
        mode, "90", dict.fromkeys(range(21), ""), engine=engine
    )  # in the midst of the noise
    ram = Between()
    memory = bytearray(hostile(seed))
    for tables, size in ((DESCRIPTORS, 0x28), (VECTORS, 0x400), (TABLES, 0x3000)):
        memory[tables : tables + size] = machine.peek(tables, size)
    ram.write(memory)
    machine.slots.put(0, ram)
    machine.cpu.set_registers({"rip": ENTRY + seed, "rbx": 0xFFFF_FFFF, "rsi": -seed & 0xFFFF_FFFF})
    for _ in range(ENTRIES):
        exit = machine.cpu.complete(b"\xff" * 8) if machine.cpu.pending else machine.cpu.run(BUDGET)
        if isinstance(exit, ShutdownExit | InternalErrorExit):
            break
    assert ram.neighbours() == (CANARY, CANARY)


REWRITING = "fe050810000005000000004975f2f4"  # 1: inc byte [2f + 2]; 2: add eax, 0; dec ecx; jnz 1b


def test_a_guest_that_rewrites_the_code_it_is_in_comes_back_all_the_same():
    machine = Machine("prot32", REWRITING, rcx=1 << 31)
    assert machine.cpu.run(50_000) is None
    before = machine.reg("rcx")
    assert machine.cpu.run(50_000) is None
    assert before - 50_000 <= machine.reg("rcx") < before


@pytest.mark.parametrize("engine", ["precise", "fast"])
def test_a_guest_that_rewrites_the_code_it_is_in_executes_what_it_wrote(engine):
    machine = Machine("prot32", REWRITING, engine=engine, rcx=300)
    assert machine.run() == HltExit()
    assert machine.reg("rax") == sum(0x100 * (count % 256) for count in range(1, 301))
