"""Repeated string instructions, as far as the emulator goes on with them by itself (EMULATION_RESTART).

A guest that clears a screen stores sixteen thousand times into a device. Where the kernel itself takes the writes, the
emulator does the next element at once; REP STOS without asking the engine, as long as it stays in its page.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from kickstand.guests.x86.emulated.decoding.decode import is_repeated_string, shape
from kickstand.guests.x86.memory.physical import PAGE
from kickstand.guests.x86.state.registers import FLAG_TF, RAX, RCX

if TYPE_CHECKING:
    from kickstand.guests.x86.emulated.exits.pio import Ports
    from kickstand.guests.x86.state.registers import CpuState

_RESTART_MASK = 0x3FF  # it goes back to the guest after 1024 elements
_STOS = (0xAA, 0xAB)
_OPERAND_SIZE, _ADDRESS_SIZE, _REX_W = 0x66, 0x67, range(0x48, 0x50)
_LONG = 64


@dataclass(frozen=True, slots=True)
class Stos:
    """REP STOS."""

    size: int
    address_bits: int


@lru_cache(64)
def repeated_stos(code: bytes, bits: int) -> Stos | None:
    """Decode REP STOS; None for everything else."""
    seen = shape(code, bits)
    if seen.opcode not in _STOS or not is_repeated_string(code, bits):
        return None
    other = _ADDRESS_SIZE in seen.prefixes
    address_bits = {16: 32, 32: 16, _LONG: 32}[bits] if other else bits
    if seen.opcode == _STOS[0]:
        return Stos(1, address_bits)
    if bits == _LONG and seen.prefixes[-1] in _REX_W:
        return Stos(8, address_bits)
    return Stos(2 if (bits == 16) != (_OPERAND_SIZE in seen.prefixes) else 4, address_bits)  # noqa: PLR2004


class Repeated:
    """The repeated instructions of one CPU."""

    def __init__(self, state: CpuState, ports: Ports) -> None:
        self._state = state
        self._ports = ports

    def goes_on(self, rip: int, code: bytes) -> bool:
        """``code`` at ``rip`` was emulated, and the emulator does its next element before the guest goes on."""
        state = self._state
        if state.rip != rip or not state.gpr[RCX] & _RESTART_MASK or state.eflags & FLAG_TF:
            return False
        return is_repeated_string(code, state.bits)

    def next_store(self, code: bytes, gpa: int, length: int) -> tuple[int, bytes] | None:
        """The element of REP STOS behind ``length`` bytes at ``gpa``, begun; None if it has to be looked at."""
        state = self._state
        stos = repeated_stos(code, state.bits)
        if stos is None or stos.size != length:  # half of an element, behind the end of a page
            return None
        size = length
        there = gpa - size if state.backwards else gpa + size
        if not gpa - gpa % PAGE <= there <= gpa - gpa % PAGE + PAGE - size:
            return None
        data = (state.gpr[RAX] & (1 << 8 * size) - 1).to_bytes(size, "little")
        self._ports.stored(size, stos.address_bits)
        return there, data
