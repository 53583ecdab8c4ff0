"""The second dimension of the engine's own page walk: from guest-physical to the engine's addresses (KVM's TDP MMU).

Tables are filled when the walk misses something, like KVM's own. A page from which code was translated cannot be
written to, so that the code goes before it is not true any more. Nothing is kept from being executed: Unicorn crashes
when it finds a guest's page table on such a page.
"""

from __future__ import annotations

import ctypes
import mmap
from bisect import bisect_left
from enum import Enum, auto

from kickstand.guests.mapping import address_of
from kickstand.guests.x86.memory.physical import PAGE, PAGE_MASK, PhysicalMemory, Segment
from kickstand.guests.x86.translated.host_window import engine_address, in_window

_TABLES = 1 << 10
_ENTRIES, _BITS = 512, 9
_ROOT, _LARGE_SHIFT, _PAGE_SHIFT = 39, 21, 12
_LARGE_SIZE = 1 << _LARGE_SHIFT
_REACH = 1 << _ROOT + _BITS
_PRESENT, _WRITABLE, _USER, _ACCESSED, _LARGE = 1, 2, 4, 1 << 5, 1 << 7
_READ = _PRESENT | _USER | _ACCESSED
_FRAME = (1 << 52) - PAGE
_WRITE, _RESERVED = 2, 8  # of an error code
_MAX_CHANGES = 256

_Table = ctypes.Array[ctypes.c_uint64]


class Answer(Enum):
    """What to do after a miss."""

    GO_ON = auto()
    WRITTEN = auto()  # the guest may write there now: the page's code has to go
    STEP = auto()  # no memory can be reached there like that
    GIVE_UP = auto()  # these tables cannot express what is there


class UnmappableError(Exception):
    """The tables have no room for it, or cannot say it."""


class NestedTables:
    """The tables of one CPU, and what they grant."""

    def __init__(self, memory: PhysicalMemory) -> None:
        self._memory = memory
        self._area = mmap.mmap(-1, (_TABLES + 1) * PAGE)
        self._start = address_of(self._area)
        self._tables: dict[tuple[int, int], _Table] = {}
        self._segments: list[tuple[int, int, int]] = []  # (host address, size, gpa) of those with an entry
        self._changes = 0  # how often code was written to
        self._written: set[int] = set()  # pages that went from code to data

    @property
    def roots(self) -> tuple[int, int]:
        """Host addresses of the root, and of a page for exits."""
        return self._start, self._start + _TABLES * PAGE

    @property
    def usable(self) -> bool:
        """The engine's walk reaches the tables."""
        return in_window(self._start, len(self._area))

    def clear(self) -> None:
        """Grant nothing."""
        ctypes.memset(self._start, 0, max(len(self._tables), 1) * PAGE)
        self._tables.clear()
        self._segments.clear()
        self._written.clear()
        self._tables[_ROOT, 0] = self._at(0)

    def miss(self, gpa: int, error: int) -> Answer:
        """Grant what the walk asked for. ``error``: that of a page fault."""
        segment = None if gpa >= _REACH else self._memory.find(gpa)
        if segment is None or segment.invalid or segment.address is None:
            return Answer.STEP
        if error & _WRITE and segment.readonly:
            return Answer.STEP
        if error & _RESERVED or segment.log_dirty:
            return Answer.GIVE_UP
        try:
            return self._grant(gpa & PAGE_MASK, segment, write=bool(error & _WRITE))
        except UnmappableError:
            return Answer.GIVE_UP

    def _grant(self, gpa: int, segment: Segment, *, write: bool) -> Answer:
        table = self._tables.get((_PAGE_SHIFT, gpa >> _LARGE_SHIFT))
        if table is None:
            if not self._fill_large(gpa, segment):
                self._small(gpa)
            return Answer.GO_ON
        at = gpa >> _PAGE_SHIFT & _ENTRIES - 1
        if not table[at]:  # a part of these two MiB that was not there
            self._fill(gpa)
            return Answer.GO_ON
        if not write or table[at] & _WRITABLE or self._changes == _MAX_CHANGES:
            self._changes = 0
            return Answer.GIVE_UP
        self._changes += 1
        if gpa in self._written:  # it may be the very code that writes: this store alone
            return Answer.STEP
        self._written.add(gpa)
        table[at] |= _WRITABLE
        return Answer.WRITTEN

    def protect(self, gpa: int) -> bool:
        """Have the next write to this page missed; the TLB may not know. False: that cannot be."""
        try:
            self._small(gpa)[gpa >> _PAGE_SHIFT & _ENTRIES - 1] &= ~_WRITABLE
        except UnmappableError:
            return False
        return True

    def gpa_of(self, host: int) -> int:
        """Where a host page that was granted is."""
        first, _, gpa = self._segments[bisect_left(self._segments, (host + 1,)) - 1]
        return gpa + host - first

    # -- entries ---------------------------------------------------------------------------------------------

    def _at(self, index: int) -> _Table:
        return (ctypes.c_uint64 * _ENTRIES).from_address(self._start + index * PAGE)

    def _table(self, shift: int, gpa: int) -> _Table:
        """The table for ``gpa`` whose entries map ``1 << shift`` bytes each."""
        key = shift, gpa >> shift + _BITS
        if key not in self._tables:
            above = self._table(shift + _BITS, gpa)
            if len(self._tables) == _TABLES:
                raise UnmappableError
            self._tables[key] = table = self._at(len(self._tables))
            address = engine_address(ctypes.addressof(table))
            above[gpa >> shift + _BITS & _ENTRIES - 1] = address | _READ | _WRITABLE
        return self._tables[key]

    def _small(self, gpa: int) -> _Table:
        """The table of single pages for ``gpa``."""
        known = (_PAGE_SHIFT, gpa >> _LARGE_SHIFT) in self._tables
        table = self._table(_PAGE_SHIFT, gpa)
        if not known:
            self._fill(gpa)
        return table

    def _fill(self, gpa: int) -> None:
        """Give each page of these two MiB that has none an entry."""
        table = self._table(_PAGE_SHIFT, gpa)
        at = gpa & ~(_LARGE_SIZE - 1)
        end = at + _LARGE_SIZE
        while at < end:
            segment = self._memory.find(at)
            stop = at + PAGE if segment is None else min(end, segment.gpa + segment.size)
            if segment is not None and segment.address is not None and not segment.invalid and not segment.log_dirty:
                value = self._value(at, segment)
                first, pages = at >> _PAGE_SHIFT & _ENTRIES - 1, stop - at >> _PAGE_SHIFT
                new = range(value, value + pages * PAGE, PAGE)
                table[first : first + pages] = [
                    old or mine for old, mine in zip(table[first : first + pages], new, strict=True)
                ]
            at = stop

    def _fill_large(self, gpa: int, segment: Segment) -> bool:
        """Give all of the segment that lies in the same GiB large pages; false if ``gpa`` cannot be in one."""
        start = gpa & ~(_LARGE_SIZE - 1)
        if not segment.gpa <= start or start + _LARGE_SIZE > segment.gpa + segment.size:
            return False
        value = self._value(start, segment)
        if value & _FRAME & _LARGE_SIZE - 1:
            return False
        table, at = self._table(_LARGE_SHIFT, gpa), gpa >> _LARGE_SHIFT & _ENTRIES - 1
        last = min(_ENTRIES, at + (segment.gpa + segment.size - start >> _LARGE_SHIFT))
        for index, large in zip(range(at, last), range(value | _LARGE, 1 << 64, _LARGE_SIZE), strict=False):
            table[index] = table[index] or large
        return True

    def _value(self, gpa: int, segment: Segment) -> int:
        """An entry for the page at ``gpa``."""
        self._note(segment)
        address = engine_address((segment.address or 0) + gpa - segment.gpa)
        return address | _READ | (0 if segment.readonly else _WRITABLE)

    def _note(self, segment: Segment) -> None:
        """No byte may be reached by two addresses: it could be code at one of them, and data at the other."""
        mine = segment.address or 0, segment.size, segment.gpa
        at = bisect_left(self._segments, mine)
        if self._segments[at : at + 1] == [mine]:
            return
        if not in_window(mine[0], mine[1]):
            raise UnmappableError
        for host, size, _ in self._segments[max(at - 1, 0) : at + 1]:
            if host < mine[0] + mine[1] and mine[0] < host + size:
                raise UnmappableError
        self._segments.insert(at, mine)
