"""Which instructions the translator must not execute itself, page by page.

Before code of a page is first translated, the page is searched for every address at which an instruction could begin
that belongs to KVM (port I/O, HLT, MSRs, SYSCALL) or that Unicorn does not do exactly, with prefixes. An address in the
middle of another instruction is harmless: the translator looks only where instructions start. A guest write to such a
page, or a changed byte found when the host comes back, makes it stale, and it is searched again before it runs again.
"""

from __future__ import annotations

import ctypes
import re
from array import array
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING

from app.guests.x86.memory import PAGE

if TYPE_CHECKING:
    from collections.abc import Iterable

# Everything that may be locked, in memory: ADD to XOR, XCHG, NOT, INC, DEC, BTS, BTR, BTC, CMPXCHG, XADD; but for NEG.
_LOCKED = (
    rb"(?:[\x00\x01\x08\x09\x10\x11\x18\x19\x20\x21\x28\x29\x30\x31\x80-\x83\x86\x87][\x00-\xbf]"
    rb"|[\xf6\xf7][\x10-\x17\x50-\x57\x90-\x97]|[\xfe\xff][\x00-\x0f\x40-\x4f\x80-\x8f]"
    rb"|\x0f(?:[\xab\xb0\xb1\xb3\xbb\xc0\xc1][\x00-\xbf]|\xba[\x28-\x3f\x68-\x7f\xa8-\xbf]))"
)
# ANDN, BLSR and its like, BZHI, PDEP, PEXT, MULX, BEXTR, SHLX, SARX, SHRX; RORX: behind the first byte of their prefix.
_BMI = (
    rb"[\x02\x22\x42\x62\x82\xa2\xc2\xe2].[\xf2\xf3\xf5-\xf7]"
    rb"|[\x03\x23\x43\x63\x83\xa3\xc3\xe3].\xf0"
)
_STOPS = (
    rb"[\x6c-\x6f\xe4-\xe7\xec-\xef\xf4]|\x0f[\x05\x30\x32\x34]"
    # Unicorn rewrites flags before these have stored, and they are lost if the store is refused: RCL and RCR always,
    rb"|[\xc0\xc1\xd0-\xd3](?=[\x10-\x1f\x50-\x5f\x90-\x9f]|\Z)"
    # PUSH of a segment register, which stores 16 bits whatever room it makes,
    rb"|[\x06\x0e\x16\x1e]|\x0f[\xa0\xa8]"
    # RETF, which jumps in real mode before it reads CS, and jumps back if that read is not in the TLB,
    rb"|[\xca\xcb]"
    # CMPXCHG8B and its like, which take flags that are not up to date,
    rb"|\x0f\xc7"
    # LOCK where it is not allowed, which it takes for nothing, and LOCK NEG, which it does twice on a device and with
    # the flags of the negated value,
    rb"|\xf0(?![\x26\x2e\x36\x3e\x40-\x4f\x64-\x67\xf0\xf2\xf3]*+" + _LOCKED + rb")"
    # and XOP and VEX (AVX), which it does not know: it overlooks the prefix. In 32-bit code they have a form that POP,
    # LES and LDS do not have.
    rb"|\x8f(?=[\x08-\x3f\x48-\x7f\x88-\xbf\xc8-\xff]|\Z)"
    rb"|(?:\xc5|\xc4(?!" + _BMI + rb"))(?=[\xc0-\xff]|\Z)"
)
_LONG_STOPS = rb"|\xc5|\xc4(?!" + _BMI + rb")"
# what looks at all flags within the instruction, in code that counts: it takes what was collected (see ``Engine.run``)
# for an operand: PUSHF, DAA and its like, VERR, LAR, LSL,
_COUNTED = rb"|[\x27\x2f\x37\x3f\x9c]|\x0f[\x00\x02\x03]"
_NOT_COUNTED = rb"|\x0f(?=[\x90-\x9f](?:[\x00-\xbf]|\Z))"  # and SETcc in code that does not count
_WINDOW = rb"|[\xfb\x9d\xcf]|\x0f\x07"  # STI, POPF, IRET, SYSRET: interrupts may become allowed
_PREFIXES = frozenset((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3))
_LONG_PREFIXES = _PREFIXES | frozenset(range(0x40, 0x50))
_TWO_BYTE = 0x0F


@dataclass(slots=True)
class CodePage:
    """One virtual page that holds translated code."""

    virtual: int
    host: int
    content: bytes
    long_mode: bool
    stops: tuple[int, ...]


@cache
def _pattern(*, long_mode: bool, window: bool, counted: bool) -> re.Pattern[bytes]:
    flags = _COUNTED if counted else _NOT_COUNTED
    return re.compile(_STOPS + _LONG_STOPS * long_mode + _WINDOW * window + flags, re.DOTALL)


def find_stops(content: bytes, *, long_mode: bool, window: bool, counted: bool) -> list[int]:
    """Return the offsets in the page at which one of the wanted instructions may begin."""
    prefixes = _LONG_PREFIXES if long_mode else _PREFIXES
    found = [match.start() for match in _pattern(long_mode=long_mode, window=window, counted=counted).finditer(content)]
    if content[-1] == _TWO_BYTE:
        found.append(len(content) - 1)
    found.append(len(content))  # the opcode may be on the next page
    stops = set()
    for start in found:
        offset = start
        while offset > 0 and content[offset - 1] in prefixes:
            offset -= 1
            stops.add(offset)
        stops.add(start)
    stops.discard(len(content))
    return sorted(stops)


class CodePages:
    """The pages with translated code of one CPU: every pair of virtual and host page that was ever executed."""

    def __init__(self, *, counted: bool) -> None:
        self._counted = counted
        self._pages: dict[int, dict[int, CodePage]] = {}  # by host page, then by virtual page
        self._writable: dict[int, int | None] = {}
        self._stops: frozenset[int] = frozenset()
        self.window = False

    def __len__(self) -> int:
        return len(self._pages)

    def holds(self, host: int) -> bool:
        """True if code was translated from this host page."""
        return host in self._pages

    def is_stop(self, address: int) -> bool:
        """True if the translator stops before this linear address."""
        return address in self._stops

    def knows(self, virtual: int, host: int, *, long_mode: bool) -> bool:
        """True if this page was searched as it is now."""
        page = self._pages.get(host, {}).get(virtual)
        return page is not None and page.long_mode == long_mode and page.content == ctypes.string_at(host, PAGE)

    def fetched(self, virtual: int, host: int, *, long_mode: bool) -> tuple[bool, bool]:
        """Code of this page is about to be translated: (stops changed, a writable alias may be in the TLB)."""
        alias = host in self._writable and self._writable.pop(host) != virtual
        content = ctypes.string_at(host, PAGE)
        pages = self._pages.setdefault(host, {})
        page = pages.get(virtual)
        if page is not None and page.content == content and page.long_mode == long_mode:
            return False, alias
        offsets = find_stops(content, long_mode=long_mode, window=self.window, counted=self._counted)
        stops = tuple(virtual + offset for offset in offsets)
        pages[virtual] = CodePage(virtual, host, content, long_mode, stops)
        return page is None or stops != page.stops, alias

    def opened(self, virtual: int, host: int) -> bool:
        """A writable TLB entry is made: true if another virtual page of it may be executable in the TLB."""
        if self._writable.setdefault(host, virtual) != virtual:
            self._writable[host] = None
        return any(other != virtual for other in self._pages.get(host, ()))

    def all_stops(self) -> array[int]:
        """Every stop address, for the translator."""
        pages = chain.from_iterable(pages.values() for pages in self._pages.values())
        self._stops = frozenset(chain.from_iterable(page.stops for page in pages))
        return array("Q", self._stops)

    def take_changed(self, hosts: Iterable[int] | None = None) -> list[int]:
        """Forget the host pages whose bytes are no longer those that were translated, and return them.

        ``hosts`` limits the comparison to pages that were written from outside the translator.
        """
        candidates = self._pages if hosts is None else [host for host in hosts if host in self._pages]
        changed = [host for host in candidates if not self._is_current(host)]
        for host in changed:
            del self._pages[host]
        return changed

    def _is_current(self, host: int) -> bool:
        content = ctypes.string_at(host, PAGE)
        return all(page.content == content for page in self._pages[host].values())

    def keep(self, intervals: Iterable[tuple[int, int]]) -> None:
        """Forget pages outside these stretches of host memory: they may not exist any more."""
        spans = tuple(intervals)
        gone = [host for host in self._pages if not any(start <= host < end for start, end in spans)]
        for host in gone:
            del self._pages[host]

    def tlb_flushed(self) -> None:
        """No TLB entry is left."""
        self._writable.clear()

    def forget_all(self) -> None:
        """No translated code is left."""
        self._pages.clear()
        self._writable.clear()
        self._stops = frozenset()
