"""The page-table walk (``FNAME(walk_addr_generic)``): real mode, 32-bit, PAE and 4-level paging.

The translator's own walk is not used. Doing it here gives exact error codes, accessed and dirty bits that are
logged like any guest write, and a say in every entry of its TLB.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.guests.x86.faults import GP, PF, GuestFaultError
from app.guests.x86.memory import PAGE_MASK
from app.guests.x86.registers import (
    CR0_PG,
    CR0_WP,
    CR4_PAE,
    CR4_PSE,
    CR4_SMAP,
    CR4_SMEP,
    EFER_NXE,
    FLAG_AC,
)

if TYPE_CHECKING:
    from app.guests.x86.memory import PhysicalMemory
    from app.guests.x86.registers import CpuState

READ, WRITE, FETCH = 0, 2, 16  # the bits of a page-fault error code
_PRESENT, _WRITABLE, _USER, _ACCESSED, _DIRTY, _LARGE = 1, 2, 4, 32, 64, 128
_ERROR_USER, _ERROR_RESERVED = 4, 8
_NX = 1 << 63
_FRAME = 0xFFFFFFFFFF000
_CANONICAL_BITS = 47


@dataclass(frozen=True, slots=True)
class Page:
    """Where a virtual page is: its guest-physical address, and whether writes may go there at once."""

    gpa: int
    writable: bool


@dataclass(slots=True)
class _Entry:
    gpa: int
    value: int
    size: int


class Mmu:
    """Translates virtual pages with the control registers of one CPU."""

    def __init__(self, memory: PhysicalMemory, state: CpuState) -> None:
        self._memory = memory
        self._state = state

    def translate(self, address: int, access: int, *, user: bool) -> Page:
        """Return the page of ``address``; raises the guest's #PF or #GP."""
        state = self._state
        if not state.cr[0] & CR0_PG:
            return Page(address & 0xFFFFF000, writable=True)
        if state.long_mode and address >> _CANONICAL_BITS not in (0, (1 << 64 - _CANONICAL_BITS) - 1):
            raise GuestFaultError(GP)
        entries, shift = self._walk(address, access, user=user)
        return self._check(address, access, entries, shift, user=user)

    def _levels(self) -> tuple[tuple[int, ...], int, int]:
        """The shifts from the root down, bits per level, and bytes per entry."""
        state = self._state
        if state.long_mode:
            return (39, 30, 21, 12), 9, 8
        if state.cr[4] & CR4_PAE:
            return (30, 21, 12), 9, 8
        return (22, 12), 10, 4

    def _walk(self, address: int, access: int, *, user: bool) -> tuple[list[_Entry], int]:
        shifts, bits, size = self._levels()
        table = self._state.cr[3] & (_FRAME if len(shifts) != 3 else 0xFFFFFFE0)  # noqa: PLR2004 - PAE root: 32 bytes
        entries = []
        shift = 0
        for shift in shifts:
            entry = self._entry(table + (address >> shift & (1 << bits) - 1) * size, size)
            if entry is None or not entry.value & _PRESENT:
                raise self._fault(address, access, present=False, user=user)
            entries.append(entry)
            if shift > 12 and self._is_large(entry.value, shift, size):  # noqa: PLR2004 - the last level
                break
            table = entry.value & _FRAME
        return entries, shift

    def _entry(self, gpa: int, size: int) -> _Entry | None:
        data = self._memory.read(gpa, size)
        return None if data is None else _Entry(gpa, int.from_bytes(data, "little"), size)

    def _is_large(self, value: int, shift: int, size: int) -> bool:
        if not value & _LARGE:
            return False
        if size == 4:  # noqa: PLR2004 - 4-byte entries: 32-bit paging
            return bool(self._state.cr[4] & CR4_PSE)
        return shift == 21 or (shift == 30 and self._state.long_mode)  # noqa: PLR2004 - 2 MiB and 1 GiB

    def _check(self, address: int, access: int, entries: list[_Entry], shift: int, *, user: bool) -> Page:
        state = self._state
        # The top level of PAE has no permission bits.
        judged = entries[1:] if not state.long_mode and entries[0].size == 8 else entries  # noqa: PLR2004
        rights = _WRITABLE | _USER
        for entry in judged:
            rights &= entry.value
        never = any(entry.value & _NX for entry in entries) and entries[0].size == 8  # noqa: PLR2004
        if never and not state.efer & EFER_NXE:
            raise self._fault(address, access, present=True, user=user, extra=_ERROR_RESERVED)
        writable = bool(rights & _WRITABLE) or (not user and not state.cr[0] & CR0_WP)
        if not self._allowed(access, rights, user=user, writable=writable, never=never):
            raise self._fault(address, access, present=True, user=user)
        dirty = self._mark(entries, access)
        leaf = entries[-1]
        low = (1 << shift) - 1
        frame = leaf.value & _FRAME & ~low
        if leaf.size == 4 and shift == 22:  # noqa: PLR2004 - PSE-36: bits 13-20 are the upper address bits
            frame = leaf.value & 0xFFC00000 | (leaf.value >> 13 & 0xFF) << 32
        return Page(frame | address & low & PAGE_MASK, writable=writable and dirty)

    def _allowed(self, access: int, rights: int, *, user: bool, writable: bool, never: bool) -> bool:
        cr4 = self._state.cr[4]
        user_page = bool(rights & _USER)
        if user and not user_page:
            return False
        if access == FETCH:
            return not never and (user or not (user_page and cr4 & CR4_SMEP))
        if not user and user_page and cr4 & CR4_SMAP and not self._state.eflags & FLAG_AC:
            return False
        return writable or access != WRITE

    def _mark(self, entries: list[_Entry], access: int) -> bool:
        """Set accessed and dirty bits like a guest write; true if the leaf is dirty."""
        for entry in entries:
            leaf = entry is entries[-1]
            value = entry.value | _ACCESSED | (_DIRTY if leaf and access == WRITE else 0)
            if value != entry.value and self._memory.write(entry.gpa, value.to_bytes(entry.size, "little")):
                entry.value = value
        return access == WRITE or bool(entries[-1].value & _DIRTY)

    def _fault(self, address: int, access: int, *, present: bool, user: bool, extra: int = 0) -> GuestFaultError:
        state = self._state
        error = (_PRESENT if present else 0) | extra | (_ERROR_USER if user else 0)
        if access != FETCH or state.efer & EFER_NXE or state.cr[4] & CR4_SMEP:
            error |= access
        return GuestFaultError(PF, error, address)
