"""One thread with the objects that only it can see: its steps up to the next visible one.

The explorer stores no state in which a thread is about to do something that no other thread could notice:
such steps are run as the tail of the visible step before them. What remains are *stops*, and the graph of which
stop follows which, learnt as the search goes on: ``reduction.py`` reads a thread's future from it.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Any, NamedTuple

from kickstand.core.atomics import Choice
from kickstand.explore.learn.automata import Automaton
from kickstand.explore.learn.knowledge import Knowledge
from kickstand.explore.learn.objects import Trap
from kickstand.explore.learn.observe import HOME, VIOLATIONS, At, Did
from kickstand.explore.learn.observer import NOTHING, Memory, Observer

MAX_PRODUCT = 20_000


class Stop(NamedTuple):
    """A local state whose next operation is visible: node, states of the private objects, observer's memory."""

    node: int
    private: tuple[int, ...]
    memory: Memory


class Taken(NamedTuple):
    """One operation on the way, for counterexamples; ``trap`` None is a choice and ``result`` the branch."""

    trap: Trap | None
    result: Any
    states: tuple[int, ...]
    node: int = -1  # of the thread's automaton, where it is about to do this


class Tail(NamedTuple):
    """Where a visible step ends: what was noted on the way, and the number of the next stop."""

    flags: int
    stop: int
    steps: tuple[Taken, ...] = ()  # the operations on the way


class LocalThread:
    """A thread's stops, learnt on demand."""

    def __init__(
        self, automaton: Automaton, observer: Observer, knowledge: Knowledge, private: Iterable[int], *, merge: bool
    ) -> None:
        self.automaton = automaton
        self.observer = observer
        self.knowledge = knowledge
        self.objects = knowledge.objects
        self.private = tuple(sorted(private))
        self.slot = {index: at for at, index in enumerate(self.private)}
        self.merge = merge
        self.stops: list[Stop] = []
        self.ids: dict[Stop, int] = {}
        self.forced: set[Stop] = set()
        self.silent: dict[tuple[Trap, tuple[int, ...]], bool] = {}
        self.tails: dict[tuple[int, tuple[int, ...], Memory, int], tuple[Tail, ...]] = {}
        self.targets: dict[int, set[int]] = {}  # where a step from a stop may end
        self.noted: dict[int, int] = {}  # and the flags it may have
        self.began = 0  # what was done before the first stop
        self.facts = 0  # how much the two say

    # -- steps -------------------------------------------------------------------------------------------

    def trap(self, stop: int) -> Trap | None:
        """What the thread does next at ``stop``; None if it has ended."""
        effect = self.automaton.nodes[self.stops[stop].node].effect
        return effect if type(effect) is Trap else None

    def label(self, stop: int) -> At:
        """Where the thread is at ``stop``."""
        label: At = self.automaton.nodes[self.stops[stop].node].label
        return label

    def visible(self, trap: Trap) -> tuple[int, ...]:
        """The involved objects that others can see."""
        return tuple(index for index in trap.involved if index not in self.slot)

    def involved(self, stop: Stop, trap: Trap, shared: dict[int, int]) -> tuple[int, ...]:
        """The states of all objects that ``trap`` works on."""
        return tuple(stop.private[self.slot[index]] if index in self.slot else shared[index] for index in trap.involved)

    def start(self, initial: tuple[int, ...]) -> tuple[Tail, ...]:
        """The stops at which the thread may begin. What must not be done needs a step in which it is seen."""
        private = tuple(initial[index] for index in self.private)
        tails = self._run(self.automaton.root, private, NOTHING, 0)
        if any(tail.flags & VIOLATIONS for tail in tails):
            merge, self.merge = self.merge, False
            tails = self._run(self.automaton.root, private, NOTHING, 0)
            self.merge = merge
        for tail in tails:
            self.began |= tail.flags
        return tails

    def after(self, stop: int, result: Any, involved: tuple[int, ...], states: tuple[int, ...]) -> tuple[Tail, ...]:
        """Perform the tail after the visible operation at ``stop`` returned ``result`` and left ``states``."""
        begin = self._begin_tail(stop, result, involved, states)
        tails = self.tails.get(begin)
        if tails is None:
            tails = self.tails[begin] = self._run(*begin)
        self._learn(stop, tails)
        return tails

    def _learn(self, stop: int, tails: tuple[Tail, ...]) -> None:
        targets = self.targets.setdefault(stop, set())
        for tail in tails:
            flags = self.noted.get(stop, 0) | tail.flags
            self.facts += (tail.stop not in targets) + (flags != self.noted.get(stop, 0))
            targets.add(tail.stop)
            self.noted[stop] = flags

    def _begin_tail(
        self, stop: int, result: Any, involved: tuple[int, ...], states: tuple[int, ...]
    ) -> tuple[int, tuple[int, ...], Memory, int]:
        trap = self.trap(stop)
        assert trap is not None
        here = self.stops[stop]
        known = self.objects.states[trap.object]
        change = (known[involved[0]], known[states[0]])
        memory, flags = self.observer.see(trap, result, here.memory, change)
        return self.automaton.step(here.node, result), self._updated(here.private, trap, states), memory, int(flags)

    def _updated(self, private: tuple[int, ...], trap: Trap, states: tuple[int, ...]) -> tuple[int, ...]:
        changed = list(private)
        for index, state in zip(trap.involved, states, strict=True):
            if index in self.slot:
                changed[self.slot[index]] = state
        return tuple(changed)

    def _run(self, node: int, private: tuple[int, ...], memory: Memory, flags: int) -> tuple[Tail, ...]:
        """Run invisible steps to the next stops; each ``Choice`` branches."""
        tails: dict[tuple[int, int], Tail] = {}
        work: list[tuple[int, tuple[int, ...], Memory, int, tuple[Stop, ...], tuple[Taken, ...]]]
        work = [(node, private, memory, flags, (), ())]
        while work:
            node, private, memory, flags, seen, steps = work.pop()
            while True:
                here = self.automaton.nodes[node]
                if here.error is not None:
                    flags |= Did.FAILED
                if here.effect is None and here.error is None and memory.held:
                    flags |= Did.UNBALANCED
                if here.label & HOME:
                    flags |= Did.AT_HOME | (Did.ENTERED if here.label & At.IN_GUEST else 0)
                effect = here.effect
                stop = Stop(node, private, memory)
                if type(effect) is Choice:
                    for branch in reversed(range(effect.alternatives)):
                        target = self.automaton.step(node, branch)
                        work.append((target, private, memory, flags, (*seen, stop), (*steps, Taken(None, branch, ()))))
                    break
                if stop in seen:
                    self.forced.add(stop)  # a private loop: one of its states is kept
                outcome = self._invisible(stop, effect) if stop not in self.forced else None
                if outcome is None:
                    tail = Tail(int(flags), self._stop(stop), steps)
                    tails.setdefault((tail.flags, tail.stop), tail)
                    break
                trap, involved, (result, states) = outcome
                known = self.objects.states[trap.object]
                memory, noted = self.observer.see(trap, result, memory, (known[involved[0]], known[states[0]]))
                flags |= noted
                seen = (*seen, stop)
                steps = (*steps, Taken(trap, result, states, node))
                private = self._updated(private, trap, states)
                node = self.automaton.step(node, result)
        return tuple(tails.values())

    def _invisible(self, stop: Stop, effect: Any) -> Any:
        """The outcome of an operation that nobody else can notice, or None if it is none or has to wait."""
        if effect is None or not self.merge:
            return None
        trap: Trap = effect
        if self.observer.together(trap):
            return None
        shared = self.visible(trap)
        states = self.involved(stop, trap, {index: self.knowledge.known[index][0] for index in shared})
        if shared and not self._is_silent(stop, trap):
            return None
        outcome = self.objects.apply_anywhere(trap, states)
        return None if outcome is None or self.objects.runs_away(trap, outcome) else (trap, states, outcome)

    def _is_silent(self, stop: Stop, trap: Trap) -> bool:
        """It changes nothing shared and answers the same in every known state."""
        own = tuple(stop.private[self.slot[index]] for index in trap.involved if index in self.slot)
        key = (trap, own)
        silent = self.silent.get(key)
        if silent is None:
            silent = self.silent[key] = key not in self.knowledge.loud and self.check_silent(trap, own)
        return silent

    def check_silent(self, trap: Trap, own: tuple[int, ...]) -> bool:
        """Look at every known state of the shared objects; ``own`` are the states of the private ones."""
        shared = self.visible(trap)
        private = dict(zip((index for index in trap.involved if index in self.slot), own, strict=True))
        positions = [at for at, index in enumerate(trap.involved) if index in shared]
        first = None
        for combination in self.combinations(shared):
            here = private | dict(zip(shared, combination, strict=True))
            states = tuple(here[index] for index in trap.involved)
            outcome = self.objects.apply_anywhere(trap, states)
            if outcome is None or any(outcome.states[at] != states[at] for at in positions):
                return False
            answer = (outcome.result, tuple(state for at, state in enumerate(outcome.states) if at not in positions))
            if first is None:
                first = answer
            elif first != answer:
                return False
        return True

    def combinations(self, shared: tuple[int, ...]) -> Iterable[tuple[int, ...]]:
        """Known states of some shared objects together."""
        known = [self.knowledge.known[index] for index in shared]
        size = 1
        for states in known:
            size *= len(states)
        if size <= MAX_PRODUCT:
            return product(*known)
        return list(zip(*known, strict=False))

    def _stop(self, stop: Stop) -> int:
        number = self.ids.get(stop)
        if number is None:
            number = self.ids[stop] = len(self.stops)
            self.stops.append(stop)
        return number
