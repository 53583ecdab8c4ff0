"""CMPXCHG8B and CMPXCHG16B in 64-bit code, of memory that simply is there: kernels allocate with it.

Everything else about them is for the stepper: devices, faults, operands that are not aligned.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from kickstand.guests.x86.emulated.decoding.decode import shape
from kickstand.guests.x86.memory.physical import AccessStoppedError
from kickstand.guests.x86.state.faults import GuestFaultError
from kickstand.guests.x86.state.registers import FLAG_TF, RAX, RBX, RCX, RDX
from kickstand.guests.x86.state.segments import DS, FS, GS

if TYPE_CHECKING:
    from kickstand.guests.x86.memory.virtual import VirtualMemory
    from kickstand.guests.x86.state.registers import CpuState

OPCODE, _EXTENSION = 0x0FC7, 1
_SEGMENTS = {0x26: DS, 0x2E: DS, 0x36: DS, 0x3E: DS, 0x64: FS, 0x65: GS}  # those without a base are as good as DS
_LOCK = 0xF0  # nobody else runs now
_REX, _W, _X, _B = range(0x40, 0x50), 8, 2, 1
_SIB, _NO_INDEX, _NO_BASE = 4, 4, 5
_LONG, _MASK64 = 64, (1 << 64) - 1
_RING3, _ZERO = 3, 1 << 6


@dataclass(frozen=True, slots=True)
class Operand:
    """``half``: bytes of a register; an operand that is relative to RIP has neither base nor index."""

    half: int
    length: int
    segment: int
    displacement: int
    base: int | None
    index: int | None
    scale: int
    of_rip: bool

    def offset(self, state: CpuState) -> int:
        """Where it is in its segment."""
        value = self.displacement + (state.rip + self.length if self.of_rip else 0)
        if self.base is not None:
            value += state.gpr[self.base]
        if self.index is not None:
            value += state.gpr[self.index] << self.scale
        return value & _MASK64


@lru_cache(256)
def operand(code: bytes) -> Operand | None:
    """Decode what it names; None for other instructions, and for prefixes that are not usual."""
    seen = shape(code, _LONG)
    if seen.opcode != OPCODE or seen.extension != _EXTENSION or not seen.on_memory:
        return None
    prefixes = seen.prefixes
    rex = prefixes[-1] if prefixes and prefixes[-1] in _REX else 0
    others = prefixes[:-1] if rex else prefixes
    named = [byte for byte in others if byte != _LOCK]
    if len(named) > 1 or not _SEGMENTS.keys() >= set(named):
        return None
    mode, low, at = seen.modrm >> 6, seen.modrm & 7, len(prefixes) + 3
    base, index, scale = low | (rex & _B) << 3, None, 0
    if low == _SIB:
        sib = code[at] if at < len(code) else 0
        at += 1
        low, scale = sib & 7, sib >> 6
        base, number = low | (rex & _B) << 3, sib >> 3 & 7 | (rex & _X) << 2
        index = None if number == _NO_INDEX else number
    bare = mode == 0 and low == _NO_BASE
    size = 4 if bare else (0, 1, 4)[mode]
    if at + size > len(code):
        return None
    displacement = int.from_bytes(code[at : at + size], "little", signed=True)
    of_rip = bare and seen.modrm & 7 != _SIB
    return Operand(
        8 if rex & _W else 4,
        at + size,
        _SEGMENTS[named[0]] if named else DS,
        displacement,
        None if bare else base,
        index,
        scale,
        of_rip,
    )


class Exchange:
    """These instructions of one CPU."""

    def __init__(self, state: CpuState, virtual: VirtualMemory) -> None:
        self._state = state
        self._virtual = virtual

    def perform(self, code: bytes) -> int:
        """Do it, but for moving RIP; how many bytes it has, or 0: nothing was done, and the stepper looks at it."""
        state = self._state
        found = operand(code) if state.bits == _LONG and not state.eflags & FLAG_TF else None
        if found is None:
            return 0
        address, size = state.linear(found.segment, found.offset(state)), 2 * found.half
        if address % size:
            return 0
        expected, new = self._pair(RDX, RAX, found.half), self._pair(RCX, RBX, found.half)
        with suppress(GuestFaultError, AccessStoppedError):
            old = self._virtual.exchange(address, expected, new, user=state.cpl == _RING3)
            if old is not None:
                self._tell(old, equal=old == expected)
                return found.length
        return 0

    def _pair(self, high: int, low: int, size: int) -> bytes:
        gpr, mask = self._state.gpr, (1 << 8 * size) - 1
        return ((gpr[high] & mask) << 8 * size | gpr[low] & mask).to_bytes(2 * size, "little")

    def _tell(self, old: bytes, *, equal: bool) -> None:
        state, half = self._state, len(old) // 2
        if equal:
            state.eflags |= _ZERO
            return
        state.eflags &= ~_ZERO
        state.gpr[RAX], state.gpr[RDX] = int.from_bytes(old[:half], "little"), int.from_bytes(old[half:], "little")
