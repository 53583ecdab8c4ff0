"""Machine code that means the same on every x86 CPU: the table that generated guests are made of.

One encoding serves three modes; only prefixes differ. Left out is what the manuals leave undefined (flags after
shifts and multiplications are set again before anything looks at them) or what depends on the CPU's model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

MODES = ("real", "prot32", "long64")
DATA = (0, 1, 2, 5)  # eax, ecx, edx, ebp
BYTES = (0, 1, 2)  # al, cl, dl
BASE = 3  # ebx: where memory operands start
ECX, EDX, ESI, EDI = 1, 2, 6, 7
WINDOW = 0x2_0000  # guest-physical: where slots come and go
WINDOW_PAGES = 16
PAGE = 0x1000
HLT = b"\xf4"
SPIN = b"\xeb\xfe"
END_PORT = 0xF7  # no other instruction here uses it
SAY_SO = bytes([0xE6, END_PORT])  # OUT: from here to the next instruction no time passes that registers show
CLD = b"\xfc"


@dataclass(frozen=True, slots=True)
class Encoder:
    """Encodes for one mode."""

    mode: str
    random: Random

    def prefix(self, size: int, *, memory: bool = False) -> bytes:
        """Operand and address size: 32-bit addresses everywhere, 64-bit ones in long mode."""
        real = self.mode == "real"
        address = b"\x67" if memory and real else b""
        operand = {1: b"", 2: b"" if real else b"\x66", 4: b"\x66" if real else b"", 8: b"\x48"}[size]
        return address + operand

    def size(self) -> int:
        """A width of access."""
        return self.random.choice((1, 2, 4, 4, 8) if self.mode == "long64" else (1, 2, 4, 4))

    def register(self, size: int = 4) -> int:
        return self.random.choice(BYTES if size == 1 else DATA)

    def load(self, register: int, value: int) -> bytes:
        """MOV r32, imm32."""
        return self.prefix(4) + bytes([0xB8 + register]) + value.to_bytes(4, "little")

    def memory(self, register: int) -> bytes:
        """ModRM for [ebx + disp32]; often at the edge of a page."""
        page = self.random.randrange(WINDOW_PAGES) * PAGE
        inside = self.random.choice(
            (0, 8, 0x100, PAGE - 1, PAGE - 2, PAGE - 3, PAGE - 4, PAGE - 7, self.random.randrange(PAGE))
        )
        return bytes([0x80 | register << 3 | BASE]) + min(page + inside, WINDOW_PAGES * PAGE - 8).to_bytes(4, "little")

    def both(self, register: int, other: int) -> bytes:
        """ModRM for two registers."""
        return bytes([0xC0 | register << 3 | other])


Build = Callable[[Encoder], bytes]


def _opcode(code: int, size: int) -> bytes:
    return bytes([code if size == 1 else code + 1])


def alu(e: Encoder) -> bytes:
    """ADD, OR, ADC, SBB, AND, SUB, XOR, CMP of two registers."""
    size = e.size()
    return e.prefix(size) + _opcode(e.random.randrange(8) << 3, size) + e.both(e.register(size), e.register(size))


def alu_immediate(e: Encoder) -> bytes:
    operation = e.random.randrange(8) << 3
    return e.prefix(4) + bytes([0x83, 0xC0 | operation | e.register(), e.random.randrange(256)])


def one_operand(e: Encoder) -> bytes:
    """INC, DEC, NOT, NEG."""
    code, extension = e.random.choice(((0xFF, 0), (0xFF, 1), (0xF7, 2), (0xF7, 3)))
    return e.prefix(4) + bytes([code, 0xC0 | extension << 3 | e.register()])


def shift(e: Encoder) -> bytes:
    """SHL, SHR, SAR; the flags are made defined again."""
    extension = e.random.choice((4, 5, 7))
    code = bytes([0xC1, 0xC0 | extension << 3 | e.register(), e.random.randrange(1, 32)])
    return e.prefix(4) + code + compare(e)


def multiply(e: Encoder) -> bytes:
    return e.prefix(4) + b"\x0f\xaf" + e.both(e.register(), e.register()) + compare(e)


def compare(e: Encoder) -> bytes:
    """CMP: every arithmetic flag is defined."""
    return e.prefix(4) + b"\x39" + e.both(e.register(), e.register())


def widen(e: Encoder) -> bytes:
    """MOVZX, MOVSX from a byte register."""
    return e.prefix(4) + b"\x0f" + bytes([e.random.choice((0xB6, 0xBE))]) + e.both(e.register(), e.register(1))


def conditional(e: Encoder) -> bytes:
    """CMP, then SETcc or CMOVcc."""
    condition = e.random.randrange(16)
    if e.random.random() < 0.5:  # noqa: PLR2004  a coin
        return compare(e) + bytes([0x0F, 0x90 + condition, 0xC0 | e.register(1)])
    return compare(e) + e.prefix(4) + bytes([0x0F, 0x40 + condition]) + e.both(e.register(), e.register())


def exchange(e: Encoder) -> bytes:
    return e.prefix(4) + b"\x87" + e.both(e.register(), e.register())


def push_pop(e: Encoder) -> bytes:
    """In long mode these are 64-bit."""
    prefix = e.prefix(4) if e.mode == "real" else b""
    return prefix + bytes([0x50 + e.register()]) + prefix + bytes([0x58 + e.register()])


def load_memory(e: Encoder) -> bytes:
    size = e.size()
    return e.prefix(size, memory=True) + _opcode(0x8A, size) + e.memory(e.register(size))


def store_memory(e: Encoder) -> bytes:
    size = e.size()
    return e.prefix(size, memory=True) + _opcode(0x88, size) + e.memory(e.register(size))


def store_immediate(e: Encoder) -> bytes:
    size = e.size()
    value = e.random.randbytes(min(size, 4))
    return e.prefix(size, memory=True) + _opcode(0xC6, size) + e.memory(0) + value


def modify_memory(e: Encoder) -> bytes:
    """ADD, OR, AND, SUB, XOR to memory: a read and a write."""
    size, operation = e.size(), e.random.choice((0, 1, 4, 5, 6))
    return e.prefix(size, memory=True) + _opcode(operation << 3, size) + e.memory(e.register(size))


def compare_memory(e: Encoder) -> bytes:
    size = e.size()
    return e.prefix(size, memory=True) + _opcode(0x38, size) + e.memory(e.register(size))


def port(e: Encoder) -> bytes:
    """IN and OUT, by number or DX."""
    size, inward = e.random.choice((1, 2, 4)), e.random.random() < 0.5  # noqa: PLR2004  a coin
    number = e.random.randrange(0x10, 0xF0)
    if e.random.random() < 0.5:  # noqa: PLR2004  a coin
        return e.prefix(size) + _opcode(0xE4 if inward else 0xE6, size) + bytes([number])
    return e.load(EDX, number << 4) + e.prefix(size) + _opcode(0xEC if inward else 0xEE, size)


def string(e: Encoder) -> bytes:
    """REP MOVS, STOS, OUTS, INS of a few elements within the window."""
    size = e.random.choice((1, 2, 4))
    code = e.random.choice((0xA4, 0xAA, 0x6E, 0x6C))
    source, target = (WINDOW + e.random.randrange(WINDOW_PAGES * PAGE - 64) for _ in range(2))
    setup = e.load(ESI, source) + e.load(EDI, target) + e.load(ECX, e.random.randrange(1, 6)) + e.load(EDX, 0x3F8)
    return setup + CLD + b"\xf3" + e.prefix(size, memory=True) + _opcode(code, size)


def loop(e: Encoder) -> bytes:
    """A counted loop around one register operation."""
    body = e.random.choice((alu_immediate, widen))(e) + e.prefix(4) + b"\xff\xce"  # DEC esi, which no body changes
    return e.load(ESI, e.random.randrange(1, 40)) + body + bytes([0x75, 256 - len(body) - 2])


REGISTERS: tuple[Build, ...] = (
    alu, alu, alu_immediate, one_operand, shift, multiply, widen, conditional, exchange, push_pop, loop,
)  # fmt: skip
ACCESSES: tuple[Build, ...] = (
    load_memory, load_memory, store_memory, store_memory, store_immediate, modify_memory, compare_memory, port, string,
)  # fmt: skip


def program(mode: str, random: Random, length: int, end: bytes) -> bytes:
    """A straight-line guest of about ``length`` instructions; every flag is defined when it ends."""
    e = Encoder(mode, random)
    code = e.load(BASE, WINDOW)
    for _ in range(length):
        code += random.choice(ACCESSES if random.random() < 0.4 else REGISTERS)(e)  # noqa: PLR2004  two in five
    return code + compare(e) + end
