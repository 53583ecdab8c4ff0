"""Which instructions the translator must not execute itself, page by page.

Before code of a page is first translated, the page is searched for every address at which an instruction could begin
that belongs to KVM (port I/O, HLT, control registers, MSRs, SYSCALL) or that Unicorn does not do exactly, with
prefixes. An address in the middle of another instruction is harmless: the translator looks only where instructions
start. Each time a page gets into the TLB in order to be executed its bytes are compared with those that were searched;
pages that stay there are compared when the host comes back.
"""

from __future__ import annotations

import ctypes
import re
from bisect import bisect_left
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from kickstand.guests.x86.memory.physical import PAGE, PAGE_MASK

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

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
    rb"[\x6c-\x6f\xe4-\xe7\xec-\xef\xf1\xf4]|\x0f[\x05\x21-\x23\x30\x32-\x34\xa2]"
    # MOV from control registers but for CR2 and CR3, which the engine has as the guest has them,
    rb"|\x0f\x20(?![\x10-\x1f\x50-\x5f\x90-\x9f\xd0-\xdf])"
    # VMCALL, VMMCALL, MONITOR, MWAIT, RDTSCP; LTR,
    rb"|\x0f\x01(?=[\xc1\xc8\xc9\xd9\xf9]|\Z)|\x0f\x00(?=[\x18-\x1f\x58-\x5f\x98-\x9f\xd8-\xdf]|\Z)"
    # CLFLUSH, which reads a device's byte,
    rb"|\x0f\xae(?=[\x38-\x3f\x78-\x7f\xb8-\xbf]|\Z)"
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
_LONG_STOPS = (
    rb"|\xc5|\xc4(?!" + _BMI + rb")"
    # MOV to SS and LSS there, which may load a null selector,
    rb"|\x8e(?=[\x10-\x17\x50-\x57\x90-\x97\xd0-\xd7]|\Z)|\x0f\xb2"
    # LGDT and LIDT there, whose base has to be an address,
    rb"|\x0f\x01(?=[\x10-\x1f\x50-\x5f\x90-\x9f]|\Z)"
)
# and SETcc in code that does not count.
_NOT_COUNTED = rb"|\x0f(?=[\x90-\x9f](?:[\x00-\xbf]|\Z))"
_TIME = rb"|\x0f\x31"  # RDTSC, where it does not read the host's counter
_WINDOW = rb"|[\xfb\x9d\xcf]|\x0f\x07"  # STI, POPF, IRET, SYSRET: interrupts may become allowed
_PREFIXES = frozenset((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3))
_LONG_PREFIXES = _PREFIXES | frozenset(range(0x40, 0x50))
_TWO_BYTE = b"\x0f"
_LONGEST = 15  # bytes of an instruction
_MOST_STORES = 16  # to data on a page of code, after which its code goes: it costs as much as ten of them
_at = (ctypes.c_char * PAGE).from_address


class Wanted(NamedTuple):
    """What kind of instructions the translator stops at, beside those that it always does.

    ``counted``: code that counts does SETcc right. ``window``: stop where interrupts may become allowed.
    ``reads_time``: RDTSC gives what it should.
    """

    counted: bool
    window: bool = False
    reads_time: bool = False


@dataclass(slots=True)
class CodePage:
    """The bytes of a host page that holds translated code, and what was found in them."""

    content: bytes
    gpa: int = 0  # where it was last fetched from
    found: dict[tuple[bool, Wanted], list[int]] = field(default_factory=dict)
    translated: int = 0  # a mask of the bytes that are in translated code
    stores: int = 0
    harmless: set[tuple[int, int, int, Wanted]] = field(default_factory=set)  # code in which no instruction is a stop
    mixed: bool = False  # the engine stores there too: of ``content`` only what is translated counts

    def note_translated(self, host: int, offsets: range) -> None:
        """Code of these bytes is translated."""
        self.translated |= (1 << 8 * len(offsets)) - 1 << 8 * offsets.start
        if self.mixed:
            now = ctypes.string_at(host + offsets.start, len(offsets))
            self.content = self.content[: offsets.start] + now + self.content[offsets.stop :]

    def take_data(self, host: int) -> bool:
        """Go on with the bytes that are there now. False: others than those were translated."""
        now = _at(host).raw
        if now == self.content:
            return True
        if (int.from_bytes(now, "little") ^ int.from_bytes(self.content, "little")) & self.translated:
            return False
        self.renew(now)
        return True

    def renew(self, content: bytes) -> None:
        """Forget what was found in other bytes."""
        self.content = content
        self.found.clear()
        self.harmless.clear()

    def stops(self, within: range, wanted: Wanted, *, long_mode: bool) -> list[int]:
        """Those of these offsets at which the translator has to stop, in order.

        The page is searched as a whole when it is first asked about, but for one that changes while it is executed.
        """
        if self.mixed:
            part = self.content[within.start : within.stop + _LONGEST]  # what comes behind decides about the last
            found = find_stops(part, wanted, long_mode=long_mode)
            return [within.start + offset for offset in found if offset < len(within)]
        kind = long_mode, wanted
        if kind not in self.found:
            self.found[kind] = find_stops(self.content, wanted, long_mode=long_mode)
        stops = self.found[kind]
        return stops[bisect_left(stops, within.start) : bisect_left(stops, within.stop)]


@cache
def _pattern(wanted: Wanted, *, long_mode: bool) -> re.Pattern[bytes]:
    flags, time = b"" if wanted.counted else _NOT_COUNTED, b"" if wanted.reads_time else _TIME
    return re.compile(_STOPS + _LONG_STOPS * long_mode + _WINDOW * wanted.window + flags + time, re.DOTALL)


def find_stops(content: bytes, wanted: Wanted, *, long_mode: bool) -> list[int]:
    """Return the offsets in the page at which one of the wanted instructions may begin."""
    prefixes = _LONG_PREFIXES if long_mode else _PREFIXES
    found = [match.start() for match in _pattern(wanted, long_mode=long_mode).finditer(content)]
    if content.endswith(_TWO_BYTE):
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
    """The host pages with translated code of one CPU, and at which addresses the TLB has which of them.

    A host page from which code was translated is not writable in the TLB, or *mixed*: code that jumps within its page,
    or to where it has jumped before, asks no TLB, so that a store has to be seen when it is done. The engine sees each
    that goes through an entry which can be executed too. An entry replaces the one for the same address and rights,
    which are told by a *key*.
    """

    def __init__(self, *, counted: bool) -> None:
        self.wanted = Wanted(counted)
        self._pages: dict[int, CodePage] = {}  # by host page
        self._mappings: dict[int, tuple[CodePage, bool]] = {}  # by virtual page: what was last fetched there
        self._executable: dict[int, object] = {}  # host page: its key, or None for several
        self._writable: dict[int, object] = {}
        self._doubtful: set[int] = set()  # host pages of which old code may be left

    def __len__(self) -> int:
        return max(len(self._pages), len(self._mappings))

    @property
    def executable(self) -> int:
        """How many pages may be executed without having been compared again."""
        return len(self._executable)

    def holds(self, host: int) -> bool:
        """True if code was translated from this host page."""
        return host in self._pages

    def is_stop(self, address: int) -> bool:
        """True if the translator stops before this linear address."""
        known = self._mappings.get(address & PAGE_MASK)
        if known is None:
            return False
        page, long_mode = known
        offset = address & ~PAGE_MASK
        return offset in self._stops(page, range(offset, min(offset + _LONGEST, PAGE)), long_mode)

    def stops_in(self, host: int, virtual: int, addresses: range, *, long_mode: bool) -> Sequence[int]:
        """Where the translator has to stop in what it has translated of this page: ``addresses`` reach beyond it."""
        page = self._pages.get(host)
        if page is None:
            return addresses
        within = range(max(addresses.start - virtual, 0), min(addresses.stop - virtual, PAGE))
        page.note_translated(host, within)
        return [virtual + offset for offset in self._stops(page, within, long_mode)]

    def note_harmless(self, host: int, addresses: range, bits: int) -> None:
        """No instruction of this code, decoded with so many bits, is where the translator has to stop.

        To look at it once more would take the code away that was translated for other runs: those with window and those
        without would have each other's translated again and again.
        """
        page = self._pages.get(host)
        if page is not None and not page.mixed and len(addresses) <= PAGE - addresses.start % PAGE:
            page.harmless.add((addresses.start % PAGE, len(addresses), bits, self.wanted))

    def is_harmless(self, host: int, addresses: range, bits: int) -> bool:
        """True if that is known."""
        page, start = self._pages.get(host), addresses.start % PAGE
        if page is None or page.mixed or (start, len(addresses), bits, self.wanted) not in page.harmless:
            return False
        page.note_translated(host, range(start, start + len(addresses)))
        return True

    def _stops(self, page: CodePage, within: range, long_mode: bool) -> list[int]:
        return page.stops(within, self.wanted, long_mode=long_mode)

    def mix(self, host: int) -> None:
        """The engine may store to this page of code; it forgets itself what was translated from where it stores."""
        self._pages[host].mixed = True

    def is_mixed(self, host: int) -> bool:
        """True if the engine may."""
        page = self._pages.get(host)
        return page is not None and page.mixed

    def fetched(self, virtual: int, gpa: int, host: int, *, long_mode: bool) -> bool:
        """Code of this page is about to be translated or executed. False: other bytes than those were translated."""
        page = self._pages.setdefault(host, CodePage(b""))
        if not page.content:
            page.content = _at(host).raw
        elif not page.take_data(host):
            return False
        page.gpa = gpa
        self._mappings[virtual] = page, long_mode
        return True

    def refetched(self, virtual: int, gpa: int, host: int, *, long_mode: bool) -> bool:
        """Code of this page was just translated, from what is there now. False: the first since it was written to.

        If it is not what it was before, others have written there, and what else was translated from it is in doubt.
        """
        page = self._pages.setdefault(host, CodePage(b""))
        if not page.content:
            page.content = _at(host).raw
        elif not page.take_data(host):
            self._doubtful.add(host)
            page.renew(_at(host).raw)
        page.gpa = gpa
        self._mappings[virtual] = page, long_mode
        known = host in self._executable
        self._executable[host] = None
        return known

    def note_executable(self, host: int, key: object) -> bool:
        """An executable TLB entry is made: true if all the others have to go first."""
        return self._note(self._executable, self._writable, host, key)

    def note_writable(self, host: int, key: object) -> bool:
        """A writable TLB entry is made: true if all the others have to go first."""
        return self._note(self._writable, self._executable, host, key)

    def _note(self, mine: dict[int, object], others: dict[int, object], host: int, key: object) -> bool:
        if mine.setdefault(host, key) != key:
            mine[host] = None
        return host in others and others.pop(host) != key

    def all_pages(self) -> list[tuple[int, int]]:
        """(host address, guest-physical address) of each."""
        return [(host, page.gpa) for host, page in self._pages.items()]

    def take_changed(self, hosts: Iterable[int]) -> list[int]:
        """Forget those of the host pages whose bytes are no longer those that were translated, and return them."""
        changed = [host for host in hosts if host in self._pages and not self._pages[host].take_data(host)]
        for host in changed:
            self.forget(host)
        return changed

    def take_written(self, hosts: Iterable[int]) -> list[int]:
        """The same for pages that were written to from outside the translator, if the bytes are translated code.

        A page of which only others are written to stays, but not for long: such stores are slow.
        """
        taken = []
        for host in hosts:
            page = self._pages.get(host)
            if page is None:
                continue
            page.stores += 1
            if page.stores == _MOST_STORES or not page.take_data(host):
                self.forget(host)
                taken.append(host)
        return taken

    def take_changed_executable(self) -> list[int]:
        """The same for all that may be executed without being fetched again, and for those with a doubt."""
        doubtful, self._doubtful = self._doubtful, set()
        for host in doubtful:
            self.forget(host)
        return [*doubtful, *self.take_changed(list(self._executable))]

    def forget(self, host: int) -> None:
        """The code translated from this host page goes; so does the TLB."""
        self._pages.pop(host, None)
        self._executable.pop(host, None)

    def tlb_flushed(self) -> None:
        """No TLB entry is left; code that is being translated goes on with the bytes that it has read."""
        self._executable.clear()
        self._writable.clear()

    def forget_all(self) -> None:
        """No translated code is left."""
        self._pages.clear()
        self._mappings.clear()
        self._doubtful.clear()
        self.tlb_flushed()
