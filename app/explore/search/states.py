"""Breadth-first search of all global states, a level at a time, deciding every safety property on the way."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from kickstand.explore.learn.observe import VIOLATIONS, Did
from kickstand.explore.search.marks import Mark, Marks
from kickstand.explore.search.properties import PROPERTIES, Name
from kickstand.explore.search.reduction import Outdated, Reduction, version
from kickstand.explore.search.sets import NO_WORDS, Seen, distinct
from kickstand.explore.search.tables import Tables, U, Words

SHARED = 1 << 14  # a smaller level is one worker's
SWITCH = 1e-4  # seconds; a worker that comes back from numpy does not wait longer for the interpreter
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a search is: ``rate`` in states a second."""

    states: int
    frontier: int
    depth: int
    rate: float


@dataclass(slots=True)
class Hit:
    """A property fell when ``thread`` moved (None: because nobody can) in one of ``sources``, all equally early."""

    depth: int
    thread: int | None
    sources: Words
    flags: int = 0  # one of them is what the move did
    layer: int | None = None  # the vCPU whose EINTR were counted
    blocked: int | None = None  # the thread that waits, where nobody moves
    statement: str | None = None  # what becomes true by the move
    about: int | None = None  # the thread that it is about, where nobody has moved


@dataclass(frozen=True, slots=True)
class Fall:
    """As a ``Hit``, of a part of a level; ``order`` says which comes first."""

    name: str
    order: int
    thread: int | None
    sources: Words
    flags: int = 0
    blocked: int | None = None
    statement: str | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """What came of a part of a level."""

    words: list[Words]  # by shard, as they came
    falls: list[Fall]
    transitions: int


@dataclass(slots=True)
class Result:
    """What a search found. ``bound`` says which limit ended it early."""

    levels: list[Words] = field(default_factory=list)
    seen: Seen = field(default_factory=Seen)
    transitions: int = 0
    hits: dict[str, Hit] = field(default_factory=dict)
    bound: str | None = None

    @property
    def states(self) -> int:
        """How many states were reached."""
        return self.seen.size


class Search:
    """One search over one set of tables."""

    def __init__(
        self,
        tables: Tables,
        wanted: Iterable[str],
        max_states: int,
        report: Callable[[Progress], None] | None = None,
        workers: int = 1,
    ) -> None:
        self.tables = tables
        self.marks = Marks(tables)
        self.asked = set(wanted)
        self.wanted = {*self.asked, Name.ASSERTION}  # which is looked at in any case
        self.max_states = max_states
        self.report = report
        self.workers = workers
        self.pool: ThreadPoolExecutor | None = None
        self.result = Result(seen=Seen(workers))
        self.left = NO_WORDS  # the frontier at which a bound was met
        self.checked = tables.reduction.version if tables.reduction else ()
        self.checked_states = 0

    def run(self, *, until_decided: bool = False, depth: int = 0) -> Result:
        """Search until nothing is new, a bound is met, or (if asked) every wanted property has fallen.

        In the last case ``depth`` levels are searched at least. Raises ``Outdated`` if the tables' reduction does
        not follow from what the search has learnt.
        """
        interval = sys.getswitchinterval()
        try:
            if self.workers > 1:
                sys.setswitchinterval(SWITCH)
            with ThreadPoolExecutor(self.workers) as self.pool:
                return self._run(until_decided, depth)
        finally:
            sys.setswitchinterval(interval)

    def _run(self, until_decided: bool, depth: int) -> Result:
        result = self.result
        started = time.monotonic()
        initial = distinct(
            [np.array([self.tables.widths.pack(state) for state in self.tables.model.initial()], dtype=U)]
        )
        shares = result.seen.shares(initial)
        frontier = initial
        self._begins(initial)
        while len(frontier):
            result.levels.append(frontier)
            result.seen.add(shares, self._each)
            shares = self._level(frontier, shares)
            frontier = shares[0] if len(shares) == 1 else np.concatenate(shares)
            if self.report is not None:
                elapsed = max(time.monotonic() - started, 1e-6)
                self.report(Progress(result.states, len(frontier), len(result.levels), result.states / elapsed))
            self._check_reduction(last=not len(frontier))
            if until_decided and len(result.levels) >= depth and not self.asked - result.hits.keys():
                break
            if len(frontier) and result.states + len(frontier) > self.max_states:
                result.bound = f"max_states {self.max_states}"
                self.left = frontier
                break
        return result

    def occurred(self) -> tuple[int, int]:
        """What was ever done (``Did``), and where threads have ever been (``Mark``)."""
        tables = self.tables
        done = int(np.bitwise_or.reduce(tables.flags.data[: tables.flags.size]))
        reached = 0
        for thread in tables.threads:
            done |= tables.model.locals[thread].began
            for number in range(len(tables.model.states[thread])):
                reached |= self.marks.mark(thread, number)
        return done, reached

    def look_ahead(self, width: int, depth: int) -> None:
        """After a bound was met: follow ``width`` states a level, for what there is to learn of threads and objects."""
        frontier = distinct([self.left])
        for _ in range(depth):
            frontier = self._sample(frontier, width)
            if not len(frontier):
                return
            new = np.concatenate([moves.words for moves in self.tables.moves(frontier)])
            shares = self.result.seen.without([self.result.seen.shares(new)])
            self.result.seen.add(shares)
            frontier = distinct(shares)

    def _sample(self, frontier: Words, width: int) -> Words:
        """Some of the states: of each state of a thread one, and others evenly."""
        evenly = np.arange(0, len(frontier), max(1, len(frontier) // width))
        fields = (self.tables.widths.field(frontier, thread) for thread in self.tables.threads)
        chosen = [np.unique(field, return_index=True)[1] for field in fields]
        some: Words = frontier[np.unique(np.concatenate([evenly, *chosen]))]
        return some

    def _check_reduction(self, *, last: bool) -> None:
        """Look whether the reduction still follows: at the end, and on the way as the number of states doubles."""
        reduction = self.tables.reduction
        if reduction is None or version(self.tables.model) == self.checked:
            return
        if last or self.result.states > 2 * self.checked_states:
            self.checked, self.checked_states = version(self.tables.model), self.result.states
            later = Reduction(self.tables.model)
            if not reduction.holds_in(later) or (not last and reduction.knows_less(later)):
                raise Outdated(later)

    def _level(self, frontier: Words, shares: list[Words]) -> list[Words]:
        """Let everybody move once, look at what happened, and return what is new."""
        stepped = list(self._each(self._step, shares if len(frontier) >= SHARED else [frontier]))
        self._keep_earliest([fall for step in stepped for fall in step.falls])
        self.result.transitions += sum(step.transitions for step in stepped)
        return self.result.seen.without([step.words for step in stepped], self._each)

    def _each(self, work: Callable[..., R], *items: Iterable[Any]) -> Iterable[R]:
        """Do the work for all items, at the same time if there are workers: numpy lets go of the interpreter's lock."""
        return map(work, *items) if self.pool is None or self.workers == 1 else self.pool.map(work, *items)

    def _step(self, frontier: Words) -> Part:
        """The part of a level that can be done for a part of the frontier."""
        parts = [NO_WORDS]
        falls: list[Fall] = []
        moving = np.zeros(len(frontier), dtype=bool)
        transitions = 0
        for order, (thread, words, flags, source, tried) in enumerate(self.tables.moves(frontier)):
            transitions += len(words)
            moving[source] = True
            falls += self._flagged(frontier, order, thread, flags, source)
            falls += self._blocked(frontier, order, thread, source, tried)
            falls += self._said(frontier, order, thread, words, source)
            parts.append(words)
        falls += self._stuck(frontier, moving)
        return Part(self.result.seen.shares(np.concatenate(parts)), falls, transitions)

    # -- properties --------------------------------------------------------------------------------------

    def _open(self, name: str) -> bool:
        """The property is asked for and has not fallen at an earlier level."""
        return name in self.wanted and name not in self.result.hits

    def _keep_earliest(self, falls: list[Fall]) -> None:
        """Make hits of what fell at this level: whatever the number of workers, the same ones."""
        for name in dict.fromkeys(fall.name for fall in falls):
            order = min(fall.order for fall in falls if fall.name == name)
            same = [fall for fall in falls if fall.name == name and fall.order == order]
            sources = distinct(fall.sources for fall in same)
            self.result.hits[name] = Hit(
                len(self.result.levels),
                same[0].thread,
                sources,
                same[0].flags,
                blocked=same[0].blocked,
                statement=same[0].statement,
            )

    def _flagged(
        self, frontier: Words, order: int, thread: int, flags: np.ndarray, source: np.ndarray
    ) -> Iterator[Fall]:
        noted = int(np.bitwise_or.reduce(flags)) if len(flags) else 0
        if noted & VIOLATIONS:
            for item in PROPERTIES.values():
                if item.flag & noted and self._open(item.name):
                    yield Fall(item.name, order, thread, frontier[source[(flags & item.flag) != 0]], int(item.flag))
        for flag, name in ((Did.ACCESS, Name.CLOSED_WINDOW), (Did.CONSUMED, Name.NO_BYSTANDER)):
            if noted & flag and self._open(name):
                words = frontier[source[(flags & flag) != 0]]
                words = words[self.marks.window(words, thread)]
                if len(words):
                    yield Fall(name, order, thread, words, int(flag))

    def _said(self, frontier: Words, order: int, thread: int, words: Words, source: np.ndarray) -> Iterator[Fall]:
        """What is never to be true becomes so."""
        for name, statement in self.tables.model.knowledge.world.never.items():
            if self._open(name) and len(words):
                true = self.marks.statements.mask(statement, words)
                if true.any():
                    yield Fall(name, order, thread, frontier[source[true]], statement=name)

    def _begins(self, initial: Words) -> None:
        """What is never to be true is so from the start, or a thread ends with an exception before its first step."""
        for thread in reversed(self.tables.threads):
            failed = (self.marks.of(initial, thread) & Mark.FAILED) != 0
            if failed.any():
                self.result.hits[Name.ASSERTION] = Hit(1, None, initial[failed], about=thread)
        for name, statement in self.tables.model.knowledge.world.never.items():
            true = self.marks.statements.mask(statement, initial)
            if self._open(name) and true.any():
                self.result.hits[name] = Hit(1, None, initial[true])

    def _blocked(
        self, frontier: Words, order: int, thread: int, source: np.ndarray, tried: np.ndarray | None
    ) -> Iterator[Fall]:
        if thread in self.marks.vmms and self._open(Name.NO_BYSTANDER):
            stuck = np.ones(len(frontier), dtype=bool)
            stuck[source] = False
            words = frontier[stuck] if tried is None else frontier[tried[stuck[tried]]]
            words = words[self.marks.waits_for_bystander(words, thread)]
            if len(words):
                yield Fall(Name.NO_BYSTANDER, order, None, words, blocked=thread)

    def _stuck(self, frontier: Words, moving: np.ndarray) -> Iterator[Fall]:
        if self._open(Name.DEADLOCK) and not moving.all():
            words = frontier[~moving]
            words = words[~self.marks.at_rest(words)]
            if len(words):
                yield Fall(Name.DEADLOCK, 0, None, words)
