"""The page-table walk (``FNAME(walk_addr_generic)``): real mode, 32-bit, PAE and 4-level paging.

The translator's own walk is not used. Doing it here gives exact error codes, accessed and dirty bits that are
logged like any guest write, and a say in every entry of its TLB.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kickstand.core.arch.cpu.cpuid import Feature
from kickstand.guests.x86.memory.physical import PAGE, PAGE_MASK
from kickstand.guests.x86.state.faults import GP, PF, GuestFaultError
from kickstand.guests.x86.state.registers import (
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
    from kickstand.guests.x86.memory.physical import PhysicalMemory
    from kickstand.guests.x86.state.model import Model
    from kickstand.guests.x86.state.registers import CpuState

READ, WRITE, FETCH = 0, 2, 16  # the bits of a page-fault error code
PRESENT, WRITABLE, USER, ACCESSED, DIRTY, LARGE = 1, 2, 4, 32, 64, 128
NX = 1 << 63
FRAME = 0xFFFFFFFFFF000
_ERROR_USER, _ERROR_RESERVED = 4, 8
_GLOBAL = 1 << 8
_CANONICAL_BITS = 47
_ENGINE_BITS = 40
_PSE36_RESERVED = 0x3E0000


@dataclass(slots=True)  # not frozen, which is slow to make, and each miss makes one
class Page:
    """Where a virtual page is: its guest-physical address, and whether writes may go there at once."""

    gpa: int
    writable: bool


@dataclass(slots=True)
class Entry:
    gpa: int
    value: int
    size: int


@dataclass(frozen=True, slots=True)
class _Levels:
    """The shifts from the root down, bits per level, bytes per entry, and what of CR3 is the root's address."""

    shifts: tuple[int, ...]
    bits: int
    size: int
    root: int

    def is_pointer(self, shift: int) -> bool:
        """The top level of PAE is no table: four pointers to some."""
        return shift == 30 and len(self.shifts) == 3  # noqa: PLR2004


_LONG, _PAE = _Levels((39, 30, 21, 12), 9, 8, FRAME), _Levels((30, 21, 12), 9, 8, 0xFFFFFFE0)
_LEGACY = _Levels((22, 12), 10, 4, 0xFFFFF000)


def walks_alike(state: CpuState, model: Model, memory: PhysicalMemory) -> bool:
    """True if the engine's own walk finds no less reserved than ``Mmu``, going by what the root has now.

    It takes 40 bits of guest-physical address, and 1 GiB pages and the global bit everywhere.
    """
    if not state.cr[0] & CR0_PG:
        return True
    if model.cpuid.reserved_gpa_bits & (1 << _ENGINE_BITS) - 1:
        return False
    if not state.cr[4] & CR4_PAE:
        return not _has_reserved(memory.read(state.cr[3] & _LEGACY.root, PAGE), 4, _PSE36_RESERVED, LARGE)
    if not state.long_mode:
        return True
    root = memory.read(state.cr[3] & FRAME, PAGE)
    if _has_reserved(root, 8, _GLOBAL, 0):
        return False
    reserved = _GLOBAL if model.cpuid.has(Feature.GBPAGES) else _GLOBAL | LARGE
    entries = memoryview(root or b"").cast("Q")
    return not any(
        _has_reserved(memory.read(entry & FRAME, PAGE), 8, reserved, 0) for entry in entries if entry & PRESENT
    )


def _has_reserved(table: bytes | None, size: int, reserved: int, unless: int) -> bool:
    """True if an entry of this page that is present has one of these bits, and all of those in ``unless``."""
    entries = memoryview(table or b"").cast("Q" if size == 8 else "I")  # noqa: PLR2004 - bytes
    return any(entry & PRESENT and entry & reserved and entry & unless == unless for entry in entries)


class PageWalk:
    """Walks from CR3 with the control registers of one CPU."""

    def __init__(self, memory: PhysicalMemory, state: CpuState, model: Model) -> None:
        self._memory = memory
        self._state = state
        self._model = model

    def translate(self, address: int, access: int, *, user: bool) -> tuple[Page, list[Entry], int]:
        """The page of ``address``, and the entries that lead there, with the shift of the last.

        Raises the guest's #PF or #GP. Without paging there are no entries.
        """
        state = self._state
        if not state.cr[0] & CR0_PG:
            return Page(address & 0xFFFFF000, writable=True), [], 12
        if state.long_mode and address >> _CANONICAL_BITS not in (0, (1 << 64 - _CANONICAL_BITS) - 1):
            raise GuestFaultError(GP)
        entries, shift = self._walk(address, access, user=user)
        return self._check(address, access, entries, shift, user=user), entries, shift

    @property
    def reserved_in_tables(self) -> int:
        """What must be zero in an entry of the last of four levels."""
        return self._reserved(12, _LONG, large=False)

    def _levels(self) -> _Levels:
        state = self._state
        if state.long_mode:
            return _LONG
        return _PAE if state.cr[4] & CR4_PAE else _LEGACY

    def _walk(self, address: int, access: int, *, user: bool) -> tuple[list[Entry], int]:
        levels = self._levels()
        table = self._state.cr[3] & levels.root
        entries = []
        shift = 0
        for shift in levels.shifts:
            entry = self._entry(table + (address >> shift & (1 << levels.bits) - 1) * levels.size, levels.size)
            if entry is None or not entry.value & PRESENT:
                raise self._fault(address, access, present=False, user=user)
            large = self._is_large(entry.value, shift, levels)
            if levels.is_pointer(shift):  # looked at when CR3 is loaded, and has no rights and no accessed bit
                table = entry.value & FRAME
                continue
            if entry.value & self._reserved(shift, levels, large=large):
                raise self._fault(address, access, present=True, user=user, extra=_ERROR_RESERVED)
            entries.append(entry)
            if large:
                break
            table = entry.value & FRAME
        return entries, shift

    def _entry(self, gpa: int, size: int) -> Entry | None:
        data = self._memory.read(gpa, size)
        return None if data is None else Entry(gpa, int.from_bytes(data, "little"), size)

    def _is_large(self, value: int, shift: int, levels: _Levels) -> bool:
        if not value & LARGE:
            return False
        if levels is _LEGACY:
            return shift == 22 and bool(self._state.cr[4] & CR4_PSE)  # noqa: PLR2004 - 4 MiB
        return shift == 21 or (shift == 30 and levels is _LONG and self._has_huge_pages)  # noqa: PLR2004 - 2 MiB, 1 GiB

    @property
    def _has_huge_pages(self) -> bool:
        return self._model.cpuid.has(Feature.GBPAGES)

    def _reserved(self, shift: int, levels: _Levels, *, large: bool) -> int:
        """``__reset_rsvds_bits_mask``: what must be zero in an entry of this level."""
        if levels is _LEGACY:
            return _PSE36_RESERVED if large else 0
        mask = self._model.cpuid.reserved_gpa_bits & (1 << 52) - 1
        mask |= 0 if self._state.efer & EFER_NXE else NX
        if large:
            return mask | (1 << shift) - (1 << 13)
        if shift == 39 or (shift == 30 and not self._has_huge_pages):  # noqa: PLR2004 - PML4E, and no 1 GiB pages
            mask |= LARGE
        return mask | (_GLOBAL if shift >= 30 else 0)  # noqa: PLR2004 - of this vendor, above the last two levels

    def _check(self, address: int, access: int, entries: list[Entry], shift: int, *, user: bool) -> Page:
        rights = WRITABLE | USER
        for entry in entries:
            rights &= entry.value
        never = any(entry.value & NX for entry in entries)
        writable = bool(rights & WRITABLE) or (not user and not self._state.cr[0] & CR0_WP)
        if not self._allowed(access, rights, user=user, writable=writable, never=never):
            raise self._fault(address, access, present=True, user=user)
        dirty = self._mark(entries, access)
        leaf = entries[-1]
        low = (1 << shift) - 1
        frame = leaf.value & FRAME & ~low
        if leaf.size == 4 and shift == 22:  # noqa: PLR2004 - PSE-36: bits 13-20 are the upper address bits
            frame = leaf.value & 0xFFC00000 | (leaf.value >> 13 & 0xFF) << 32
        return Page(frame | address & low & PAGE_MASK, writable=writable and dirty)

    def _allowed(self, access: int, rights: int, *, user: bool, writable: bool, never: bool) -> bool:
        cr4 = self._state.cr[4]
        user_page = bool(rights & USER)
        if user and not user_page:
            return False
        if access == FETCH:
            return not never and (user or not (user_page and cr4 & CR4_SMEP))
        if not user and user_page and cr4 & CR4_SMAP and not self._state.eflags & FLAG_AC:
            return False
        return writable or access != WRITE

    def _mark(self, entries: list[Entry], access: int) -> bool:
        """Set accessed and dirty bits like a guest write; true if the leaf is dirty."""
        for entry in entries:
            leaf = entry is entries[-1]
            value = entry.value | ACCESSED | (DIRTY if leaf and access == WRITE else 0)
            if value != entry.value and self._memory.write(entry.gpa, value.to_bytes(entry.size, "little")):
                entry.value = value
        return access == WRITE or bool(entries[-1].value & DIRTY)

    def _fault(self, address: int, access: int, *, present: bool, user: bool, extra: int = 0) -> GuestFaultError:
        state = self._state
        error = (PRESENT if present else 0) | extra | (_ERROR_USER if user else 0)
        if access != FETCH or state.efer & EFER_NXE or state.cr[4] & CR4_SMEP:
            error |= access
        return GuestFaultError(PF, error, address)
