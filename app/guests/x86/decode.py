"""Decoding of the few instructions that KVM, not the translator, executes."""

from __future__ import annotations

from dataclasses import dataclass

from app.guests.x86.segments import CS, DS, ES, FS, GS, SS

HLT = 0xF4
SYSCALL, SYSENTER = 0x0F05, 0x0F34
IRET = 0xCF
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
_REX = range(0x40, 0x50)
_OURS = frozenset((*_PORT_IMMEDIATE, *_PORT_DX, *_STRING, HLT, IRET, SYSCALL, SYSENTER))


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
    def is_port(self) -> bool:
        """Any of IN, OUT, INS, OUTS."""
        return self.is_string or self.opcode in _PORT_IMMEDIATE or self.opcode in _PORT_DX

    @property
    def is_out(self) -> bool:
        """OUT or OUTS."""
        return bool(self.opcode & _OUT)


def decode(code: bytes, bits: int) -> Instruction | None:
    """Decode port I/O, HLT, IRET, SYSCALL or SYSENTER; None for everything else."""
    at, segment, repeat = 0, DS, False
    operand = address = False
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
        elif not (bits == 64 and byte in _REX):  # noqa: PLR2004 - REX changes nothing here
            break
        at += 1
    operand_bits = 16 if (bits == 16) != operand else 32  # noqa: PLR2004
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
