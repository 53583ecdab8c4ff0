"""Which operations of different threads may change places without anybody noticing.

An operation may go before another if, in every known state of the objects that both work on, neither disables
the other, the other does not enable it, and both orders end in the same states with the same answers. That is
looked up in the operations themselves, not declared: a reader's ``up_read`` goes before anybody's wait. What
leads to a state in which no object was ever seen (a semaphore left more often than entered) cannot happen.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from kickstand.explore.learn.knowledge import Knowledge
from kickstand.explore.learn.objects import Trap

MAX_COMBINATIONS = 20_000
States = tuple[int, ...]
IMPOSSIBLE: tuple[States, Any] = ((), None)


class Effect:
    """An operation as a function on some of its objects, the others being in given states."""

    def __init__(self, knowledge: Knowledge, trap: Trap, common: States, others: dict[int, int]) -> None:
        self.knowledge = knowledge
        self.objects = knowledge.objects
        self.trap = trap
        self.common = common
        self.others = others
        self.known: dict[States, tuple[States, Any] | None] = {}

    def at(self, states: States) -> tuple[States, Any] | None:
        """New states of the common objects and everything else that comes of it; None: not enabled."""
        if states not in self.known:
            here = self.others | dict(zip(self.common, states, strict=True))
            involved = self.trap.involved
            outcome = self.objects.apply_anywhere(self.trap, tuple(here[index] for index in involved))
            if outcome is None:
                self.known[states] = None
            else:
                after = dict(zip(involved, outcome.states, strict=True))
                rest = tuple(after[index] for index in involved if index not in self.common)
                possible = all(self.knowledge.reached(index, state) for index, state in after.items())
                self.known[states] = (
                    (tuple(after[index] for index in self.common), (outcome.result, rest)) if possible else IMPOSSIBLE
                )
        return self.known[states]


class Independence:
    """Answers for one world, as far as it is known now."""

    def __init__(self, knowledge: Knowledge) -> None:
        self.knowledge = knowledge
        self._effects: dict[tuple[Trap, States], list[Effect] | None] = {}
        self._conflicts: dict[tuple[Trap, Trap, bool], bool] = {}

    def conflict(self, one: Trap, other: Trap, *, helps: bool) -> bool:
        """``one`` may not simply go before ``other``; ``helps``: it may enable ``other``."""
        key = (one, other, helps)
        found = self._conflicts.get(key)
        if found is None:
            found = self._conflicts[key] = self._check(one, other, helps)
        return found

    def _check(self, one: Trap, other: Trap, helps: bool) -> bool:
        common = tuple(index for index in one.involved if index in other.involved)
        if not common:
            return False
        first, second = self._effects_of(one, common), self._effects_of(other, tuple(common))
        if first is None or second is None:
            return True
        return not all(self._commute(here, there, helps) for here in first for there in second)

    def _effects_of(self, trap: Trap, common: States) -> list[Effect] | None:
        """The different effects, one for each way the other objects can be; None if there are too many."""
        key = (trap, common)
        if key not in self._effects:
            known = self.knowledge.known
            others = [index for index in trap.involved if index not in common]
            size = 1
            for index in trap.involved:
                size *= len(known[index])
            if size > MAX_COMBINATIONS:
                self._effects[key] = None
                return None
            different: dict[tuple[Any, ...], Effect] = {}
            for states in product(*(known[index] for index in others)):
                effect = Effect(self.knowledge, trap, common, dict(zip(others, states, strict=True)))
                different.setdefault(tuple(effect.at(state) for state in self._domain(common)), effect)
            self._effects[key] = list(different.values())
        return self._effects[key]

    def _domain(self, common: States) -> Iterator[States]:
        return product(*(self.knowledge.known[index] for index in common))

    def _commute(self, one: Effect, other: Effect, helps: bool) -> bool:
        for states in self._domain(one.common):
            first, second = one.at(states), other.at(states)
            if first is IMPOSSIBLE or second is IMPOSSIBLE or (first is None and second is None):
                continue
            then = other.at(first[0]) if first is not None else None
            again = one.at(second[0]) if second is not None else None
            if then is IMPOSSIBLE and again is IMPOSSIBLE:
                continue
            if first is None or second is None:
                if again is not None or (then is not None and not helps):
                    return False  # one enables the other
                continue
            if then is None or again is None or then[0] != again[0] or then[1] != second[1] or again[1] != first[1]:
                return False
        return True
