"""Ways through the state graph: the shortest to a hit, with the fewest context switches; the loop of a lasso."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from kickstand.explore.learn.observe import Did
from kickstand.explore.search.sets import NO_WORDS, distinct
from kickstand.explore.search.states import Hit, Search
from kickstand.explore.search.tables import Mask, Moves, Words
from kickstand.explore.search.ways import Move, Path
from kickstand.explore.search.whole_runs.busy import LIMIT, Busy
from kickstand.explore.search.whole_runs.cycles import Lasso, Numbers, Region
from kickstand.explore.search.whole_runs.stretches import Rule, Stretch, start_moves
from kickstand.explore.search.whole_runs.wakeups import Lost

WIDEST = 256  # equally short ways that are compared for context switches, a level


def to_hit(search: Search, hit: Hit) -> Path:
    """The way to a safety violation, its last move included."""
    path = to_level(search, hit.depth - 1, hit.sources)
    if hit.thread is not None:
        path.moves.append(_violating(search, path.end, hit))
    return path


def _violating(search: Search, word: int, hit: Hit) -> Move:
    """The move of the hit's thread that did what the property forbids."""
    words, flags, _ = search.tables.expand(np.array([word], dtype=np.uint64), hit.thread or 0)
    if hit.statement is not None:
        statements = search.marks.statements
        best = int(np.argmax(statements.mask(statements.named[hit.statement], words)))
    else:
        best = int(np.argmax((flags & hit.flags) != 0))
    return Move(hit.thread or 0, word, int(words[best]))


def to_level(search: Search, level: int, goals: Words) -> Path:
    """The way to one of ``goals``, which all lie in ``level``."""
    levels = search.result.levels
    sets = [distinct([goals])[:WIDEST]]
    for depth in range(level - 1, -1, -1):
        sets.append(_before(search, levels[depth], sets[-1]))
    sets.reverse()
    return _calmest(search, sets)


def _before(search: Search, words: Words, goals: Words) -> Words:
    """States among ``words`` from which one step leads into ``goals``."""
    parts = []
    for thread in search.tables.threads:
        new, _, source = search.tables.expand(words, thread)
        parts.append(words[source[_among(new, goals)]])
    return distinct(parts)[:WIDEST]


def _among(words: Words, goals: Words) -> Mask:
    at = np.searchsorted(goals, words)
    at[at == len(goals)] = 0
    found: Mask = goals[at] == words
    return found


def _calmest(search: Search, sets: list[Words]) -> Path:
    """Of all ways through the sets, one with the fewest context switches."""
    best: dict[tuple[int, int], tuple[int, tuple[int, int] | None]] = {(int(word), -1): (0, None) for word in sets[0]}
    history = [best]
    for words, goals in pairwise(sets):
        best = _relax(search, words, goals, best)
        history.append(best)
    at: tuple[int, int] | None = min(best, key=lambda key: (best[key][0], key))
    moves: list[Move] = []
    for step in range(len(history) - 1, 0, -1):
        assert at is not None
        before = history[step][at][1]
        assert before is not None
        moves.append(Move(at[1], before[0], at[0]))
        at = before
    assert at is not None
    return Path(at[0], moves[::-1])


def _relax(
    search: Search,
    words: Words,
    goals: Words,
    best: dict[tuple[int, int], tuple[int, tuple[int, int] | None]],
) -> dict[tuple[int, int], tuple[int, tuple[int, int] | None]]:
    by_word: dict[int, list[tuple[int, int]]] = {}
    for key in best:
        by_word.setdefault(key[0], []).append(key)
    after: dict[tuple[int, int], tuple[int, tuple[int, int] | None]] = {}
    for thread in search.tables.threads:
        new, _, source = search.tables.expand(words, thread)
        keep = _among(new, goals)
        for target, origin in zip(new[keep].tolist(), words[source[keep]].tolist(), strict=True):
            for key in by_word.get(origin, ()):
                cost = best[key][0] + (key[1] != thread)
                old = after.get((target, thread))
                if old is None or cost < old[0]:
                    after[target, thread] = (cost, key)
    return after


def to_busy(busy: Busy) -> Path:
    """The shortest way to the third EINTR: walk the layers back from where it was found."""
    hit = busy.run()
    assert hit is not None
    word, moves = _last_eintr(busy, int(hit.sources[0]))
    count, depth = LIMIT - 1, hit.depth - 1
    while count:
        count, depth, move = _layer_before(busy, word, count, depth)
        moves.append(move)
        word = move.source
    way = to_level(busy.search, depth, np.array([word], dtype=np.uint64))
    way.moves += moves[::-1]
    return way


def _last_eintr(busy: Busy, word: int) -> tuple[int, list[Move]]:
    returned, _ = busy.eintr(np.array([word], dtype=np.uint64))
    return word, [Move(busy.vcpu, word, int(returned[0]))]


def _layer_before(busy: Busy, word: int, count: int, depth: int) -> tuple[int, int, Move]:
    """Where a state of layer ``count`` at ``depth`` came from: the layer, the depth, the move."""
    for origin in (count, count - 1):
        levels = busy.layers[origin].levels
        words = levels[depth - 1] if depth - 1 < len(levels) else NO_WORDS
        words = words[busy.search.marks.window(words, busy.vcpu)]
        for thread, new, flags, source, _ in busy.search.tables.moves(words):
            if origin < count and thread != busy.vcpu:
                continue
            good = new == np.uint64(word)
            if thread == busy.vcpu:
                counted = (flags & Did.EINTR) != 0
                good &= counted if origin < count else ~counted & ((flags & Did.ENTERED) == 0)
            if good.any():
                return origin, depth - 1, Move(thread, int(words[source[np.argmax(good)]]), word)
    raise AssertionError("a state of a layer without an origin")


def to_lost(search: Search, lost: Lost) -> Path:
    """The way to a lost wake-up, the move that ought to wake included."""
    path = to_level(search, lost.level, np.array([lost.source], dtype=np.uint64))
    path.moves.append(Move(lost.mover, lost.source, lost.target))
    return path


# -- stretches -------------------------------------------------------------------------------------------


def to_stretch(search: Search, stretch: Stretch) -> Path:
    """The way to where a stretch begins, the stretch, and the move that ends it."""
    rule, levels = stretch.rule, stretch.levels
    word = int(stretch.sources[0])
    moves = [_ending(search, rule, word)]
    for words in reversed(levels[:-1]):
        move = _on_stretch(search, rule, words, word)
        moves.append(move)
        word = move.source
    way = _to_begin(search, rule, word) if not stretch.whole else _shortest_to(search, word)
    way.moves += moves[::-1]
    return way


def _ending(search: Search, rule: Rule, word: int) -> Move:
    here = np.array([word], dtype=np.uint64)
    for moves in search.tables.moves(here):
        bad = rule.ends(moves, here[moves.source])
        if bad.any():
            return Move(moves.thread, word, int(moves.words[np.argmax(bad)]))
    new, flags, source = search.tables.expand(here, rule.starter)
    bad = rule.ends(Moves(rule.starter, new, flags, source, None), here[source])
    return Move(rule.starter, word, int(new[np.argmax(bad)]))


def _on_stretch(search: Search, rule: Rule, words: Words, goal: int) -> Move:
    for moves in search.tables.moves(words):
        good = rule.keeps(moves) & (moves.words == np.uint64(goal))
        if good.any():
            return Move(moves.thread, int(words[moves.source[np.argmax(good)]]), goal)
    raise AssertionError("a state of a stretch without an origin")


def _to_begin(search: Search, rule: Rule, word: int) -> Path:
    """The shortest way to a state that a stretch begins with, by the move that begins it."""
    goal = np.array([word], dtype=np.uint64)
    if (search.result.levels[0] == goal[0]).any() and rule.at_once(goal)[0]:
        return Path(word)
    for level, words in enumerate(search.result.levels):
        for moves, origins in start_moves(search, rule, words):
            good = moves.words == goal[0]
            if good.any():
                origin = int(origins[np.argmax(good)])
                way = to_level(search, level, np.array([origin], dtype=np.uint64))
                way.moves.append(Move(rule.starter, origin, word))
                return way
    raise AssertionError("a stretch that nothing begins")


# -- loops -------------------------------------------------------------------------------------------------


class Router:
    """Shortest ways inside the fair set of a region."""

    def __init__(self, graph: Region, alive: Mask) -> None:
        self.graph = graph
        self.inside = np.flatnonzero(alive[graph.source] & alive[graph.target])
        self.inside = self.inside[np.argsort(graph.source[self.inside], kind="stable")]
        self.start = np.searchsorted(graph.source[self.inside], np.arange(len(graph.words) + 1))

    def edges_from(self, states: Numbers) -> Numbers:
        """Edges that leave ``states``."""
        first = self.start[states]
        count = self.start[states + 1] - first
        total = int(count.sum())
        offset = np.arange(total) - np.repeat(np.cumsum(count) - count, count)
        edges: Numbers = self.inside[np.repeat(first, count) + offset]
        return edges

    def route(self, origin: int, states: Mask, edges: Mask, *, move: bool) -> list[int] | None:
        """Edges from ``origin`` to a state of ``states`` or over an edge of ``edges``; ``move``: at least one."""
        if not move and states[origin]:
            return []
        parent: dict[int, int] = {}
        frontier = np.array([origin])
        seen = np.zeros(len(self.graph.words), dtype=bool)
        while len(frontier):
            out = self.edges_from(frontier)
            good = out[edges[out] | states[self.graph.target[out]]]
            if len(good):
                return self._back(int(good[0]), origin, parent)
            targets, first = np.unique(self.graph.target[out], return_index=True)
            fresh = ~seen[targets]
            targets, first = targets[fresh], first[fresh]
            seen[targets] = True
            parent.update(zip(targets.tolist(), out[first].tolist(), strict=True))
            frontier = targets
        return None

    def _back(self, edge: int, origin: int, parent: dict[int, int]) -> list[int]:
        route = [edge]
        while (state := int(self.graph.source[edge])) != origin:
            edge = parent[state]
            route.append(edge)
        return route[::-1]


def to_lasso(search: Search, lasso: Lasso) -> Path:
    """The shortest way into the fair set, and a loop in it that keeps every promise."""
    graph, alive = lasso.graph, lasso.fair.alive
    enter = alive & graph.entries if len(graph.entries) else alive
    goals = graph.words[enter]
    level = next(depth for depth, words in enumerate(search.result.levels) if _among(words, goals).any())
    words = search.result.levels[level]
    path = to_level(search, level, words[_among(words, goals)])
    router = Router(graph, alive)
    none = np.zeros(len(graph.source), dtype=bool)
    current = int(np.searchsorted(graph.words, np.uint64(path.end)))
    for _ in range(len(graph.words) + 1):
        start, loop = current, list[int]()
        for promise in lasso.fair.promises:
            part = router.route(current, promise.states & alive, promise.edges, move=False)
            assert part is not None
            loop += part
            current = int(graph.target[loop[-1]]) if loop else current
        home = np.zeros(len(graph.words), dtype=bool)
        home[start] = True
        back = [] if loop and current == start else router.route(current, home, none, move=True)
        if back is None and lasso.fair.dead[current]:
            return _shortest_to(search, int(graph.words[current]))
        if back is not None:
            path = _shortest_to(search, int(graph.words[start]))
            path.loop = len(loop) + len(back)
            _extend(path, graph, loop + back)
            return path
        _extend(path, graph, loop)
    raise AssertionError("a fair set without a loop")


def _shortest_to(search: Search, word: int) -> Path:
    """The way to one state, whatever it took to find it."""
    goal = np.array([word], dtype=np.uint64)
    return to_level(search, next(level for level, words in enumerate(search.result.levels) if goal[0] in words), goal)


def _extend(path: Path, graph: Region, edges: list[int]) -> None:
    for edge in edges:
        path.moves.append(
            Move(int(graph.thread[edge]), int(graph.words[graph.source[edge]]), int(graph.words[graph.target[edge]]))
        )
