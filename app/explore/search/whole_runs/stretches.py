"""Contracts about stretches of a run: from one move to another with nothing in between that breaks the stretch.

"The KVM_RUN that was under way when KICK began has returned when KICK returns", "EINTR has a cause since the call
began", "a reader of the old slot set has left when the ioctl that changed the set returns". Looked for after the states
are found, so that what has to be remembered does not multiply them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from kickstand.explore.learn.observe import Did
from kickstand.explore.search.marks import Mark, Marks
from kickstand.explore.search.properties import Name
from kickstand.explore.search.sets import NO_WORDS, Shard, distinct
from kickstand.explore.search.states import Search
from kickstand.explore.search.tables import Mask, Moves, Words
from kickstand.explore.world.cell import infers_windows
from kickstand.explore.world.ghosts import WatchedMemslots
from kickstand.explore.world.threads import Transaction

CHUNK = 1 << 19


class Rule(ABC):
    """A stretch that must not be: where and how it may begin, which moves go on with it, which one ends it badly.

    ``starter`` begins it, ``about`` is the vCPU that a counterexample is about. The three judges get moves and the
    states that they lead from.
    """

    name: str
    may_end_at_once = False  # a move may begin it and end it

    def __init__(self, marks: Marks, starter: int, about: int) -> None:
        self.marks = marks
        self.starter = starter
        self.about = about

    @classmethod
    def all(cls, marks: Marks) -> Iterator[Rule]:
        """One for each VMM and vCPU of one VM."""
        for vmm in marks.vmms:
            for vcpu in marks.same_vm(vmm, marks.vcpus):
                yield cls(marks, vmm, vcpu)

    @abstractmethod
    def where(self, words: Words) -> Mask:
        """States in which the starter may begin one."""

    def begins(self, moves: Moves) -> Mask:
        """Moves of the starter that begin one."""
        return np.ones(len(moves.words), dtype=bool)

    @abstractmethod
    def keeps(self, moves: Moves) -> Mask:
        """Moves that go on with it."""

    @abstractmethod
    def ends(self, moves: Moves, origins: Words) -> Mask:
        """Moves that break the rule."""

    def at_once(self, initial: Words) -> Mask:
        """Initial states that are on one already."""
        return np.zeros(len(initial), dtype=bool)

    def did(self, moves: Moves, thread: int, what: Did) -> Mask:
        """Moves of ``thread`` that did ``what``."""
        if moves.thread != thread:
            return np.zeros(len(moves.words), dtype=bool)
        found: Mask = (moves.flags & what) != 0
        return found


@dataclass(slots=True)
class Stretch:
    """A rule that is broken: the states on such stretches, level by level, and the states from which one ends."""

    rule: Rule
    levels: list[Words] = field(default_factory=list)
    sources: Words = field(default_factory=lambda: NO_WORDS)  # from which a move of ``starter`` ends it
    whole: bool = False  # one move of ``starter``, from ``sources``, is the whole stretch


def find(search: Search, name: str) -> Stretch | None:
    """The shortest stretch that breaks the property, over all threads that it is about."""
    found = [stretch for rule in RULES[name].all(search.marks) if (stretch := _look(search, rule)) is not None]
    return min(found, key=lambda stretch: len(stretch.levels), default=None)


def start_moves(search: Search, rule: Rule, words: Words) -> Iterator[tuple[Moves, Words]]:
    """Moves of the rule's starter that begin a stretch, from ``words``."""
    for begin in range(0, len(words), CHUNK):
        here = words[begin : begin + CHUNK]
        here = here[rule.where(here)]
        if len(here):
            new, flags, source = search.tables.expand(here, rule.starter)
            moves = Moves(rule.starter, new, flags, source, None)
            good = rule.begins(moves)
            yield Moves(rule.starter, new[good], flags[good], source[good], None), here[source[good]]


def _look(search: Search, rule: Rule) -> Stretch | None:
    stretch = Stretch(rule)
    first = [NO_WORDS]
    for moves, origins in start_moves(search, rule, search.result.seen.all()):
        over = rule.ends(moves, origins)
        if rule.may_end_at_once and over.any():
            stretch.sources, stretch.whole = distinct([origins[over]]), True
            return stretch
        first.append(moves.words[rule.keeps(moves)])
    initial = search.result.levels[0]
    first.append(initial[rule.at_once(initial)])
    seen, frontier = Shard(), distinct(first)
    while len(frontier):
        stretch.levels.append(frontier)
        seen.add(frontier)
        coming, fallen = [NO_WORDS], [NO_WORDS]
        for moves in search.tables.moves(frontier):
            origins = frontier[moves.source]
            fallen.append(origins[rule.ends(moves, origins)])
            coming.append(moves.words[rule.keeps(moves)])
        stretch.sources = distinct(fallen)
        if len(stretch.sources):
            return stretch
        frontier = seen.without(distinct(coming))
    return None


# -- the rules -----------------------------------------------------------------------------------------------


class KickDrains(Rule):
    """A KVM_RUN that is under way when KICK begins, and still is when KICK returns."""

    name = Name.KICK_DRAINS

    def where(self, words: Words) -> Mask:
        inside = self.marks.any(words, [self.about], Mark.IN_KERNEL)
        return inside & self.marks.about_to(words, self.starter, Transaction.kick_begins)

    def keeps(self, moves: Moves) -> Mask:
        left = self.did(moves, self.about, Did.RETURNED)
        return ~left & self.marks.any(moves.words, [self.about], Mark.IN_KERNEL)

    def ends(self, moves: Moves, origins: Words) -> Mask:
        if moves.thread != self.starter:
            return np.zeros(len(origins), dtype=bool)
        return self.marks.about_to(origins, self.starter, Transaction.kick_returned)


class EintrHasCause(Rule):
    """A call of KVM_RUN in which nobody kicks, signals or sets immediate_exit, and that answers EINTR."""

    name = Name.EINTR_HAS_CAUSE

    @classmethod
    def all(cls, marks: Marks) -> Iterator[Rule]:
        for vcpu in marks.vcpus:
            yield cls(marks, vcpu, vcpu)

    def where(self, words: Words) -> Mask:
        inside = self.marks.any(words, [self.about], Mark.INSIDE)
        return ~inside | self.marks.may(words, self.about, Did.RETURNED)

    def begins(self, moves: Moves) -> Mask:
        return self.at_once(moves.words)

    def at_once(self, initial: Words) -> Mask:
        return self.marks.any(initial, [self.about], Mark.INSIDE) & self._calm(initial)

    def keeps(self, moves: Moves) -> Mask:
        return ~self.did(moves, self.about, Did.RETURNED) & self._calm(moves.words)

    def ends(self, moves: Moves, origins: Words) -> Mask:
        return self.did(moves, self.about, Did.EINTR)

    def _calm(self, words: Words) -> Mask:
        own = self.marks.any(words, [self.about], Mark.SIGNALLED | Mark.IMMEDIATE | Mark.KICKED)
        vmms = self.marks.same_vm(self.about, self.marks.vmms)
        infers = infers_windows(self.marks.model.knowledge.cell.variant)
        quiet: Mask = ~own & ~self.marks.any(words, vmms, Mark.TRANSACTION | Mark.CHANGING * infers)
        return quiet


class Balance(Rule):
    """A vCPU that was reading the old slots when new ones were published, and still is when the ioctl returns."""

    name = Name.BALANCE
    may_end_at_once = True

    def where(self, words: Words) -> Mask:
        reading = self.marks.any(words, [self.about], Mark.READING)
        return reading & self.marks.about_to(words, self.starter, WatchedMemslots.publish)

    def begins(self, moves: Moves) -> Mask:
        return ~self.did(moves, self.starter, Did.DYING)

    def keeps(self, moves: Moves) -> Mask:
        over = self.did(moves, self.starter, Did.UNLOCKED | Did.DYING)
        return ~self.did(moves, self.about, Did.UNLOCKED) & ~over

    def ends(self, moves: Moves, origins: Words) -> Mask:
        return self.did(moves, self.starter, Did.UNLOCKED) & ~self.did(moves, self.starter, Did.DYING)


RULES: dict[str, type[Rule]] = {rule.name: rule for rule in (KickDrains, EintrHasCause, Balance)}
