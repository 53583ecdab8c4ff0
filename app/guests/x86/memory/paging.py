"""The page-table walk (``FNAME(walk_addr_generic)``): real mode, 32-bit, PAE and 4-level paging.

The translator's own walk is not used. Doing it here gives exact error codes, accessed and dirty bits that are
logged like any guest write, and a say in every entry of its TLB.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
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
_PRESENT, _WRITABLE, _USER, _ACCESSED, _DIRTY, _LARGE = 1, 2, 4, 32, 64, 128
_ERROR_USER, _ERROR_RESERVED = 4, 8
_NX = 1 << 63
_IN_LARGE = 0x1FF000  # which page of 2 MiB
_word = ctypes.c_uint64.from_address
_FRAME = 0xFFFFFFFFFF000
_GLOBAL = 1 << 8
_CANONICAL_BITS = 47
_ENGINE_BITS = 40
_PSE36_RESERVED = 0x3E0000
_MOST_FOUND = 8  # address spaces whose tables are remembered


@dataclass(slots=True)  # not frozen, which is slow to make, and each miss makes one
class Page:
    """Where a virtual page is: its guest-physical address, and whether writes may go there at once."""

    gpa: int
    writable: bool


@dataclass(slots=True)
class _Entry:
    gpa: int
    value: int
    size: int


@dataclass(slots=True)
class _Known:
    """What walks have found: the entries that lead there, and the rights that they leave."""

    path: list[tuple[ctypes.c_uint64, int]]
    rights: int
    never: bool  # one of them has NX

    def is_current(self) -> bool:
        """True if the entries are as they were."""
        for entry, value in self.path:  # noqa: SIM110 - each miss comes here, and a generator costs as much as the rest
            if entry.value != value:
                return False
        return True


@dataclass(slots=True)
class _Table(_Known):
    """A table of the last level."""

    reserved: int
    entries: ctypes.Array[ctypes.c_uint64]
    host: int
    gpa: int
    noted: bool = False  # that it was written to


@dataclass(slots=True)
class _Large(_Known):
    """A page of 2 MiB. Its own entry is one of the path, and all of them are accessed."""

    frame: int
    dirty: bool


def _common(entries: list[_Entry], hosts: list[int | None]) -> tuple[list[tuple[ctypes.c_uint64, int]], int, bool]:
    """Where these entries are, the rights that they leave, and whether one has NX."""
    rights, never = _WRITABLE | _USER, False
    for entry in entries:
        rights &= entry.value
        never |= bool(entry.value & _NX)
    return [(_word(host or 0), entry.value) for entry, host in zip(entries, hosts, strict=False)], rights, never


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


_LONG, _PAE = _Levels((39, 30, 21, 12), 9, 8, _FRAME), _Levels((30, 21, 12), 9, 8, 0xFFFFFFE0)
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
        return not _has_reserved(memory.read(state.cr[3] & _LEGACY.root, PAGE), 4, _PSE36_RESERVED, _LARGE)
    if not state.long_mode:
        return True
    root = memory.read(state.cr[3] & _FRAME, PAGE)
    if _has_reserved(root, 8, _GLOBAL, 0):
        return False
    reserved = _GLOBAL if model.cpuid.has(Feature.GBPAGES) else _GLOBAL | _LARGE
    entries = memoryview(root or b"").cast("Q")
    return not any(
        _has_reserved(memory.read(entry & _FRAME, PAGE), 8, reserved, 0) for entry in entries if entry & _PRESENT
    )


def _has_reserved(table: bytes | None, size: int, reserved: int, unless: int) -> bool:
    """True if an entry of this page that is present has one of these bits, and all of those in ``unless``."""
    entries = memoryview(table or b"").cast("Q" if size == 8 else "I")  # noqa: PLR2004 - bytes
    return any(entry & _PRESENT and entry & reserved and entry & unless == unless for entry in entries)


class Mmu:
    """Translates virtual pages with the control registers of one CPU.

    It remembers the tables that walks have found, if somebody calls ``registers_change``. The entries that lead to a
    table are compared at each use, so that a guest may change them.
    """

    def __init__(self, memory: PhysicalMemory, state: CpuState, model: Model) -> None:
        self._memory = memory
        self._state = state
        self._model = model
        self._tables: dict[int, _Known] | None = None
        self._version = -1  # of the slots, when they were found
        self._found: dict[object, dict[int, _Known]] = {}  # by what they were found under; the latest is the last
        self._remembers = False

    def registers_change(self) -> None:
        """Control registers or CPUID: tables that were found under the same ones count again."""
        self._remembers, self._tables = True, None

    def _recall(self) -> None:
        state = self._state
        key = state.cr[0], state.cr[3], state.cr[4], state.efer, self._memory.version, self._model.cpuid
        self._tables = self._found.pop(key, {})
        self._found[key] = self._tables
        self._version = self._memory.version
        if len(self._found) > _MOST_FOUND:
            del self._found[next(iter(self._found))]

    def translate(self, address: int, access: int, *, user: bool) -> Page:
        """Return the page of ``address``; raises the guest's #PF or #GP."""
        if self._remembers and (self._tables is None or self._version != self._memory.version):
            self._recall()
        if self._tables:
            known = self._tables.get(address >> 21)
            page = self._by_known(known, address, access, user=user) if known and known.is_current() else None
            if page is not None:
                return page
        return self._translate(address, access, user=user)

    def _by_known(self, known: _Known, address: int, access: int, *, user: bool) -> Page | None:
        """The page, if nothing is to be said about it but that it is accessed or written to."""
        if isinstance(known, _Table):
            return self._by_table(known, address, access, user=user)
        assert isinstance(known, _Large)
        rights = known.rights
        if not self._is_simple(access, rights, user=user) or (access == FETCH and known.never):
            return None
        writable = known.dirty and (bool(rights & _WRITABLE) or (not user and not self._state.cr[0] & CR0_WP))
        if access == WRITE and not writable:
            return None
        return Page(known.frame | address & _IN_LARGE, writable=writable)

    def _is_simple(self, access: int, rights: int, *, user: bool) -> bool:
        """False where a page is not the user's, or SMEP or SMAP has a say: the walk knows."""
        if not rights & _USER:
            return not user
        return user or not self._state.cr[4] & (CR4_SMEP if access == FETCH else CR4_SMAP)

    def _by_table(self, table: _Table, address: int, access: int, *, user: bool) -> Page | None:
        index = address >> 12 & 0x1FF
        value = table.entries[index]
        rights = value & table.rights
        if not value & _PRESENT or value & table.reserved or not self._is_simple(access, rights, user=user):
            return None
        if access == FETCH and (table.never or value & _NX):
            return None
        writable = bool(rights & _WRITABLE) or (not user and not self._state.cr[0] & CR0_WP)
        if access == WRITE:
            if not writable:
                return None
            marked = value | _ACCESSED | _DIRTY
        else:
            marked = value | _ACCESSED
        if marked != value:
            table.entries[index] = marked
            if not table.noted:
                table.noted = True
                self._memory.note_dirty(table.gpa)
            self._memory.on_write(table.host)
        return Page(value & _FRAME, writable=writable and bool(marked & _DIRTY))

    def may_be_executed(self, address: int) -> bool:
        """True if this page can be fetched from by kernel or user."""
        for user in (False, True):
            with suppress(GuestFaultError):
                return bool(self._translate(address, FETCH, user=user))
        return False

    def _remember(self, address: int, entries: list[_Entry], levels: _Levels) -> None:
        """Remember the last table of a walk, if its entries may be marked."""
        memory = self._memory
        segment = memory.find(entries[-1].gpa)
        hosts = [memory.resolve(entry.gpa, write=False) for entry in entries]
        if self._tables is None or segment is None or segment.readonly or None in hosts:
            return
        common = _common(entries[:-1], hosts)
        start = (hosts[-1] or 0) & PAGE_MASK
        reserved = self._reserved(12, levels, large=False)
        self._tables[address >> 21] = _Table(
            *common, reserved, (ctypes.c_uint64 * 512).from_address(start), start, entries[-1].gpa & PAGE_MASK
        )

    def _remember_large(self, address: int, entries: list[_Entry]) -> None:
        """Remember a large page; one whose tables cannot be marked is walked to each time."""
        hosts = [self._memory.resolve(entry.gpa, write=False) for entry in entries]
        if self._tables is None or None in hosts or not all(entry.value & _ACCESSED for entry in entries):
            return
        leaf = entries[-1].value
        frame, dirty = leaf & _FRAME & ~_IN_LARGE, bool(leaf & _DIRTY)
        self._tables[address >> 21] = _Large(*_common(entries, hosts), frame, dirty)

    def _translate(self, address: int, access: int, *, user: bool) -> Page:
        state = self._state
        if not state.cr[0] & CR0_PG:
            return Page(address & 0xFFFFF000, writable=True)
        if state.long_mode and address >> _CANONICAL_BITS not in (0, (1 << 64 - _CANONICAL_BITS) - 1):
            raise GuestFaultError(GP)
        entries, shift = self._walk(address, access, user=user)
        page = self._check(address, access, entries, shift, user=user)
        if self._tables is not None and state.long_mode:
            if shift == 12:  # noqa: PLR2004 - the last level
                self._remember(address, entries, _LONG)
            elif shift == 21:  # noqa: PLR2004 - 2 MiB
                self._remember_large(address, entries)
        return page

    def _levels(self) -> _Levels:
        state = self._state
        if state.long_mode:
            return _LONG
        return _PAE if state.cr[4] & CR4_PAE else _LEGACY

    def _walk(self, address: int, access: int, *, user: bool) -> tuple[list[_Entry], int]:
        levels = self._levels()
        table = self._state.cr[3] & levels.root
        entries = []
        shift = 0
        for shift in levels.shifts:
            entry = self._entry(table + (address >> shift & (1 << levels.bits) - 1) * levels.size, levels.size)
            if entry is None or not entry.value & _PRESENT:
                raise self._fault(address, access, present=False, user=user)
            large = self._is_large(entry.value, shift, levels)
            if levels.is_pointer(shift):  # looked at when CR3 is loaded, and has no rights and no accessed bit
                table = entry.value & _FRAME
                continue
            if entry.value & self._reserved(shift, levels, large=large):
                raise self._fault(address, access, present=True, user=user, extra=_ERROR_RESERVED)
            entries.append(entry)
            if large:
                break
            table = entry.value & _FRAME
        return entries, shift

    def _entry(self, gpa: int, size: int) -> _Entry | None:
        data = self._memory.read(gpa, size)
        return None if data is None else _Entry(gpa, int.from_bytes(data, "little"), size)

    def _is_large(self, value: int, shift: int, levels: _Levels) -> bool:
        if not value & _LARGE:
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
        mask |= 0 if self._state.efer & EFER_NXE else _NX
        if large:
            return mask | (1 << shift) - (1 << 13)
        if shift == 39 or (shift == 30 and not self._has_huge_pages):  # noqa: PLR2004 - PML4E, and no 1 GiB pages
            mask |= _LARGE
        return mask | (_GLOBAL if shift >= 30 else 0)  # noqa: PLR2004 - of this vendor, above the last two levels

    def _check(self, address: int, access: int, entries: list[_Entry], shift: int, *, user: bool) -> Page:
        rights = _WRITABLE | _USER
        for entry in entries:
            rights &= entry.value
        never = any(entry.value & _NX for entry in entries)
        writable = bool(rights & _WRITABLE) or (not user and not self._state.cr[0] & CR0_WP)
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
