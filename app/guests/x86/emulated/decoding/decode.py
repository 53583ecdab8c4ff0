"""Decoding of the few instructions that KVM, not the translator, executes."""

from __future__ import annotations

from dataclasses import dataclass

from kickstand.guests.x86.state.segments import CS, DS, ES, FS, GS, SS

HLT = 0xF4
SYSCALL, SYSENTER = 0x0F05, 0x0F34
IRET = 0xCF
FAR_RETURNS = (0xCA, 0xCB)
_SEGMENTS = {0x26: ES, 0x2E: CS, 0x36: SS, 0x3E: DS, 0x64: FS, 0x65: GS}
_OPERAND_SIZE, _ADDRESS_SIZE, _LOCK = 0x66, 0x67, 0xF0
_REPEATS = (0xF2, 0xF3)
_PORT_IMMEDIATE = range(0xE4, 0xE8)
_PORT_DX = range(0xEC, 0xF0)
_STRING = range(0x6C, 0x70)
_MEMORY_STRING = frozenset((*range(0xA4, 0xA8), *range(0xAA, 0xB0)))
_PREFIXES = frozenset((*_SEGMENTS, *_REPEATS, _OPERAND_SIZE, _ADDRESS_SIZE))
_OUT = 2
_TWO_BYTE = 0x0F
_REX, _REX_W = range(0x40, 0x50), 8
_LOAD_FAR_OLD, _LOAD_FAR = (0xC4, 0xC5), (0x0FB2, 0x0FB4, 0x0FB5)
_VEX3, _VEX_MAP = 0xC4, 0x1F  # what LES and LDS are with a memory operand, outside 64-bit code
_BMI = frozenset(((2, 0xF2), (2, 0xF3), (2, 0xF5), (2, 0xF6), (2, 0xF7), (3, 0xF0)))  # VEX map and opcode
_POP = 0x8F
_GROUP6, _LTR = 0x0F00, 3
_GROUP7, _TABLES = 0x0F01, (2, 3)  # LGDT, LIDT
_GROUP15, _FLUSH = 0x0FAE, 7
_GROUP5, _FAR, _PUSHA = 0xFF, (3, 5), 0x60
_LOAD_VECTOR, _LOAD_INTEGERS = (0x0F10, 0x0F28), 0x0F6F
_SELECTOR, _HALF = 2, 8
_STACK = frozenset((*range(0x50, 0x62), 0x68, 0x6A, 0x9C, 0x9D, 0xC2, 0xC3, 0xC8, 0xC9, 0xCA, 0xCB, 0xCF, 0xE8,
                    0x0FA0, 0x0FA1, 0x0FA8, 0x0FA9))  # fmt: skip
_CMP = 0x38
_SHIFTS = (0xC0, 0xC1, 0xD0, 0xD1, 0xD2, 0xD3)
_NEVER_LOCKED = frozenset((*_SHIFTS, 0x0FA4, 0x0FA5, 0x0FAC, 0x0FAD))
_MODIFY = frozenset((*_SHIFTS, 0x86, 0x87, 0x0FA4, 0x0FA5, 0x0FAB, 0x0FAC, 0x0FAD, 0x0FB0, 0x0FB1, 0x0FB3, 0x0FBB,
                     0x0FC0, 0x0FC1))  # fmt: skip
_MODIFY_GROUPS = {
    0x80: range(7), 0x81: range(7), 0x82: range(7), 0x83: range(7), 0xF6: (2, 3), 0xF7: (2, 3), 0xFE: (0, 1),
    0xFF: (0, 1), 0x0FBA: (5, 6, 7), 0x0FC7: (1,),
}  # fmt: skip
_UNARY, _TEST, _NEG, _REGISTERS = (0xF6, 0xF7), 1, 3, 0xC0
_MOV_SEGMENT, _LSS, _STACK_SEGMENT = 0x8E, 0x0FB2, 2
_ALIGNED = frozenset((0x0F28, 0x0F29, 0x0F2B))
_ALIGNED_INTEGER = frozenset((0x0F6F, 0x0F7F, 0x0FE7))  # without the prefix they move 8 bytes of MMX
_LOAD_BYTE = b"\x0f\xb6"
_COMPARE_STRING = (0xA6, 0xA7)
_PUSH_SELECTOR = frozenset((0x06, 0x0E, 0x16, 0x1E, 0x0FA0, 0x0FA8))
_OURS = frozenset((*_COMPARE_STRING, *_PORT_IMMEDIATE, *_PORT_DX, *_STRING, HLT, IRET, SYSCALL, SYSENTER))


@dataclass(frozen=True, slots=True)
class Instruction:
    """``opcode`` without prefixes (two bytes after 0F), ``size`` of the operand in bytes for port I/O."""

    opcode: int
    length: int
    size: int
    address_bits: int
    segment: int = DS
    repeat: bool = False
    port: int | None = None

    @property
    def is_string(self) -> bool:
        """INS or OUTS."""
        return self.opcode in _STRING

    @property
    def compares_strings(self) -> bool:
        """CMPS."""
        return self.opcode in _COMPARE_STRING

    @property
    def is_port(self) -> bool:
        """Any of IN, OUT, INS, OUTS."""
        return self.is_string or self.opcode in _PORT_IMMEDIATE or self.opcode in _PORT_DX

    @property
    def is_out(self) -> bool:
        """OUT or OUTS."""
        return bool(self.opcode & _OUT)


def decode(code: bytes, bits: int) -> Instruction | None:
    """Decode port I/O, HLT, IRET, CMPS, SYSCALL or SYSENTER; None for everything else."""
    at, segment, repeat = 0, DS, False
    operand = address = wide = False
    while at < len(code):
        byte = code[at]
        if byte in _SEGMENTS:
            segment = _SEGMENTS[byte]
        elif byte in _REPEATS:
            repeat = True
        elif byte == _OPERAND_SIZE:
            operand = True
        elif byte == _ADDRESS_SIZE:
            address = True
        elif bits == 64 and byte in _REX:  # noqa: PLR2004 - 64-bit code
            wide = bool(byte & _REX_W)
        else:
            break
        at += 1
    operand_bits = 16 if (bits == 16) != operand else 32  # noqa: PLR2004
    if wide and at < len(code) and code[at] in _COMPARE_STRING:  # to everything else that is ours REX means nothing
        operand_bits = 64
    return _finish(code, at, operand_bits, _address_bits(bits, address), segment, repeat)


def is_repeated_string(code: bytes, bits: int) -> bool:
    """True for REP and a string instruction without ports."""
    repeat = False
    for byte in code:
        if byte in _REPEATS:
            repeat = True
        elif byte not in _PREFIXES and not (bits == 64 and byte in _REX):  # noqa: PLR2004 - 64-bit code
            return repeat and byte in _MEMORY_STRING
    return False


@dataclass(frozen=True, slots=True)
class Shape:
    """An instruction as far as its prefixes, opcode (two bytes after 0F) and ModRM byte tell what it is."""

    prefixes: bytes
    opcode: int
    modrm: int
    bits: int

    @property
    def on_memory(self) -> bool:
        """The operand that ModRM names is in memory."""
        return self.modrm < _REGISTERS

    @property
    def extension(self) -> int:
        """The opcode's part in ModRM."""
        return self.modrm >> 3 & 7

    @property
    def is_aligned_vector(self) -> bool:
        """A move of 16 bytes that must be aligned: MOVAPS, MOVAPD, MOVDQA and the non-temporal stores."""
        if not self.on_memory or not set(_REPEATS).isdisjoint(self.prefixes):
            return False
        return self.opcode in _ALIGNED or (self.opcode in _ALIGNED_INTEGER and _OPERAND_SIZE in self.prefixes)

    @property
    def is_locked_neg(self) -> bool:
        """LOCK NEG of memory."""
        return _LOCK in self.prefixes and self.opcode in _UNARY and self.extension == _NEG and self.on_memory

    @property
    def is_far_operand(self) -> bool:
        """A far pointer in memory: LES, LDS, LSS, LFS, LGS, and CALL and JMP through one."""
        if self.opcode == _GROUP5:
            return self.on_memory and self.extension in _FAR
        return self.on_memory and (self.opcode in _LOAD_FAR or (self.opcode in _LOAD_FAR_OLD and self.bits != 64))  # noqa: PLR2004

    @property
    def joined(self) -> int:
        """How many bytes the engine reads separately that KVM reads together with the first part of the operand."""
        if self.is_far_operand:
            return _SELECTOR
        scalar = not set(_REPEATS).isdisjoint(self.prefixes)
        vector = self.opcode in _LOAD_VECTOR and not scalar
        if self.opcode == _LOAD_INTEGERS:
            vector = scalar or _OPERAND_SIZE in self.prefixes
        return _HALF if vector and self.on_memory else 0

    @property
    def is_locked_in_vain(self) -> bool:
        """LOCK where it is not allowed: #UD."""
        return _LOCK in self.prefixes and not (self.modifies and self.opcode not in _NEVER_LOCKED)

    @property
    def modifies(self) -> bool:
        """It reads an operand in memory in order to write it."""
        opcode = self.opcode
        if opcode in _MODIFY_GROUPS:
            return self.on_memory and self.extension in _MODIFY_GROUPS[opcode]
        arithmetic = opcode < _CMP and opcode & 7 < 2  # noqa: PLR2004 - to memory
        return self.on_memory and (arithmetic or opcode in _MODIFY)

    @property
    def is_stack_access(self) -> bool:
        """All it does to memory goes through SS."""
        return self.opcode in _STACK

    @property
    def pushes_all(self) -> bool:
        """PUSHA."""
        return self.opcode == _PUSHA and self.bits != 64  # noqa: PLR2004 - 64-bit code

    @property
    def is_flush(self) -> bool:
        """CLFLUSH and CLFLUSHOPT, which read a byte of the line when they are emulated."""
        return self.opcode == _GROUP15 and self.extension == _FLUSH and self.on_memory and not self._repeats

    @property
    def _repeats(self) -> bool:
        return not set(_REPEATS).isdisjoint(self.prefixes)

    @property
    def is_load_task(self) -> bool:
        """LTR."""
        return self.opcode == _GROUP6 and self.extension == _LTR

    @property
    def loads_table(self) -> bool:
        """LTR, LGDT, LIDT."""
        return self.is_load_task or (self.opcode == _GROUP7 and self.on_memory and self.extension in _TABLES)

    @property
    def loads_stack(self) -> bool:
        """MOV to SS, LSS."""
        return self.opcode == _LSS or (self.opcode == _MOV_SEGMENT and self.extension == _STACK_SEGMENT)

    @property
    def pushes_selector(self) -> bool:
        """PUSH of a segment register that takes 32 bits on the stack."""
        wide = (self.bits == 16) == (_OPERAND_SIZE in self.prefixes)  # noqa: PLR2004 - 16-bit code
        return self.opcode in _PUSH_SELECTOR and wide and self.bits != 64  # noqa: PLR2004


def shape(code: bytes, bits: int) -> Shape:
    """Look at an instruction; one that is not all there has an opcode of zero or no operand in memory."""
    at = 0
    while at < len(code) and (code[at] in _PREFIXES or code[at] == _LOCK or (bits == 64 and code[at] in _REX)):  # noqa: PLR2004
        at += 1
    width = 2 if code[at : at + 1] == b"\x0f" else 1
    modrm = code[at + width] if at + width < len(code) else _REGISTERS
    return Shape(code[:at], int.from_bytes(code[at : at + width], "big"), modrm, bits)


def is_undefined(code: bytes, bits: int) -> bool:
    """#UD that the engine does not raise: LOCK in vain, XOP, and VEX but for BMI's instructions."""
    seen = shape(code, bits)
    if seen.opcode in _LOAD_FAR_OLD and (bits == 64 or not seen.on_memory):  # noqa: PLR2004 - 64-bit code
        vex = code[len(seen.prefixes) :]
        known = len(vex) > 3 and vex[0] == _VEX3 and (vex[1] & _VEX_MAP, vex[3]) in _BMI  # noqa: PLR2004
        return len(vex) > 1 and not known
    return seen.is_locked_in_vain or (seen.opcode == _POP and seen.extension != 0)


def without_lock(code: bytes, bits: int) -> bytes:
    """LOCK NEG of memory without its LOCK, in the same length; everything else as it is."""
    seen = shape(code, bits)
    if not seen.is_locked_neg:
        return code
    return seen.prefixes.replace(b"\xf0", b"\xf3") + code[len(seen.prefixes) :]


def as_test(code: bytes, bits: int) -> bytes | None:
    """F6 /1 and F7 /1, which no manual of Intel's has, as the TEST that they are; None for everything else."""
    seen = shape(code, bits)
    if seen.opcode not in _UNARY or seen.extension != _TEST:
        return None
    at = len(seen.prefixes) + 1
    return code[:at] + bytes([code[at] & ~(_TEST << 3)]) + code[at + 1 :]


def as_load(code: bytes, bits: int) -> bytes | None:
    """CLFLUSH as a MOVZX that reads its byte, in the same length; None for everything else."""
    seen = shape(code, bits)
    if not seen.is_flush:
        return None
    at = len(seen.prefixes)
    return seen.prefixes + _LOAD_BYTE + code[at + len(_LOAD_BYTE) :]


def _address_bits(bits: int, override: bool) -> int:
    if not override:
        return bits
    return {16: 32, 32: 16, 64: 32}[bits]


def _finish(
    code: bytes, at: int, operand_bits: int, address_bits: int, segment: int, repeat: bool
) -> Instruction | None:
    opcode = code[at] if at < len(code) else _LOCK
    at += 1
    port = None
    if opcode == _TWO_BYTE or opcode in _PORT_IMMEDIATE:
        if at == len(code):
            return None
        if opcode == _TWO_BYTE:
            opcode = _TWO_BYTE << 8 | code[at]
        else:
            port = code[at]
        at += 1
    if opcode not in _OURS:
        return None
    size = operand_bits // 8 if opcode & 1 else 1
    return Instruction(opcode, at, size, address_bits, segment, repeat, port)
