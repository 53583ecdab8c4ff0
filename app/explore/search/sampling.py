"""Random and PCT schedules, for worlds that are too large to search. They find; they never prove.

PCT (Burckhardt and others, 2010): each thread has a random priority, the highest that can move does, and at
a few random moments the running thread drops to the bottom. A bug that needs d orderings is found with a
known probability.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from kickstand.explore.learn.model import Model
from kickstand.explore.learn.observe import VIOLATIONS, At, Did
from kickstand.explore.search.properties import PROPERTIES, Name
from kickstand.explore.search.tables import Widths
from kickstand.explore.search.ways import Move, Path
from kickstand.explore.world.parts import Role
from kickstand.explore.world.threads import Stage

RUNS = 400
LENGTH = 400
CHANGES = 3
FIELD = 20

State = tuple[int, ...]


@dataclass(slots=True)
class Found:
    """A property fell on ``path``; ``thread`` is whom it is about."""

    path: Path
    thread: int


class Sampler:
    """Draws schedules from a seed and watches the safety properties."""

    def __init__(self, model: Model, strategy: str, seed: int, wanted: set[str]) -> None:
        self.model = model
        self.strategy = strategy
        self.draw = random.Random(seed)
        self.wanted = wanted
        self.found: dict[str, Found] = {}
        self.steps = 0
        self.states: set[State] = set()
        self.widths = Widths([FIELD] * len(model.members), limit=None)
        threads = model.threads
        self.vmms = [number for number, thread in enumerate(threads) if thread.role is Role.VMM]

    def run(self, max_states: int) -> None:
        """Draw runs until everything wanted has fallen, or enough was tried."""
        for _ in range(RUNS):
            if not self.wanted - self.found.keys() or len(self.states) > max_states:
                return
            self._one()

    def _one(self) -> None:
        state = self.draw.choice(self.model.initial())
        path = Path(self.widths.pack(state))
        threads = list(range(len(self.model.threads)))
        self.draw.shuffle(threads)
        changes = {self.draw.randrange(LENGTH) for _ in range(CHANGES)}
        for step in range(LENGTH):
            self.states.add(state)
            able = {thread: steps for thread in threads if (steps := self._steps(state, thread))}
            if not able:
                self._stuck(state, path)
                return
            thread = (
                self.draw.choice(sorted(able)) if self.strategy == "random" else next(t for t in threads if t in able)
            )
            if step in changes:
                threads.remove(thread)
                threads.append(thread)
            flags, after = self.draw.choice(able[thread])
            path.moves.append(Move(thread, self.widths.pack(state), self.widths.pack(after)))
            self.steps += 1
            self._look(state, thread, flags, path)
            state = after

    def _steps(self, state: State, thread: int) -> list[tuple[int, State]]:
        kind = self.model.kind(thread, state[thread])
        if kind is None:
            return []
        found = []
        for successor in self.model.step(thread, state[thread], tuple(state[component] for component in kind), kind):
            after = list(state)
            for component, number in zip((thread, *kind), successor.components, strict=True):
                after[component] = number
            found.append((successor.flags, tuple(after)))
        return found

    def _look(self, state: State, thread: int, flags: int, path: Path) -> None:
        names = [item.name for item in PROPERTIES.values() if item.flag & flags] if flags & VIOLATIONS else []
        if flags & (Did.ACCESS | Did.CONSUMED) and self._window(state, thread):
            names.append(Name.CLOSED_WINDOW if flags & Did.ACCESS else Name.NO_BYSTANDER)
        for name in names:
            self._note(name, path, thread)

    def _window(self, state: State, thread: int) -> bool:
        vm = self.model.threads[thread].vm
        return any(
            self.model.stage(vmm, state[vmm]) is Stage.WINDOW for vmm in self.vmms if self.model.threads[vmm].vm == vm
        )

    def _stuck(self, state: State, path: Path) -> None:
        rest = all(self.model.label(vmm, state[vmm]) & At.ENDED for vmm in self.vmms)
        for thread in range(len(self.model.threads)):
            label = self.model.label(thread, state[thread])
            if label & At.IN_GUEST:
                return
            rest &= bool(label & (At.ENDED | At.HALTED))
        if not rest:
            self._note(Name.DEADLOCK, path, 0)

    def _note(self, name: str, path: Path, thread: int) -> None:
        old = self.found.get(name)
        if name in self.wanted and (old is None or len(path.moves) < len(old.path.moves)):
            self.found[name] = Found(Path(path.start, list(path.moves)), thread)
