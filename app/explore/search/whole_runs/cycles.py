"""Fair cycles: infinite runs that stay where a property says they must not.

For a region of the state graph (a KICK is under way, a vCPU is neither in its guest nor halted, a window is
open) the largest set is computed from whose every state each promise can be kept again and again without
leaving the set (Emerson and Lei). Weak fairness promises for each thread: it moves, or it cannot move. A
state where nobody can move repeats itself. An empty set proves the property.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kickstand.explore.learn.observe import Did
from kickstand.explore.search.marks import Mark
from kickstand.explore.search.properties import NOTHING, Name
from kickstand.explore.search.sets import distinct
from kickstand.explore.search.states import Hit, Search
from kickstand.explore.search.tables import Mask, Words

Numbers = NDArray[np.int64]
CHUNK = 1 << 19
MAX_REGION = 12_000_000


class TooLargeError(Exception):
    """The region is too large to look for loops in."""


@dataclass(slots=True)
class Region:
    """The part of the graph in question; edges are indices into ``words``."""

    words: Words
    source: Numbers
    target: Numbers
    thread: NDArray[np.int8]
    flags: NDArray[np.int64]
    enabled: Mask  # [thread, state]: it can move, be it out of the region
    entries: Mask = field(default_factory=lambda: np.empty(0, dtype=bool))

    def csr(self) -> tuple[Numbers, Numbers]:
        """Edges by target: where each state's begin, and which they are."""
        order = np.argsort(self.target, kind="stable")
        start = np.searchsorted(self.target[order], np.arange(len(self.words) + 1))
        return start, order


def region(search: Search, words: Words, *, without: dict[int, int]) -> Region:
    """Build the graph on the sorted ``words``; ``without`` maps a thread to flags its edges must not have."""
    tables = search.tables
    count = len(words)
    if count > MAX_REGION:
        raise TooLargeError(f"loops are sought among at most {MAX_REGION} states, here are {count}")
    enabled = np.zeros((len(tables.threads), count), dtype=bool)
    none = np.empty(0, dtype=np.int32)  # where nobody can move
    parts: list[tuple[NDArray[Any], NDArray[Any], NDArray[np.int8], NDArray[Any]]]
    parts = [(none, none, none.astype(np.int8), none)]
    for begin in range(0, count, CHUNK):
        chunk = words[begin : begin + CHUNK]
        if tables.reduction is not None:
            for thread in tables.threads:
                enabled[thread, begin + tables.expand(chunk, thread)[2]] = True
        for thread, new, flags, source, _ in tables.moves(chunk):
            enabled[thread, begin + source] = True
            at = np.searchsorted(words, new)
            at[at == count] = 0
            keep = words[at] == new
            if thread in without:
                keep &= (flags & without[thread]) == 0
            parts.append(
                (
                    (source[keep] + begin).astype(np.int32),
                    at[keep].astype(np.int32),
                    np.full(int(keep.sum()), thread, dtype=np.int8),
                    flags[keep].astype(np.int32),
                )
            )
    source, target, threads, noted = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Region(words, source, target, threads, noted, enabled)


@dataclass(slots=True)
class Promise:
    """Something that has to happen again and again: a state of ``states``, or an edge of ``edges``."""

    states: Mask
    edges: Mask


def weak_fairness(graph: Region) -> list[Promise]:
    """Each thread moves or is disabled again and again."""
    return [Promise(~graph.enabled[thread], graph.thread == thread) for thread in range(len(graph.enabled))]


class Fair:
    """The largest set in which all promises can be kept for ever."""

    def __init__(self, graph: Region, promises: list[Promise], *, terminal: bool) -> None:
        self.graph = graph
        self.promises = promises
        self.start, self.order = graph.csr()
        self.dead: Mask = np.zeros(len(graph.words), dtype=bool)
        if terminal:
            self.dead = np.logical_not(np.any(graph.enabled, axis=0))
        self.alive: Mask = np.ones(len(graph.words), dtype=bool)

    def solve(self) -> Mask:
        """Return the set as a mask over the region's states."""
        changed = True
        while changed and self.alive.any():
            changed = self._trim()
            for promise in self.promises:
                reach = self._can_keep(promise)
                if not reach[self.alive].all():
                    self.alive &= reach
                    changed = True
        return self.alive

    def _inside(self) -> Mask:
        return self.alive[self.graph.source] & self.alive[self.graph.target]

    def _trim(self) -> bool:
        """Drop states without a way on, again and again; true if one was dropped."""
        inside = self._inside()
        ways = np.bincount(self.graph.source[inside], minlength=len(self.alive))
        gone = np.flatnonzero(self.alive & (ways == 0) & ~self.dead)
        dropped = bool(len(gone))
        while len(gone):
            self.alive[gone] = False
            sources = self.graph.source[self._edges_into(gone)]
            sources = sources[self.alive[sources]]
            np.subtract.at(ways, sources, 1)
            sources = np.unique(sources)
            gone = sources[(ways[sources] <= 0) & ~self.dead[sources]]
        return dropped

    def _edges_into(self, states: Numbers) -> Numbers:
        first, last = self.start[states], self.start[states + 1]
        count = last - first
        total = int(count.sum())
        offset = np.arange(total) - np.repeat(np.cumsum(count) - count, count)
        edges: Numbers = self.order[np.repeat(first, count) + offset]
        return edges

    def _can_keep(self, promise: Promise) -> Mask:
        """States of the set from which the promise can be kept without leaving the set."""
        reach = self.alive & promise.states
        edges = promise.edges & self._inside()
        reach[self.graph.source[edges]] = True
        frontier = np.flatnonzero(reach)
        while len(frontier):
            sources = self.graph.source[self._edges_into(frontier)]
            sources = np.unique(sources[self.alive[sources] & ~reach[sources]])
            reach[sources] = True
            frontier = sources
        return reach


@dataclass(slots=True)
class Lasso:
    """A violated liveness property: the region, and the states from which a run may stay in it for ever."""

    graph: Region
    fair: Fair
    thread: int


def decide(search: Search, name: str) -> Lasso | None:
    """Look for a violation of a liveness property among the states found."""
    return DECIDERS[name](search) if name in DECIDERS else _eventually(search, name)


def _solve(graph: Region, promises: list[Promise], thread: int, *, terminal: bool = True) -> Lasso | None:
    fair = Fair(graph, promises, terminal=terminal)
    alive = fair.solve()
    if len(graph.entries):
        alive = alive & graph.entries
    return Lasso(graph, fair, thread) if alive.any() else None


def _stays(
    search: Search, words: Words, thread: int, without: Did = NOTHING, entries: Words | None = None
) -> Lasso | None:
    """Fair runs among ``words`` for ever: ``thread`` does nothing of ``without``, and the first is in ``entries``."""
    if not len(words):
        return None
    graph = region(search, words, without={thread: int(without)} if without else {})
    if entries is not None:
        graph.entries = np.isin(words, entries)
    return _solve(graph, weak_fairness(graph), thread)


def _first(found: Iterable[Lasso | None]) -> Lasso | None:
    return next((lasso for lasso in found if lasso is not None), None)


def _kick_returns(search: Search) -> Lasso | None:
    words, marks = search.result.seen.all(), search.marks
    return _first(_stays(search, words[(marks.of(words, vmm) & Mark.KICKING) != 0], vmm) for vmm in marks.vmms)


def never_ends(search: Search, vmm: int) -> Lasso | None:
    """Runs on which a VMM that is fairly treated never comes to its end."""
    words = search.result.seen.all()
    return _stays(search, words[(search.marks.of(words, vmm) & Mark.ENDED) == 0], vmm)


def _progress(search: Search) -> Lasso | None:
    """Runs on which a vCPU gets nowhere, or a VMM that is in no KICK never gets on."""
    words, marks = search.result.seen.all(), search.marks
    waits = Mark.ENDED | Mark.KICKING
    return _first(_away(search, words, vcpu) for vcpu in marks.vcpus) or _first(
        _stays(search, words[(marks.of(words, vmm) & waits) == 0], vmm) for vmm in marks.vmms
    )


def _resume_runs(search: Search) -> Lasso | None:
    words, marks = search.result.seen.all(), search.marks
    over = marks.all(words, marks.vmms, Mark.ENDED)
    entries = _first_of(search, words, over)
    return _first(_away(search, words[over], vcpu, entries) for vcpu in marks.vcpus)


def _first_of(search: Search, words: Words, over: Mask) -> Words:
    """States in which the last transaction has just ended."""
    parts = [words[:0]] if search.marks.vmms else [search.result.levels[0]]
    for vmm in search.marks.vmms:
        others = [other for other in search.marks.vmms if other != vmm]
        before = words[~over & search.marks.all(words, others, Mark.ENDED)]
        for begin in range(0, len(before), CHUNK):
            new = search.tables.expand(before[begin : begin + CHUNK], vmm)[0]
            parts.append(new[search.marks.all(new, search.marks.vmms, Mark.ENDED)])
    return distinct(parts)


def _away(search: Search, words: Words, vcpu: int, entries: Words | None = None) -> Lasso | None:
    """Runs on which ``vcpu`` is neither in guest mode nor halted, from one of ``entries`` on if there are any."""
    away = words[(search.marks.of(words, vcpu) & Mark.AT_HOME) == 0]
    return _stays(search, away, vcpu, Did.AT_HOME, entries)


def _livelock(search: Search) -> Lasso | None:
    words = search.result.seen.all()
    for vmm in search.marks.vmms:
        inside = words[(search.marks.of(words, vmm) & Mark.WINDOW) != 0]
        if not len(inside):
            continue
        graph = region(search, inside, without={})
        for vcpu in search.marks.same_vm(vmm, search.marks.vcpus):
            again = (graph.thread == vcpu) & ((graph.flags & Did.EINTR) != 0)
            if again.any():
                never = np.zeros(len(inside), dtype=bool)
                found = _solve(graph, [Promise(never, again)], vcpu, terminal=False)
                if found is not None:
                    return found
    return None


def _signal_leaves(search: Search) -> Lasso | None:
    """Runs on which a signal is pending for a vCPU that never leaves KVM_RUN."""
    words, marks = search.result.seen.all(), search.marks
    stuck = Mark.INSIDE | Mark.SIGNALLED
    return _first(
        _stays(search, words[(marks.of(words, vcpu) & stuck) == stuck], vcpu, Did.RETURNED) for vcpu in marks.vcpus
    )


def _eventually(search: Search, name: str) -> Lasso | None:
    """Runs from the start on which a statement never becomes true."""
    words = search.result.seen.all()
    statements = search.marks.statements
    without = words[~statements.mask(statements.named[name], words)]
    return _stays(search, without, 0, entries=search.result.levels[0])


def forsaken(search: Search) -> Hit | None:
    """A partial deadlock: a thread that waits and that nothing can let go on any more, while others may move."""
    words = search.result.seen.all()
    if search.tables.reduction is not None or not len(words):
        return None  # what can still happen is not kept by the reduction
    graph = region(search, words, without={})
    start, order = graph.csr()
    for thread in search.tables.threads:
        hope = graph.enabled[thread] | search.marks.settled(words, thread)
        frontier = np.flatnonzero(hope)
        while len(frontier):
            first, last = start[frontier], start[frontier + 1]
            count = last - first
            offset = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
            sources = np.unique(graph.source[order[np.repeat(first, count) + offset]])
            frontier = sources[~hope[sources]]
            hope[frontier] = True
        if not hope.all():
            return _earliest(search, words[~hope], thread)
    return None


def _earliest(search: Search, words: Words, thread: int) -> Hit:
    for level, reached in enumerate(search.result.levels):
        sources = reached[np.isin(reached, words)]
        if len(sources):
            return Hit(level + 1, None, distinct([sources]), blocked=thread)
    raise AssertionError("a state that was never reached")


DECIDERS: dict[str, Callable[[Search], Lasso | None]] = {
    Name.KICK_RETURNS: _kick_returns,
    Name.PROGRESS: _progress,
    Name.RESUME_RUNS: _resume_runs,
    Name.LIVELOCK: _livelock,
    Name.SIGNAL_LEAVES: _signal_leaves,
}

__all__ = ["Fair", "Lasso", "Promise", "Region", "decide", "region", "weak_fairness"]
