"""CMPXCHG8B and CMPXCHG16B without the stepper: what it would have done."""

import random

import pytest

from kickstand.core.run.exits import HltExit, MmioExit
from kickstand.guests.x86.emulated.instructions.exchange import Exchange, operand
from tests.guests.x86.machine import ENTRY, HOLE, Machine, Ram, engines, special_registers

DATA = 0x4000
NAMES = ("rax", "rbx", "rcx", "rdx", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")


@pytest.fixture
def taken(monkeypatch):
    """How many bytes each had that was tried; 0: it was the stepper's."""
    lengths, perform = [], Exchange.perform

    def noted(exchange, code):
        lengths.append(perform(exchange, code))
        return lengths[-1]

    monkeypatch.setattr(Exchange, "perform", noted)
    return lengths


def made_up(rng):
    """Some form of it that may be in memory, and registers."""
    rex = rng.choice([b"", bytes([rng.randrange(0x40, 0x50)]), bytes([rng.randrange(0x48, 0x50)])])
    prefixes = b"".join(rng.sample([b"\x65", b"\x64", b"\x3e", b"\xf0", b"\x66", b"\x67"], rng.randrange(3)))
    mode, low = rng.randrange(3), rng.randrange(8)
    code = prefixes + rex + bytes([0x0F, 0xC7, mode << 6 | 8 | low])
    if low == 4:
        sib = rng.randrange(256)
        code += bytes([sib])
        low = sib & 7
    if mode == 1:
        code += bytes([rng.choice([0, 8, 0x10, 0xF0])])
    elif mode == 2 or low == 5:
        code += rng.choice([0, 0x10, 0x1000, -0x10 & 0xFFFFFFFF]).to_bytes(4, "little")
    registers = {name: rng.choice([DATA, DATA + 0x10, 0x10, 0, DATA + 8, rng.getrandbits(64)]) for name in NAMES}
    return code + b"\xf4", registers


def outcome(code, registers, rng):
    machine = Machine("long64", code, **registers, rflags=2 | rng.choice([0, 0x8D5]))
    machine.cpu.set_special_registers({"fs": {**special_registers("long64")["fs"], "base": 0x10}})
    machine.poke(DATA - 0x100, rng.randbytes(0x200))
    if rng.random() < 0.5:  # what is expected
        low, high = (machine.reg(name) for name in ("rax", "rdx"))
        machine.poke(DATA, (low.to_bytes(8, "little") + high.to_bytes(8, "little")) * 4)
        machine.poke(DATA + 0x20, (low & 0xFFFFFFFF | (high & 0xFFFFFFFF) << 32).to_bytes(8, "little") * 4)
    seen = machine.run(), machine.cpu.registers(), machine.peek(0, 0x10000)
    machine.cpu.close()
    return seen


def test_it_is_as_in_the_stepper(taken, monkeypatch):
    rng = random.Random(1)
    cases = [(*made_up(rng), rng.random()) for _ in range(300)]
    fast = [outcome(code, registers, random.Random(seed)) for code, registers, seed in cases]
    assert sum(map(bool, taken)) > 40
    monkeypatch.setattr(Exchange, "perform", lambda _exchange, _code: 0)
    for (code, registers, seed), found in zip(cases, fast, strict=True):
        assert outcome(code, registers, random.Random(seed)) == found, code.hex()


@engines
def test_a_device_and_memory_that_may_not_be_written_are_the_steppers(engine, taken):
    machine = Machine("long64", "480fc70bf4", engine=engine, rbx=0x30000)
    machine.slots.put(0x30000, Ram(0x1000), readonly=True)
    assert machine.run() == MmioExit(0x30000, 8, is_write=True, data=(0x30000).to_bytes(8, "little"))
    machine.cpu.close()
    machine = Machine("long64", "480fc70bf4", engine=engine, rbx=HOLE)
    assert machine.run() == MmioExit(HOLE, 8, is_write=False)
    assert taken == [0, 0]


@engines
@pytest.mark.parametrize("equal", [True, False])
def test_a_logged_page_is_dirty_afterwards(engine, equal, taken):
    machine = Machine("long64", "0fc70bf4", engine=engine, rbx=0x30000, rax=0 if equal else 1)
    machine.slots.put(0x30000, Ram(0x1000), log_dirty=True)
    assert machine.run() == HltExit()
    assert machine.slots.dirty == [0x30000]
    assert taken == [3]


@engines
def test_code_that_it_rewrites_is_executed_as_it_is_then(engine, taken):
    """It puts HLT where a jump to itself was; before that is its own address, which stores to ``rax``."""
    machine = Machine("long64", "0fc70b 9090909090", engine=engine, rbx=ENTRY + 8, rcx=0x909090F4)
    machine.poke(ENTRY + 8, "00400000 ebfe9090")
    machine.cpu.set_registers({"rax": DATA, "rdx": 0x9090FEEB})
    assert machine.run() == HltExit()
    assert taken == [3]


@pytest.mark.parametrize("code", ["0fc7f0", "480fc7f8", "0fc70c", "660fc70b", "670fc70b", "64650fc70b", "0fc78b010203"])
def test_others_are_not_decoded(code):
    assert operand(bytes.fromhex(code)) is None
