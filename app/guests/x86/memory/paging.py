"""Virtual pages to guest-physical ones: walks, and what they have found before."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kickstand.guests.x86.memory.page_walk import (
    ACCESSED,
    DIRTY,
    FETCH,
    FRAME,
    NX,
    PRESENT,
    USER,
    WRITABLE,
    WRITE,
    Entry,
    Page,
    PageWalk,
)
from kickstand.guests.x86.memory.physical import PAGE_MASK
from kickstand.guests.x86.state.faults import GuestFaultError
from kickstand.guests.x86.state.registers import CR0_WP, CR4_SMAP, CR4_SMEP

if TYPE_CHECKING:
    from kickstand.guests.x86.memory.physical import PhysicalMemory
    from kickstand.guests.x86.state.model import Model
    from kickstand.guests.x86.state.registers import CpuState

_IN_LARGE = 0x1FF000  # which page of 2 MiB
_MOST_FOUND = 8  # address spaces whose tables are remembered
_word = ctypes.c_uint64.from_address


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


def _common(entries: list[Entry], hosts: list[int | None]) -> tuple[list[tuple[ctypes.c_uint64, int]], int, bool]:
    """Where these entries are, the rights that they leave, and whether one has NX."""
    rights, never = WRITABLE | USER, False
    for entry in entries:
        rights &= entry.value
        never |= bool(entry.value & NX)
    return [(_word(host or 0), entry.value) for entry, host in zip(entries, hosts, strict=False)], rights, never


class Mmu:
    """Translates virtual pages with the control registers of one CPU.

    It remembers the tables that walks have found, if somebody calls ``registers_change``. The entries that lead to a
    table are compared at each use, so that a guest may change them.
    """

    def __init__(self, memory: PhysicalMemory, state: CpuState, model: Model) -> None:
        self._memory = memory
        self._state = state
        self._model = model
        self._walk = PageWalk(memory, state, model)
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
        writable = known.dirty and (bool(rights & WRITABLE) or (not user and not self._state.cr[0] & CR0_WP))
        if access == WRITE and not writable:
            return None
        return Page(known.frame | address & _IN_LARGE, writable=writable)

    def _is_simple(self, access: int, rights: int, *, user: bool) -> bool:
        """False where a page is not the user's, or SMEP or SMAP has a say: the walk knows."""
        if not rights & USER:
            return not user
        return user or not self._state.cr[4] & (CR4_SMEP if access == FETCH else CR4_SMAP)

    def _by_table(self, table: _Table, address: int, access: int, *, user: bool) -> Page | None:
        index = address >> 12 & 0x1FF
        value = table.entries[index]
        rights = value & table.rights
        if not value & PRESENT or value & table.reserved or not self._is_simple(access, rights, user=user):
            return None
        if access == FETCH and (table.never or value & NX):
            return None
        writable = bool(rights & WRITABLE) or (not user and not self._state.cr[0] & CR0_WP)
        if access == WRITE:
            if not writable:
                return None
            marked = value | ACCESSED | DIRTY
        else:
            marked = value | ACCESSED
        if marked != value:
            table.entries[index] = marked
            if not table.noted:
                table.noted = True
                self._memory.note_dirty(table.gpa)
            self._memory.on_write(table.host)
        return Page(value & FRAME, writable=writable and bool(marked & DIRTY))

    def may_be_executed(self, address: int) -> bool:
        """True if this page can be fetched from by kernel or user."""
        for user in (False, True):
            with suppress(GuestFaultError):
                return bool(self._translate(address, FETCH, user=user))
        return False

    def _remember(self, address: int, entries: list[Entry]) -> None:
        """Remember the last table of a walk, if its entries may be marked."""
        memory = self._memory
        segment = memory.find(entries[-1].gpa)
        hosts = [memory.resolve(entry.gpa, write=False) for entry in entries]
        if self._tables is None or segment is None or segment.readonly or None in hosts:
            return
        common = _common(entries[:-1], hosts)
        start = (hosts[-1] or 0) & PAGE_MASK
        reserved = self._walk.reserved_in_tables
        self._tables[address >> 21] = _Table(
            *common, reserved, (ctypes.c_uint64 * 512).from_address(start), start, entries[-1].gpa & PAGE_MASK
        )

    def _remember_large(self, address: int, entries: list[Entry]) -> None:
        """Remember a large page; one whose tables cannot be marked is walked to each time."""
        hosts = [self._memory.resolve(entry.gpa, write=False) for entry in entries]
        if self._tables is None or None in hosts or not all(entry.value & ACCESSED for entry in entries):
            return
        leaf = entries[-1].value
        frame, dirty = leaf & FRAME & ~_IN_LARGE, bool(leaf & DIRTY)
        self._tables[address >> 21] = _Large(*_common(entries, hosts), frame, dirty)

    def _translate(self, address: int, access: int, *, user: bool) -> Page:
        page, entries, shift = self._walk.translate(address, access, user=user)
        if entries and self._tables is not None and self._state.long_mode:
            if shift == 12:  # noqa: PLR2004 - the last level
                self._remember(address, entries)
            elif shift == 21:  # noqa: PLR2004 - 2 MiB
                self._remember_large(address, entries)
        return page
