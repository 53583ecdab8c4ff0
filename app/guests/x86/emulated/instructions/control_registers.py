"""Control and debug registers: what may be written to them, and what follows (``kvm_set_cr0`` and its like)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kickstand.guests.x86.state.control import CR0_CD, CR0_ET, CR0_NW, is_legal_cr3, is_valid_cr0, is_valid_cr4
from kickstand.guests.x86.state.faults import DB, GP, UD, GuestFaultError
from kickstand.guests.x86.state.registers import (
    CR0_PG,
    CR4_PAE,
    CR4_PSE,
    CR4_SMEP,
    EFER_LMA,
    EFER_LME,
    CpuState,
)
from kickstand.guests.x86.state.segments import CS

if TYPE_CHECKING:
    from kickstand.guests.x86.memory.physical import PhysicalMemory
    from kickstand.guests.x86.state.model import Model

_CR0_EXISTING = 0xE005_003F
_CR0_PDPTR_BITS = CR0_CD | CR0_NW | CR0_PG
CR4_DE, CR4_PGE, CR4_PCIDE = 1 << 3, 1 << 7, 1 << 17
_CR4_PDPTR_BITS = CR4_PGE | CR4_PSE | CR4_PAE | CR4_SMEP
_NO_FLUSH = 1 << 63
_DR6_FIXED, _DR6_VOLATILE, _DR6_BD, _DR6_TRAPS = 0xFFFF_0FF0, 0xE00F, 1 << 13, 0xE00F
_DR7_FIXED, _DR7_VOLATILE, _DR7_GD = 0x400, 0xFFFF_2BFF, 1 << 13
_FRAME = 0xFFFF_FFFF_FFFF_F000
_PAE_TABLES = 4


class ControlRegisters:
    """Moves to control and debug registers of one CPU. Each raises the guest's fault, and has no effect then."""

    def __init__(self, state: CpuState, memory: PhysicalMemory, model: Model, changed: Callable[[], None]) -> None:
        self._state = state
        self._memory = memory
        self._model = model
        self.changed = changed
        """Translations are others now."""

    def read(self, number: int) -> int:
        """MOV from a control register; #UD for one that does not exist."""
        if number == 8:  # noqa: PLR2004 - CR8
            return self._state.cr8
        if number not in (0, 2, 3, 4):
            raise GuestFaultError(UD)
        return int(self._state.cr[number])

    def write(self, number: int, value: int) -> None:
        """MOV to a control register: #UD for one that does not exist, #GP for a value it cannot have."""
        writers = {0: self._write_cr0, 2: self._write_cr2, 3: self._write_cr3, 4: self._write_cr4, 8: self._write_cr8}
        if number not in writers:
            raise GuestFaultError(UD)
        writers[number](value)
        self._state.update_hidden_flags()

    @staticmethod
    def _must(holds: bool) -> None:
        if not holds:
            raise GuestFaultError(GP)

    def _write_cr0(self, value: int) -> None:
        state, old = self._state, int(self._state.cr[0])
        self._must(is_valid_cr0(value))
        value = (value | CR0_ET) & _CR0_EXISTING
        starts, stops = value & CR0_PG and not old & CR0_PG, old & CR0_PG and not value & CR0_PG
        pae = bool(state.cr[4] & CR4_PAE)
        if state.efer & EFER_LME:
            self._must(not starts or (pae and not state.segment[CS].long))
        elif value & CR0_PG and pae and (value ^ old) & _CR0_PDPTR_BITS:
            self._must(self._tables_are_valid(state.cr[3]))
        self._must(bool(value & CR0_PG) or not (state.bits == 64 or state.cr[4] & CR4_PCIDE))  # noqa: PLR2004
        state.cr[0] = value
        if state.efer & EFER_LME and (starts or stops):
            state.efer = state.efer & ~EFER_LMA | (EFER_LMA if starts else 0)
        self.changed()

    def _write_cr2(self, value: int) -> None:
        self._state.cr[2] = value

    def _write_cr3(self, value: int) -> None:
        state = self._state
        if state.cr[4] & CR4_PCIDE:
            value &= ~_NO_FLUSH
        self._must(is_legal_cr3(value, self._model.cpuid))
        self._must(not self._is_pae_paging(state.cr[0], state.cr[4]) or self._tables_are_valid(value))
        state.cr[3] = value
        self.changed()

    def _write_cr4(self, value: int) -> None:
        state, old = self._state, int(self._state.cr[4])
        self._must(is_valid_cr4(value, self._model.cpuid))
        if state.long_mode:
            self._must(bool(value & CR4_PAE))
        elif self._is_pae_paging(state.cr[0], value) and (value ^ old) & _CR4_PDPTR_BITS:
            self._must(self._tables_are_valid(state.cr[3]))
        if value & ~old & CR4_PCIDE:
            self._must(state.long_mode and not state.cr[3] & 0xFFF)
        state.cr[4] = value
        self.changed()

    def _write_cr8(self, value: int) -> None:
        self._must(not value & ~0xF)
        self._state.cr8 = value

    def _is_pae_paging(self, cr0: int, cr4: int) -> bool:
        return bool(cr0 & CR0_PG and cr4 & CR4_PAE and not self._state.long_mode)

    def _tables_are_valid(self, cr3: int) -> bool:
        """``load_pdptrs``: the four top entries of PAE paging are read at once, and may have no reserved bit."""
        data = self._memory.read(cr3 & 0xFFFF_FFE0, 8 * _PAE_TABLES)
        if data is None:
            return False
        entries = [int.from_bytes(data[at : at + 8], "little") for at in range(0, 8 * _PAE_TABLES, 8)]
        reserved = self._model.cpuid.reserved_gpa_bits | 0x1E6
        return not any(entry & 1 and entry & reserved for entry in entries)

    # -- debug registers -------------------------------------------------------------------------------------

    def _debug_register(self, number: int) -> int:
        """The register that is meant; #UD where 4 and 5 are none, #DB where looking is a trap."""
        state = self._state
        if number > 7 or (number in (4, 5) and state.cr[4] & CR4_DE):  # noqa: PLR2004 - DR7 is the last
            raise GuestFaultError(UD)
        if state.dr[7] & _DR7_GD:
            state.dr[6] = state.dr[6] & ~_DR6_TRAPS | _DR6_BD | _DR6_FIXED
            state.dr[7] &= ~_DR7_GD
            raise GuestFaultError(DB)
        return number + 2 if number in (4, 5) else number

    def read_debug(self, number: int) -> int:
        """MOV from a debug register."""
        return int(self._state.dr[self._debug_register(number)])

    def write_debug(self, number: int, value: int) -> None:
        """MOV to a debug register (``kvm_set_dr``)."""
        number = self._debug_register(number)
        if number >= 6:  # noqa: PLR2004 - DR6 and DR7
            self._must(not value >> 32)
            fixed, volatile = (_DR6_FIXED, _DR6_VOLATILE) if number == 6 else (_DR7_FIXED, _DR7_VOLATILE)  # noqa: PLR2004
            value = value & volatile | fixed
        self._state.dr[number] = value
