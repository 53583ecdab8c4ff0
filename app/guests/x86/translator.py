"""Guest code at full speed: the engine, its TLB and its translated code, kept true to memory.

The TLB is where everything meets: a page in a hole gets no entry, a logged page gets no write entry until it is
reported dirty, and a page is never writable and executable at once, so that new code is always searched for
instructions that belong to KVM before it is translated.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from app.guests.x86.codepages import CodePages
from app.guests.x86.engine import (
    CAN_EXECUTE,
    CAN_READ,
    CAN_WRITE,
    ENGINES,
    FILL_FETCH,
    FILL_WRITE,
    Engine,
    Stop,
)
from app.guests.x86.faults import GuestFaultError
from app.guests.x86.memory import PAGE, PAGE_MASK, AccessStoppedError, PhysicalMemory
from app.guests.x86.paging import FETCH, READ, WRITE, Mmu
from app.guests.x86.registers import CpuState
from app.guests.x86.segments import CS

if TYPE_CHECKING:
    from collections.abc import Iterable

_MAX_CODE_PAGES = 4096
# Unicorn gives the room of translated code back only when it forgets all of it. A guest that writes to its own code
# page is translated anew each time, and so is (about a kilobyte) what a counted run is left in the middle of: without
# a limit either fills a gigabyte. Forgetting costs about a millisecond.
_MAX_FORGOTTEN = 256
_MAX_RUNS = 512
# A guest that rewrites the page it is in has it searched again and again, and each time the engine counts from zero.
_MAX_SEARCHES = 8
_OF_ONE_ENGINE = "breakpoints"  # pointers


class Translator:
    """Runs one CPU's code; holds an engine between the first ``attach`` and ``detach``.

    ``counted``: every run has a limit.
    """

    def __init__(self, memory: PhysicalMemory, *, counted: bool) -> None:
        self._memory = memory
        self._engine: Engine | None = None
        self._mmu: Mmu | None = None
        self._code = CodePages(counted=counted)
        self._written: set[int] = set()
        self._forgotten = 0  # pages since all of it was forgotten
        self._runs = 0  # counted ones since then
        self._stale_tlb = False
        self._new_code: tuple[int, int, bool] | None = None  # a page that a run wanted to translate from first
        self._version = -1
        memory.on_write = self._note_write

    @property
    def attached(self) -> bool:
        """True if there is an engine."""
        return self._engine is not None

    @property
    def engine(self) -> Engine:
        """The engine; there is one after ``attach``."""
        if self._engine is None:
            raise RuntimeError("this CPU has not run yet")
        return self._engine

    def attach(self, state: CpuState) -> CpuState:
        """Take an engine and move the registers into it; what is the engine's own stays as it was made."""
        self._engine = engine = ENGINES.take()
        for name, *_ in CpuState._fields_:
            if not name.startswith("_") and name != _OF_ONE_ENGINE:
                setattr(engine.state, name, getattr(state, name))
        self._mmu = Mmu(self._memory, engine.state)
        engine.on_fill = self._fill
        self._version = -1
        return engine.state

    def detach(self) -> CpuState:
        """Give the engine back; host memory may be freed afterwards. Returns a copy of the state."""
        engine = self.engine
        copy = CpuState.from_buffer_copy(engine.state)
        ctypes.memset(ctypes.addressof(copy.breakpoints), 0, ctypes.sizeof(copy.breakpoints))
        self._engine = self._mmu = None
        self._code.forget_all()
        ENGINES.give_back(engine)
        return copy

    # -- before the guest ------------------------------------------------------------------------------------

    def enter(self) -> None:
        """Catch up with what userspace did since the last run: slots, dirty logs, rewritten code."""
        engine = self.engine
        self._memory.refresh()
        if self._memory.version != self._version:
            self._version = self._memory.version
            intervals = self._host_intervals()
            self._code.keep(intervals)
            engine.map(intervals)
            self._stale_tlb = True
        self._drop(self._code.take_changed())
        self._written.clear()
        if len(self._code) > _MAX_CODE_PAGES:
            self._forget_code()
        # A log may have been fetched: pages it reported must be reported again.
        if self._stale_tlb or self._memory.logging:
            self._flush_tlb()

    def flush_tlb(self) -> None:
        """Control registers were set from outside."""
        self._stale_tlb = True

    def watch_window(self, wanted: bool) -> None:
        """Also stop before instructions that may allow interrupts."""
        if self._code.window != wanted:
            self._code.window = wanted
            self._forget_code()

    def run(self, count: int) -> Stop:
        """Execute at most about ``count`` instructions, or without limit if it is 0.

        A guest whose code has to be searched on the way comes back early, before it takes too long.
        """
        self._runs += count > 0
        if self._runs >= _MAX_RUNS:
            self._make_room()
        if self._written:
            self._drop(self._code.take_changed(self._written))
            self._written.clear()
        if self._stale_tlb:
            self._flush_tlb()
        for _ in range(_MAX_SEARCHES):
            stop, new_code = self._run_once(count)
            if stop is not Stop.ACCESS or new_code is None:
                return stop
            self._search_code(*new_code)
        return Stop.RETURNED

    def _run_once(self, count: int) -> tuple[Stop, tuple[int, int, bool] | None]:
        self._new_code = None
        state = self.engine.state
        start = state.rip
        stop = self.engine.run(count)
        if state.rip != start:
            state.set_resume(repeating=False)  # Unicorn would keep it to the end of a block
        return stop, self._new_code

    def _search_code(self, page: int, host: int, long_mode: bool) -> None:
        """Search a page that code is about to be translated from for instructions that belong to KVM."""
        changed, alias = self._code.fetched(page, host, long_mode=long_mode)
        if changed:
            self.engine.set_stops(self._code.all_stops())
        if alias:
            self._flush_tlb()

    def stopped_before(self, address: int) -> bool:
        """True if the instruction at this linear address may be one that the engine must not execute."""
        return self._code.is_stop(address)

    def _drop(self, hosts: Iterable[int]) -> None:
        for host in hosts:
            self.engine.forget_page(host)
            self._code.tlb_flushed()
            self._forgotten += 1
        if self._forgotten >= _MAX_FORGOTTEN:
            self._make_room()

    def _make_room(self) -> None:
        """Drop translations, but not what the search of their pages found: that is what costs."""
        self._forgotten = self._runs = 0
        self.engine.flush_code()

    def _forget_code(self) -> None:
        self._code.forget_all()
        self._make_room()
        self._flush_tlb()

    def _flush_tlb(self) -> None:
        self.engine.flush_tlb()
        self._code.tlb_flushed()
        self._stale_tlb = False

    def _note_write(self, host: int) -> None:
        if self._code.holds(host):
            self._written.add(host)

    def _host_intervals(self) -> list[tuple[int, int]]:
        """The host memory behind the segments as disjoint stretches: slots may share it."""
        spans = sorted((s.address, s.address + s.size) for s in self._memory.segments if s.address is not None)
        merged: list[tuple[int, int]] = []
        for start, end in spans:
            if merged and start < merged[-1][1]:
                merged[-1] = merged[-1][0], max(end, merged[-1][1])
            else:
                merged.append((start, end))
        return merged

    # -- while the guest runs --------------------------------------------------------------------------------

    def _fill(self, page: int, access: int) -> tuple[int, int] | None:
        """Answer a TLB miss. None makes the instruction restart in the stepper, which finds out why."""
        engine, mmu = self.engine, self._mmu
        engine.peek()
        state = engine.state
        if not state.long_mode:
            page &= 0xFFFFFFFF
        kind = {FILL_FETCH: FETCH, FILL_WRITE: WRITE}.get(access, READ)
        if mmu is None:
            return None
        try:
            found = mmu.translate(page, kind, user=state.cpl == 3)  # noqa: PLR2004 - ring 3
            host = self._memory.resolve(found.gpa, write=access == FILL_WRITE)
        except (GuestFaultError, AccessStoppedError):
            return None
        if host is None:
            return None
        if access == FILL_FETCH:
            return self._fill_code(page, host, state)
        if access == FILL_WRITE:
            self._memory.note_dirty(found.gpa)
        elif not (found.writable and self._freely_writable(found.gpa, host)):
            return host, CAN_READ
        if self._code.opened(page, host):
            self._flush_tlb()
        return host, CAN_READ | CAN_WRITE

    def _fill_code(self, page: int, host: int, state: CpuState) -> tuple[int, int] | None:
        if state.beyond_code(page + PAGE - 1 - state.segment[CS].base & 0xFFFFFFFF):
            return None  # the limit of CS lies in this page: the stepper looks at it
        if not self._code.knows(page, host, long_mode=state.long_mode):
            # Stops must not change now: Unicorn also asks when it walks through them at the end of a run, and
            # would go on in freed memory. The run ends, ``run`` searches the page, and it goes on from there.
            self._new_code = page, host, state.long_mode
            return None
        _, alias = self._code.fetched(page, host, long_mode=state.long_mode)
        if alias:
            self._flush_tlb()
        if self._code.is_stop(page) and state.linear_rip & PAGE_MASK != page:
            # Translation of earlier code runs into this page, and asked about a stop at its first byte before the
            # page was searched. Refuse: the stepper goes on until RIP is on this page.
            return None
        return host, CAN_READ | CAN_EXECUTE

    def _freely_writable(self, gpa: int, host: int) -> bool:
        """True if a read may open the page for writing too, because nobody wants to know of the first write."""
        segment = self._memory.find(gpa)
        return segment is not None and not (segment.readonly or segment.log_dirty or self._code.holds(host))
