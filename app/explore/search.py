"""Breadth-first search of all global states, a level at a time, deciding every safety property on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from app.explore.marks import Marks
from app.explore.observe import VIOLATIONS, Flag
from app.explore.properties import PROPERTIES
from app.explore.reduction import Outdated, Reduction, version
from app.explore.tables import Tables, U, Words

NO_WORDS: Words = np.empty(0, dtype=U)


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
    layer: int | None = None  # the vCPU whose EINTR were counted
    blocked: int | None = None  # the thread that waits, where nobody moves


class Seen:
    """A set of words: sorted runs of geometrically growing size."""

    def __init__(self) -> None:
        self.runs: list[Words] = []
        self.size = 0

    def add(self, words: Words) -> None:
        """Add words that are sorted and not in the set."""
        self.size += len(words)
        self.runs.append(words)
        while len(self.runs) > 1 and len(self.runs[-2]) < 2 * len(self.runs[-1]):
            merged = np.concatenate([self.runs.pop(), self.runs.pop()])
            merged.sort()
            self.runs.append(merged)

    def without(self, words: Words) -> Words:
        """Return those of the sorted ``words`` that are not in the set."""
        for run in self.runs:
            if not len(words):
                break
            at = np.searchsorted(run, words)
            at[at == len(run)] = 0
            words = words[run[at] != words]
        return words

    def all(self) -> Words:
        """Every word, sorted."""
        if len(self.runs) > 1:
            merged = np.concatenate(self.runs)
            merged.sort()
            self.runs = [merged]
        return self.runs[0] if self.runs else NO_WORDS


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


def distinct(parts: Iterable[Words]) -> Words:
    """Return the words of all parts, sorted, each once."""
    words = np.concatenate(list(parts))
    words.sort()
    if len(words) < 2:
        return words
    keep = np.empty(len(words), dtype=bool)
    keep[0] = True
    np.not_equal(words[1:], words[:-1], out=keep[1:])
    return words[keep]


class Search:
    """One search over one set of tables."""

    def __init__(
        self, tables: Tables, wanted: Iterable[str], max_states: int, report: Callable[[Progress], None] | None = None
    ) -> None:
        self.tables = tables
        self.marks = Marks(tables)
        self.wanted = set(wanted)
        self.max_states = max_states
        self.report = report
        self.result = Result()
        self.left = NO_WORDS  # the frontier at which a bound was met
        self.checked = tables.reduction.version if tables.reduction else ()
        self.checked_states = 0

    def run(self, *, until_decided: bool = False, depth: int = 0) -> Result:
        """Search until nothing is new, a bound is met, or (if asked) every wanted property has fallen.

        In the last case ``depth`` levels are searched at least. Raises ``Outdated`` if the tables' reduction does
        not follow from what the search has learnt.
        """
        result = self.result
        started = time.monotonic()
        frontier = distinct(
            [np.array([self.tables.widths.pack(state) for state in self.tables.model.initial()], dtype=U)]
        )
        while len(frontier):
            result.levels.append(frontier)
            result.seen.add(frontier)
            frontier = self._level(frontier)
            if self.report is not None:
                elapsed = max(time.monotonic() - started, 1e-6)
                self.report(Progress(result.states, len(frontier), len(result.levels), result.states / elapsed))
            self._check_reduction(last=not len(frontier))
            if until_decided and len(result.levels) >= depth and not self.wanted - result.hits.keys():
                break
            if len(frontier) and result.states + len(frontier) > self.max_states:
                result.bound = f"max_states {self.max_states}"
                self.left = frontier
                break
        return result

    def look_ahead(self, width: int, depth: int) -> None:
        """After a bound was met: follow ``width`` states a level, for what there is to learn of threads and objects."""
        frontier = self.left
        for _ in range(depth):
            frontier = self._sample(frontier, width)
            if not len(frontier):
                return
            new = distinct(moves.words for moves in self.tables.moves(frontier))
            frontier = self.result.seen.without(new)
            self.result.seen.add(frontier)

    def _sample(self, frontier: Words, width: int) -> Words:
        """Some of the states: of each state of a thread one, and others evenly."""
        chosen = [np.arange(0, len(frontier), max(1, len(frontier) // width))]
        for thread in self.tables.threads:
            chosen.append(np.unique(self.tables.widths.field(frontier, thread), return_index=True)[1])
        return frontier[np.unique(np.concatenate(chosen))]

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

    def _level(self, frontier: Words) -> Words:
        parts = []
        moving = np.zeros(len(frontier), dtype=bool)
        for thread, words, flags, source, tried in self.tables.moves(frontier):
            self.result.transitions += len(words)
            moving[source] = True
            self._check_flags(frontier, thread, flags, source)
            self._check_blocked(frontier, thread, source, tried)
            parts.append(words)
        self._check_deadlock(frontier, moving)
        return self.result.seen.without(distinct(parts))

    # -- properties --------------------------------------------------------------------------------------

    def _open(self, name: str) -> bool:
        """The property is asked for and has not fallen at an earlier level."""
        hit = self.result.hits.get(name)
        return name in self.wanted and (hit is None or hit.depth == len(self.result.levels))

    def _hit(self, name: str, thread: int | None, sources: Words, blocked: int | None = None) -> None:
        if name not in self.result.hits:
            self.result.hits[name] = Hit(len(self.result.levels), thread, sources, None, blocked)

    def _check_flags(self, frontier: Words, thread: int, flags: np.ndarray, source: np.ndarray) -> None:
        noted = int(np.bitwise_or.reduce(flags)) if len(flags) else 0
        if noted & VIOLATIONS:
            for item in PROPERTIES.values():
                if item.flag & noted and self._open(item.name):
                    self._hit(item.name, thread, np.unique(frontier[source[(flags & item.flag) != 0]]))
        for flag, name in ((Flag.ACCESS, "closed_window"), (Flag.CONSUMED, "no_bystander")):
            if noted & flag and self._open(name):
                words = np.unique(frontier[source[(flags & flag) != 0]])
                words = words[self.marks.window(words, thread)]
                if len(words):
                    self._hit(name, thread, words)

    def _check_blocked(
        self, frontier: Words, thread: int, source: np.ndarray, tried: np.ndarray | None
    ) -> None:
        if thread in self.marks.vmms and self._open("no_bystander"):
            stuck = np.ones(len(frontier), dtype=bool)
            stuck[source] = False
            words = frontier[stuck] if tried is None else frontier[tried[stuck[tried]]]
            words = words[self.marks.waits_for_bystander(words, thread)]
            if len(words):
                self._hit("no_bystander", None, words, thread)

    def _check_deadlock(self, frontier: Words, moving: np.ndarray) -> None:
        if self._open("deadlock") and not moving.all():
            words = frontier[~moving]
            words = words[~self.marks.at_rest(words)]
            if len(words):
                self._hit("deadlock", None, words)
