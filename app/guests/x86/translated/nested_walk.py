"""When the engine walks pages itself, and its nested tables kept true to memory and to translated code.

A miss costs a twentieth then, but each new slot or code page costs as much as ten misses. So it is for guests whose
misses come close together: so many in one run that counts, or in so little time.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from kickstand.guests.x86.memory.page_walk import walks_alike
from kickstand.guests.x86.memory.physical import PAGE_MASK, AccessStoppedError
from kickstand.guests.x86.translated.alarm import Alarm
from kickstand.guests.x86.translated.nested_tables import Answer, NestedTables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kickstand.guests.x86.memory.paging import Mmu
    from kickstand.guests.x86.memory.physical import PhysicalMemory
    from kickstand.guests.x86.state.model import Model
    from kickstand.guests.x86.translated.code_pages import CodePages
    from kickstand.guests.x86.translated.unicorn_engine import Engine

MOST_FILLS = 64
"""Misses after which a run that counts ends early: they cost as much as a thousand instructions each."""
MOST_PAGES = 512  # of code that are compared at each entry
_FORGIVEN = 16  # of them with each run that counts: an address space that is changed often is short runs
_DENSE_NS = 10_000_000
NEEDED = 1
"""How often so many misses have to come close together, at first; twice as often after it did not go well."""
_MOST_NEEDED = 1 << 12
# Stores to what could be executed too are slow then (Unicorn looks at each): guests whose data are such go back soon.
_LIMITED_RUNS, _LIMITED_S = 16, 0.02
_MOST_PATIENCE = 256  # times as long, for those that miss as much again right after it


class NestedWalk:
    """Who walks the pages of one CPU.

    ``counted``: the choice depends on counts alone, so that the same calls give the same run. ``drop`` forgets the code
    of host pages.
    """

    def __init__(
        self,
        memory: PhysicalMemory,
        model: Model,
        code: CodePages,
        drop: Callable[[Iterable[int]], None],
        *,
        counted: bool,
    ) -> None:
        self._memory = memory
        self._model = model
        self._code = code
        self._drop = drop
        self._counted = counted
        self._engine: Engine | None = None
        self._tables: NestedTables | None = None
        self._fills_left = MOST_FILLS
        self._first_fill_ns = 0
        self._dense = 0  # how often they came close together
        self._needed = NEEDED
        self._missed = 0  # the last page of data that was
        self._alarm: Alarm | None = None
        self._runs_left = 0
        self._rested = 0  # runs since then
        self._patience = 1

    @property
    def active(self) -> bool:
        """The engine walks."""
        return self._tables is not None and self._engine is not None and self._engine.nested is not None

    # -- misses of the virtual TLB ---------------------------------------------------------------------------

    def run_begins(self) -> None:
        """Count misses from here, where runs count."""
        if self._counted:
            self._fills_left = min(self._fills_left + _FORGIVEN, MOST_FILLS)
        elif self._fills_left == MOST_FILLS:
            self._first_fill_ns = time.perf_counter_ns()

    def missed(self, page: int) -> bool:
        """The virtual TLB missed a page of data; true if the run had better end."""
        self._missed = page
        return self.missed_code()

    def missed_code(self) -> bool:
        """It missed a page of code."""
        self._fills_left -= 1
        if self._fills_left:
            return False
        now = time.perf_counter_ns()
        if self._counted or now - self._first_fill_ns < _DENSE_NS:
            self._dense += 1
        self._fills_left, self._first_fill_ns = MOST_FILLS, now
        return self._counted or self._dense >= self._needed

    # -- who walks -------------------------------------------------------------------------------------------

    def choose(self, engine: Engine, mmu: Mmu) -> None:
        """Before a run."""
        if self.active:
            self._runs_left -= 1
            if not self._runs_left or (self._alarm is not None and self._alarm.due):
                self.stop()
        elif self._dense >= self._needed:
            self._patience = min(2 * self._patience, _MOST_PATIENCE) if self._rested < _LIMITED_RUNS else 1
            self._start(engine, mmu)
        else:
            self._rested += 1

    def _start(self, engine: Engine, mmu: Mmu) -> None:
        tables = self._tables or NestedTables(self._memory)
        if not (tables.usable and walks_alike(engine.state, self._model, self._memory)):
            self.give_up()
            return
        self._engine, self._tables = engine, tables
        tables.clear()
        engine.use_nested(tables.roots)
        self._protect_code(engine, tables)
        self._runs_left = -1
        if mmu.may_be_executed(self._missed):
            self._runs_left = self._patience * _LIMITED_RUNS if self._counted else -1
            self._alarm = None if self._counted else Alarm(engine, self._patience * _LIMITED_S)

    def _protect_code(self, engine: Engine, tables: NestedTables) -> None:
        """What was translated can be executed without another fetch: it is compared once more, and kept true."""
        self._code.tlb_flushed()
        pages = self._code.all_pages()
        if len(pages) > MOST_PAGES:
            self._code.forget_all()
            engine.stores.unwatch_all()
            engine.flush_code()
            return
        for host, gpa in pages:
            if self._reachable(gpa) == host and tables.protect(gpa):
                self._code.note_executable(host, None)
            else:
                self._code.forget(host)
                self._drop((host,))
        self._drop(self._code.take_changed_executable())

    def _reachable(self, gpa: int) -> int | None:
        with suppress(AccessStoppedError):
            return self._memory.resolve(gpa, write=False)
        return None

    def stop(self) -> None:
        """Back to the virtual TLB, which knows nothing yet."""
        self._dense, self._fills_left, self._rested = 0, MOST_FILLS, 0
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self._engine is not None:
            self._engine.use_nested(None)
            self._code.tlb_flushed()
            self._engine = None

    def give_up(self) -> None:
        """The same, and not again soon."""
        self.stop()
        self._needed = min(2 * max(self._needed, 1), _MOST_NEEDED)

    def slots_change(self) -> None:
        """Nothing that was granted is any more."""
        self.stop()
        self._needed = NEEDED

    # -- while the engine walks ------------------------------------------------------------------------------

    def fill(self, gpa: int, error: int) -> bool:
        """Answer a miss of the nested tables. False: the stepper finds out why."""
        assert self._tables is not None
        answer = self._tables.miss(gpa, error)
        if answer is Answer.GIVE_UP:
            self.give_up()
        elif answer is Answer.WRITTEN:
            host = self._memory.resolve(gpa & PAGE_MASK, write=False)
            assert host is not None
            self._code.forget(host)
            self._drop((host,))
        return answer is not Answer.STEP

    def note_code(self, virtual: int, host: int, *, long_mode: bool) -> bool:
        """Code of this page was translated without having been asked for. False: it cannot be kept true."""
        engine, tables = self._engine, self._tables
        assert engine is not None
        assert tables is not None
        gpa = tables.gpa_of(host)
        if self._code.refetched(virtual, gpa, host, long_mode=long_mode):
            return True
        engine.flush_tlb()
        return tables.protect(gpa)
