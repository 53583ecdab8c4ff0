"""C2: a thread's automaton in a large world, less what it does about erased vCPUs, is its automaton in the small one.

Pairs of local states are followed from the start. An operation about an erased vCPU leaves the small one where it is;
any other has to be the small one's next operation, with an answer that the small one has got too.
"""

from __future__ import annotations

from typing import Any

from kickstand.core.atomics import Choice
from kickstand.explore.crowd.worlds import Owners, Renaming
from kickstand.explore.learn.automata import Automaton
from kickstand.explore.learn.knowledge import Knowledge
from kickstand.explore.learn.objects import Trap


class Erasure:
    """Compares the threads of a large world with those of a small one; both have been searched to their end."""

    def __init__(self, large: Knowledge, small: Knowledge, whose: Owners, renaming: Renaming) -> None:
        self.large = large
        self.small = small
        self.owners = whose
        self.renaming = renaming

    def differs(self, thread: int, other: int) -> str | None:
        """Where ``thread`` of the large world does not do as ``other`` of the small one; None if it does."""
        automaton, small = self.large.automata[thread], self.small.automata[other]
        start = (automaton.root, small.root)
        seen, work = {start}, [start]
        while work:
            here, there = work.pop()
            pairs = self._step(automaton, small, here, there)
            if isinstance(pairs, str):
                return f"C2: {self.large.threads[thread].name}: {pairs}"
            for pair in pairs:
                if pair not in seen:
                    seen.add(pair)
                    work.append(pair)
        return None

    def _step(self, automaton: Automaton, small: Automaton, here: int, there: int) -> list[tuple[int, int]] | str:
        node, other = automaton.nodes[here], small.nodes[there]
        effect, expected = node.effect, other.effect
        if type(effect) is Trap and self._erased(effect):
            return [(target, there) for target in node.edges.values()]
        if self._letter(effect) != (expected._replace(way=None) if type(expected) is Trap else expected):
            return f"{self._name(self.large, effect)} in company, {self._name(self.small, expected)} without"
        pairs = []
        for answer, target in node.edges.items():
            said = self.renaming(answer)
            if type(effect) is Trap and said not in other.edges and self._constant(effect):
                said = next(iter(other.edges))
            if said not in other.edges:
                return f"{self._name(self.large, effect)} answers {answer} only in company"
            pairs.append((target, other.edges[said]))
        return pairs

    def _erased(self, trap: Trap) -> bool:
        return bool(self.owners.subjects(trap) - set(self.renaming.kept))

    def _letter(self, effect: Any) -> Any:
        if type(effect) is not Trap:
            return effect
        rename = self.renaming
        return Trap(rename.objects.get(effect.object, -1), effect.method, rename(effect.args), effect.kwargs)

    def _constant(self, trap: Trap) -> bool:
        """It asks what never changes: who is online."""
        return all(len(self.large.known[index]) == 1 for index in trap.involved)

    def _name(self, world: Knowledge, effect: Any) -> str:
        if type(effect) is Trap:
            return f"{world.objects.names[effect.object]}.{effect.name}"
        return "a choice" if type(effect) is Choice else "the end"
