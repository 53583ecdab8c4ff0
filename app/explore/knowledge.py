"""What is known of a world before and during a search: automata, reached object states, who uses what.

A short random walk fills it; a search that meets something new adds it. Conclusions drawn from it (this
object is private, this operation changes nothing) are checked again whenever it grows.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from app.core.atomics import Choice
from app.core.variants import Variant
from app.explore.automata import Automaton, Canon
from app.explore.objects import Objects, Trap
from app.explore.observe import label_of
from app.explore.scenarios import Scenario
from app.explore.world import Thread, World, build

WALK_STEPS = 12_000
WALK_LENGTH = 300


@dataclass(frozen=True, slots=True)
class Cell:
    """The configuration of one search."""

    scenario: Scenario
    variant: str | type[Variant]
    behaviour: str

    @property
    def variant_name(self) -> str:
        """The variant's name."""
        return self.variant if isinstance(self.variant, str) else self.variant.name


class Knowledge:
    """One world with everything learnt about it."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.objects = Objects()
        self.world: World = build(cell.scenario, cell.variant, cell.behaviour, self.objects.share)
        for proxy, name in self.world.named:
            self.objects.name(proxy, name)
        self.initial = self.objects.freeze()
        canon = Canon()
        self.automata = [Automaton(thread.make, canon, label_of) for thread in self.world.threads]
        self.known: list[list[int]] = [[state] for state in self.initial]
        self._reached: list[set[int]] = [{state} for state in self.initial]
        self.loud: set[Any] = set()  # operations that proved not to be silent
        self.walk()

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

    def walk(self) -> None:
        """Perform random steps from the start, again and again, to see most of what there is."""
        draw = random.Random(0)
        left = WALK_STEPS
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
        if outcome is None:
            return False
        for index, state in zip(trap.involved, outcome.states, strict=True):
            states[index] = state
            self.reach(index, state)
        nodes[number] = automaton.step(nodes[number], outcome.result)
        return True
