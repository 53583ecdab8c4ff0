"""What is known of a world before and during a search: automata, reached object states, who uses what.

A short random walk fills it; a search that meets something new adds it. Conclusions drawn from it (this
object is private, this operation changes nothing) are checked again whenever it grows.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

from kickstand.core.atomics import Choice
from kickstand.explore.learn.automata import Automaton, Canon
from kickstand.explore.learn.objects import Objects, Ref, Trap, Way
from kickstand.explore.learn.observe import Places
from kickstand.explore.learn.plain import Guard
from kickstand.explore.learn.statements import reads
from kickstand.explore.world.build import build
from kickstand.explore.world.cell import Cell
from kickstand.explore.world.own import Protocol
from kickstand.explore.world.parts import Thread, World

WALK_STEPS = 12_000
WALK_LENGTH = 300
Translate = Callable[[int, Trap], Trap]  # how a thread, by number, performs an operation


class Ways(ABC):
    """How the threads of a world perform operations, if not as the world has it; may share objects of its own."""

    together: list[tuple[int, ...]]  # objects that are one component, once it was called

    @abstractmethod
    def __call__(self, world: World, objects: Objects) -> Translate:
        """Say how; called once, before any thread runs."""


def _plainly(_: int, trap: Trap) -> Trap:
    return trap


class Knowledge:
    """One world with everything learnt about it."""

    def __init__(self, cell: Cell | Protocol, ways: Ways | None = None, steps: int = WALK_STEPS) -> None:
        self.cell = cell
        self.objects = Objects(strict=isinstance(cell, Protocol))
        self.world: World = build(cell, self.objects.share)
        for proxy, name in self.world.named:
            self.objects.name(proxy, name)
        special = self.world.stores or self.world.fates
        translate = ways(self.world, self.objects) if ways else self._by_world() if special else _plainly
        self.together: list[tuple[int, ...]] = [] if ways is None else ways.together
        self.initial = self.objects.freeze()
        vms = self.world.vms.values()
        self.guard = Guard([vm.variant for vm in vms], [vcpu for vm in vms for vcpu in vm.vcpus.values()])
        canon = Canon()
        places = Places()
        self.automata = [
            Automaton(thread.make, canon, places.of, partial(translate, number))
            for number, thread in enumerate(self.world.threads)
        ]
        self.known: list[list[int]] = [[state] for state in self.initial]
        self._reached: list[set[int]] = [{state} for state in self.initial]
        self.loud: set[Any] = set()  # operations that proved not to be silent
        self.reads = {statement: reads(statement) for statement in self.world.statements()}
        self.watched = set().union(*self.reads.values())
        self.walk(steps)
        self.check()

    def _by_world(self) -> Translate:
        """Threads perform operations on CPUs with store buffers, or may be killed."""
        proxies = {proxy.index: proxy for proxy, _ in self.world.shared}

        def translate(thread: int, trap: Trap) -> Trap:
            others = tuple(proxies[arg.object] for arg in trap.args if type(arg) is Ref)
            way = self.world.way(thread, trap.method, proxies[trap.object], others)
            if way is None:
                return trap
            perform, objects = way
            return trap._replace(way=Way(perform, tuple(proxy.index for proxy in objects)))

        return translate

    def check(self) -> None:
        """Raises ``PlainStateError`` or ``ScenarioError`` if something has changed that the explorer cannot see."""
        self.guard.check()
        self.world.check()

    @property
    def threads(self) -> list[Thread]:
        """The world's threads."""
        return self.world.threads

    def reach(self, index: int, state: int) -> bool:
        """Note that object ``index`` can be in ``state``; true if that is news."""
        if state in self._reached[index]:
            return False
        self._reached[index].add(state)
        self.known[index].append(state)
        return True

    def reached(self, index: int, state: int) -> bool:
        """Object ``index`` has been in ``state``."""
        return state in self._reached[index]

    def accesses(self) -> dict[int, set[int]]:
        """Which threads use each object, as far as the automata show."""
        users: dict[int, set[int]] = {}
        for number, automaton in enumerate(self.automata):
            for node in automaton.nodes:
                if type(node.effect) is Trap:
                    for index in node.effect.involved:
                        users.setdefault(index, set()).add(number)
        return users

    def close(self) -> None:
        """Drop parked coroutines."""
        for automaton in self.automata:
            automaton.close()

    def walk(self, steps: int) -> None:
        """Perform random steps from the start, again and again, to see most of what there is."""
        draw = random.Random(0)
        left = steps
        while left > 0:
            left -= self._walk_once(draw)

    def _walk_once(self, draw: random.Random) -> int:
        states = list(self.initial)
        nodes = [automaton.root for automaton in self.automata]
        current = 0
        calm = draw.random()
        for step in range(WALK_LENGTH):
            order = list(range(len(nodes)))
            draw.shuffle(order)
            if draw.random() < calm:
                order.remove(current)
                order.insert(0, current)
            for number in order:
                if self._walk_step(draw, number, states, nodes):
                    current = number
                    break
            else:
                return step + 1
        return WALK_LENGTH

    def _walk_step(self, draw: random.Random, number: int, states: list[int], nodes: list[int]) -> bool:
        automaton = self.automata[number]
        effect = automaton.nodes[nodes[number]].effect
        if effect is None:
            return False
        if type(effect) is Choice:
            nodes[number] = automaton.step(nodes[number], draw.randrange(effect.alternatives))
            return True
        trap: Trap = effect  # type: ignore[assignment]
        outcome = self.objects.apply(trap, tuple(states[index] for index in trap.involved))
        if outcome is None or self.objects.runs_away(trap, outcome):
            return False
        for index, state in zip(trap.involved, outcome.states, strict=True):
            states[index] = state
            self.reach(index, state)
        nodes[number] = automaton.step(nodes[number], outcome.result)
        return True
