"""Guest code at full speed: the engine, its TLB and its translated code, kept true to memory.

The TLB is where everything meets: a page in a hole gets no entry, a logged page gets no write entry until it is
reported dirty, and a page with translated code gets only one under which the engine looks at each store, so that no
old code is executed; what is translated is searched for instructions that belong to KVM first. A guest that misses it
often has its pages walked by the engine, through nested tables to which much the same applies; that depends on counts
alone, so the same calls give the same run.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from typing import TYPE_CHECKING

from kickstand.guests.x86.memory.page_walk import FETCH, READ, WRITE
from kickstand.guests.x86.memory.paging import Mmu
from kickstand.guests.x86.memory.physical import PAGE, PAGE_MASK, AccessStoppedError, PhysicalMemory
from kickstand.guests.x86.state.faults import GuestFaultError
from kickstand.guests.x86.state.registers import CpuState
from kickstand.guests.x86.state.segments import CS
from kickstand.guests.x86.translated.code_pages import CodePages
from kickstand.guests.x86.translated.engine_pool import ENGINES
from kickstand.guests.x86.translated.nested_walk import MOST_PAGES, NestedWalk
from kickstand.guests.x86.translated.unicorn_engine import (
    CAN_EXECUTE,
    CAN_READ,
    CAN_WRITE,
    FILL_FETCH,
    FILL_WRITE,
    Engine,
    Stop,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from kickstand.guests.x86.state.model import Model

_MAX_CODE_PAGES = 4096
# Unicorn gives the room of translated code back only when it forgets all of it. A guest that writes to its own code
# page is translated anew each time, and so is (about a kilobyte) what a counted run is left in the middle of: without
# a limit either fills a gigabyte. Forgetting costs about a millisecond.
_MAX_FORGOTTEN = 256
_MAX_RUNS = 1 << 14
_MAX_BLOCKS = 16_384  # of pages that are stored to while they are executed
# A guest that rewrites the page it is in has it searched again and again, and each time the engine counts from zero.
_MAX_SEARCHES = 8
_MAX_COMPARED = 256  # pages; beyond that it is cheaper to have them fetched again
_KINDS = {FILL_FETCH: FETCH, FILL_WRITE: WRITE}
_OF_ONE_ENGINE = "breakpoints"  # pointers


class Translator:
    """Runs one CPU's code; holds an engine between the first ``attach`` and ``detach``.

    ``counted``: every run has a limit.
    """

    def __init__(self, memory: PhysicalMemory, model: Model, *, counted: bool) -> None:
        self._memory = memory
        self._model = model
        self._engine: Engine | None = None
        self._mmu: Mmu | None = None
        self._code = CodePages(counted=counted)
        self._counted = counted
        self._written: set[int] = set()
        self._forgotten = 0  # pages since all of it was forgotten
        self._runs = 0  # counted ones since then
        self._blocks = 0  # translated since then, of pages that change
        self._stale_tlb = False
        self._walk = NestedWalk(memory, model, self._code, self._drop, counted=counted)
        self._changed: set[int] = set()  # pages that a run wanted to execute, and whose bytes are others now
        self._version = -1
        self._enough = False  # a run was ended for its misses
        self._long_mode = False  # during this run: a change stops it
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

    @property
    def mmu(self) -> Mmu | None:
        """What translates; there is one after ``attach``."""
        return self._mmu

    def attach(self, state: CpuState) -> CpuState:
        """Take an engine and move the registers into it; what is the engine's own stays as it was made."""
        self._engine = engine = ENGINES.take()
        for name, *_ in CpuState._fields_:
            if not name.startswith("_") and name != _OF_ONE_ENGINE:
                setattr(engine.state, name, getattr(state, name))
        self._mmu = Mmu(self._memory, engine.state, self._model)
        self._mmu.registers_change()
        engine.on_fill, engine.find_stops = self._fill, self._stops_in
        engine.note_harmless = self._note_harmless
        self._version = -1
        return engine.state

    def detach(self) -> CpuState:
        """Give the engine back; host memory may be freed afterwards. Returns a copy of the state."""
        engine = self.engine
        copy = CpuState.from_buffer_copy(engine.state)
        ctypes.memset(ctypes.addressof(copy.breakpoints), 0, ctypes.sizeof(copy.breakpoints))
        self._walk.stop()
        self._engine = self._mmu = None
        self._code.forget_all()
        ENGINES.give_back(engine)
        return copy

    # -- before the guest ------------------------------------------------------------------------------------

    def enter(self, *, compare: bool = True) -> None:
        """Catch up with what userspace did since the last run: slots, dirty logs, rewritten code.

        Without ``compare`` nobody can have had the time to rewrite code.
        """
        self._memory.refresh()
        if self._memory.version != self._version:
            self._walk.slots_change()
        elif self._walk.active and self._code.executable > MOST_PAGES:
            self._walk.give_up()
        # After a change pages that were written may not be there any more; what is fetched anew is compared then.
        many = compare and self._code.executable > _MAX_COMPARED and not self._walk.active
        self._stale_tlb |= self._memory.version != self._version or many
        self._version = self._memory.version
        reads_time = self._model.tsc.is_hosts
        if len(self._code) > _MAX_CODE_PAGES or reads_time != self._code.wanted.reads_time:
            self._code.wanted = self._code.wanted._replace(reads_time=reads_time)
            self._forget_code()
        if self._stale_tlb:
            self._flush_tlb()
            if not self._walk.active:
                self._written.clear()
        if compare:
            self._drop(self._code.take_changed_executable())

    def flush_tlb(self) -> None:
        """Control registers were set from outside."""
        self._stale_tlb = True
        if self._mmu is not None:
            self._mmu.registers_change()

    def watch_window(self, wanted: bool) -> None:
        """Also stop before instructions that may allow interrupts."""
        if wanted != self._code.wanted.window:
            self._code.wanted = self._code.wanted._replace(window=wanted)
        self.engine.windowed = wanted

    def run(self, count: int) -> Stop:
        """Execute at most about ``count`` instructions, or without limit if it is 0.

        A guest whose code has to be searched on the way comes back early, before it takes too long.
        """
        self._runs += count > 0
        if self._runs >= _MAX_RUNS or self._blocks >= _MAX_BLOCKS:
            self._make_room()
        if self._written:
            self._drop(self._code.take_written(self._written))
            self._written.clear()
        if self._stale_tlb:
            self._flush_tlb()
        if self._mmu is not None:
            self._walk.choose(self.engine, self._mmu)
        searches, limited = 0, count > 0
        while searches < _MAX_SEARCHES and (count or not limited):
            stop = self._run_once(count)
            if stop is Stop.NESTED:
                if not self._walk.fill(*self.engine.nested_fault):
                    return Stop.ACCESS
                count //= 2  # how much of it was used is not known
            elif stop is Stop.RESERVED:
                self._walk.give_up()
                count //= 2
            elif stop is Stop.ACCESS and self._changed:
                self._drop(self._code.take_changed(self._changed))
                searches += 1
            else:
                return stop
        return Stop.RETURNED

    def _run_once(self, count: int) -> Stop:
        self._changed.clear()
        self._walk.run_begins()
        state = self.engine.state
        state.tsc_offset = self._model.tsc.offset
        self._long_mode = state.long_mode
        start = state.rip
        self._enough = False
        stop = self.engine.run(count)
        if state.rip != start:
            state.set_resume(repeating=False)  # Unicorn would keep it to the end of a block
        return Stop.RETURNED if stop is Stop.ACCESS and self._enough else stop

    def stopped_before(self, address: int) -> bool:
        """True if the instruction at this linear address may be one that the engine must not execute."""
        return self._code.is_stop(address)

    def _drop(self, hosts: Iterable[int]) -> None:
        for host in hosts:
            self.engine.forget_page(host)
            self._tlb_flushed()
            self._forgotten += 1
        if self._forgotten >= _MAX_FORGOTTEN:
            self._make_room()

    def _make_room(self) -> None:
        """Drop translations, but not what the search of their pages found: that is what costs."""
        self._forgotten = self._runs = self._blocks = 0
        self.engine.flush_code()

    def _forget_code(self) -> None:
        self._code.forget_all()
        self.engine.stores.unwatch_all()
        self._make_room()
        self._flush_tlb()

    def _flush_tlb(self) -> None:
        self.engine.flush_tlb()
        self._tlb_flushed()
        self._stale_tlb = False

    def _tlb_flushed(self) -> None:
        if not self._walk.active:  # else pages can be executed that were never asked for
            self._code.tlb_flushed()

    def _note_write(self, host: int) -> None:
        if self._code.holds(host):
            self._written.add(host)

    # -- while the guest runs --------------------------------------------------------------------------------

    def _stops_in(self, start: int, size: int) -> Sequence[int]:
        """Where the engine has to stop in code that it has just translated."""
        whole = range(start, start + size)
        if self._walk.active and self._limit_is_near(start, size):
            return whole  # the stepper looks at it
        found: list[int] = []
        for page in range(start & PAGE_MASK, start + size, PAGE):
            host = self.engine.code_page(page)
            if self._walk.active:
                virtual = page if self._long_mode else page & 0xFFFFFFFF
                if not self._walk.note_code(virtual, host, long_mode=self._long_mode):
                    return whole
            if not self._code.is_harmless(host, whole, self.engine.state.bits):
                found += self._code.stops_in(host, page, whole, long_mode=self._long_mode)
            self._blocks += self._code.is_mixed(host)
        if self._blocks >= _MAX_BLOCKS:
            self.engine.stop()
        return found

    def _note_harmless(self, start: int, size: int) -> None:
        host = self.engine.code_page(start & PAGE_MASK)
        self._code.note_harmless(host, range(start, start + size), self.engine.state.bits)

    def _limit_is_near(self, start: int, size: int) -> bool:
        """The limit of CS lies in the pages of this code."""
        state = self.engine.state
        return state.beyond_code((start + size | PAGE - 1) - state.segment[CS].base & 0xFFFFFFFF)

    def _fill(self, page: int, access: int) -> tuple[int, int] | None:
        """Answer a TLB miss. None makes the instruction restart in the stepper, which finds out why."""
        engine, mmu = self.engine, self._mmu
        if self._walk.missed_code() if access == FILL_FETCH else self._walk.missed(page):
            self._enough = True
            return None
        state = engine.state
        if not state.long_mode:
            page &= 0xFFFFFFFF
        kind = _KINDS.get(access, READ)
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
            return self._fill_code(page, found.gpa, host, state)
        if access == FILL_WRITE:
            if self._code.holds(host):
                return self._fill_mixed(page, found.gpa, host, state)
            self._memory.note_dirty(found.gpa)
        elif not (found.writable and self._freely_writable(found.gpa, host)):
            return host, CAN_READ
        self._note(self._code.note_writable, page, host, state)
        return host, CAN_READ | CAN_WRITE

    def _fill_code(self, page: int, gpa: int, host: int, state: CpuState) -> tuple[int, int] | None:
        if state.beyond_code(page + PAGE - 1 - state.segment[CS].base & 0xFFFFFFFF):
            return None  # the limit of CS lies in this page: the stepper looks at it
        if not self._code.fetched(page, gpa, host, long_mode=state.long_mode):
            self._changed.add(host)  # the run ends, what was translated from it goes, and the run goes on from there
            return None
        self._note(self._code.note_executable, page, host, state)
        return host, CAN_READ | CAN_EXECUTE

    def _fill_mixed(self, page: int, gpa: int, host: int, state: CpuState) -> tuple[int, int] | None:
        """A store to a page of code: the engine, which looks at each of them, may store to what it may execute.

        Else the stepper stores, and what was translated from there goes.
        """
        if not self._may_execute(page, state) or self._fill_code(page, gpa, host, state) is None:
            return None
        if self._counted and not self.engine.stores.watch(host):
            return None
        self._code.mix(host)
        self._memory.note_dirty(gpa)
        return host, CAN_READ | CAN_WRITE | CAN_EXECUTE

    def _may_execute(self, page: int, state: CpuState) -> bool:
        with suppress(GuestFaultError):
            return self._mmu is not None and bool(self._mmu.translate(page, FETCH, user=state.cpl == 3))  # noqa: PLR2004 - ring 3
        return False

    def _note(self, note: Callable[[int, object], bool], page: int, host: int, state: CpuState) -> None:
        """Keep pages from being writable and executable at once."""
        key = page, state.rights
        if note(host, key):
            self._flush_tlb()
            note(host, key)

    def _freely_writable(self, gpa: int, host: int) -> bool:
        """True if a read may open the page for writing too, because nobody wants to know of the first write."""
        segment = self._memory.find(gpa)
        return segment is not None and not (segment.readonly or segment.log_dirty or self._code.holds(host))
