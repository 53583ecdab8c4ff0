"""Which instructions KVM's emulator knows (the opcode tables of ``emulate.c``).

Only these can access a device: any other that meets a hole or writes to a readonly slot is an emulation failure, and
has had no effect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kickstand.guests.x86.emulated.decoding.decode import Shape

_ONE_BYTE = frozenset(range(0x100)) - {0x62, *range(0xD8, 0xE0)}  # BOUND, and all of the x87 but for two
_X87 = {0xD9: 7, 0xDD: 7}  # FNSTCW, FNSTSW
_TWO_BYTE = frozenset((
    0x05, 0x06, 0x08, 0x09, 0x0D, *range(0x18, 0x24), *range(0x30, 0x36), *range(0x40, 0x50), *range(0x80, 0xA4), 0xA4,
    0xA5, *range(0xA8, 0xAE), 0xAF, *range(0xB0, 0xB8), 0xBB, *range(0xBC, 0xC2), 0xC3, *range(0xC8, 0xD0),
))  # fmt: skip
_GROUPS = {0x00: range(4), 0x01: (0, 1, 2, 3, 4, 6, 7), 0xAE: (0, 1, 7), 0xBA: range(4, 8), 0xC7: (1,)}
_NONE, _DATA, _REPNE, _REP = 0, 0x66, 0xF2, 0xF3
_VECTORS = {  # opcode: the prefixes with which it is known
    0x10: (_NONE, _DATA), 0x11: (_NONE, _DATA), 0x28: (_NONE, _DATA), 0x29: (_NONE, _DATA), 0x2B: (_NONE, _DATA),
    0x6F: (_NONE, _DATA, _REP), 0x7F: (_NONE, _DATA, _REP), 0xE7: (_DATA,),
}  # fmt: skip
_THREE_BYTE = {0x2A: (_DATA,), 0xF0: (_NONE, _DATA), 0xF1: (_NONE, _DATA)}  # MOVNTDQA, MOVBE
_VEX = (0xC4, 0xC5)


def is_emulated(seen: Shape) -> bool:
    """True if KVM's emulator can do the memory access of this instruction."""
    width, opcode = divmod(seen.opcode, 0x100)
    if not width:
        if opcode in _VEX and (seen.bits == 64 or not seen.on_memory):  # noqa: PLR2004 - 64-bit code
            return False
        return opcode in _ONE_BYTE or _X87.get(opcode) == seen.extension
    if opcode == 0x38:  # noqa: PLR2004 - one more byte, where others have ModRM
        return _prefix(seen) in _THREE_BYTE.get(seen.modrm, ())
    if opcode in _VECTORS:
        return _prefix(seen) in _VECTORS[opcode]
    if opcode == 0xAE:  # noqa: PLR2004 - FXSAVE, FXRSTOR, CLFLUSH, CLFLUSHOPT
        return seen.extension in _GROUPS[opcode] and _prefix(seen) in (_NONE, _DATA)
    if opcode in _GROUPS:
        return seen.extension in _GROUPS[opcode]
    return opcode in _TWO_BYTE


def _prefix(seen: Shape) -> int | None:
    """The one prefix that chooses among vector instructions; None for several."""
    repeats = [byte for byte in seen.prefixes if byte in (_REPNE, _REP)]
    if _DATA in seen.prefixes:
        return None if repeats else _DATA
    return repeats[-1] if repeats else _NONE
