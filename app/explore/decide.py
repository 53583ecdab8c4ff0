"""One cell: a scenario, a variant and a behaviour, searched once, and a verdict for each property asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from kickstand.explore.evidence.counterexample import Counterexample, Fallen, explain
from kickstand.explore.evidence.paths import to_busy, to_hit, to_lasso, to_lost, to_stretch
from kickstand.explore.learn.knowledge import Knowledge, Ways
from kickstand.explore.learn.model import Model, Renew
from kickstand.explore.search.properties import LIVENESS, SAFETY, Name, property_of
from kickstand.explore.search.reduction import Outdated, Reduction
from kickstand.explore.search.sampling import LENGTH, RUNS, Sampler
from kickstand.explore.search.states import Hit, Progress, Search
from kickstand.explore.search.tables import WORD, Tables, TooWideError, Widths
from kickstand.explore.search.whole_runs.busy import Busy, bounded_busy
from kickstand.explore.search.whole_runs.cycles import Lasso, TooLargeError, decide, forsaken
from kickstand.explore.search.whole_runs.stretches import RULES, Stretch, find
from kickstand.explore.search.whole_runs.wakeups import LOOKED_AT, Lost, lost_wakeup
from kickstand.explore.world.cell import Cell
from kickstand.explore.world.own import Protocol
from kickstand.explore.world.stores import SC

MAX_STATES = 160_000_000
LEARN = 200_000  # states after which a search is large enough to be worth reducing
AHEAD = (4_000, 400)  # and how many further states a level it looks at, for how many levels, to know what there is
EXACT = 4_000_000  # states within which a loop is sought again without reduction, for the shortest way to it
UNASKED = (Name.ASSERTION, Name.LOST_WAKEUP)  # what makes every other answer worthless is looked for in any case
Fault = Hit | Lasso | Stretch
Report = Callable[[Progress], None]


class Answer(StrEnum):
    """What can be said of a property in a cell."""

    HOLDS = "holds"  # in every run
    VIOLATED = "violated"
    UNDECIDED = "undecided"  # a bound was met
    VACUOUS = "vacuous"  # in every run, and what it is about never occurs


@dataclass(slots=True)
class Verdict:
    """The answer for one property of one cell. ``bound`` says why an ``undecided`` one is."""

    scenario: str
    variant: str
    behaviour: str
    vcpus: int
    vmms: int
    property: str
    verdict: Answer
    states: int
    transitions: int
    seconds: float
    fairness: str
    bound: str | None = None
    counterexample: Counterexample | None = None
    memory: str = SC
    any_number: dict[str, Any] | None = None  # whether it is so for every number of vCPUs, where that was asked

    def json(self) -> dict[str, Any]:
        """The cell as ``--json`` prints it."""
        found = self.counterexample
        cell: dict[str, Any] = {
            "scenario": self.scenario,
            "variant": self.variant,
            "behaviour": self.behaviour,
            "vcpus": self.vcpus,
            "vmms": self.vmms,
            "property": self.property,
            "verdict": self.verdict,
            "states": self.states,
            "transitions": self.transitions,
            "seconds": round(self.seconds, 3),
            "steps": found.trail.steps if found else None,
            "fairness": self.fairness,
            "token": found.token if found else None,
        }
        if self.memory != SC:
            cell["memory"] = self.memory
        if self.bound is not None:
            cell["bound"] = self.bound
        if self.any_number is not None:
            cell["any_number"] = self.any_number
        if found is not None:
            cell["counterexample"] = found.json()
        return cell


@dataclass(frozen=True, slots=True)
class Effort:
    """How a cell is searched, and how far; ``merge`` and ``learn`` turn reductions off, for comparison."""

    strategy: str = "states"
    max_states: int = MAX_STATES
    seed: int = 0
    workers: int = 1  # that share the search, if it is large
    merge: bool = True  # operations that nobody else can notice are run with the visible one before them
    learn: int | None = LEARN  # None: no partial order reduction
    moving: int | None = None  # the others of the vCPUs never call KVM_RUN; then only what falls is a verdict


class Decision:
    """The search of one cell, and what is concluded from it."""

    def __init__(
        self, cell: Cell | Protocol, effort: Effort = Effort(), report: Report | None = None, ways: Ways | None = None
    ) -> None:
        self.cell = cell
        self.effort = effort
        self.learn = effort.learn if effort.merge and not isinstance(cell, Protocol) else None
        self.max_states = effort.max_states
        self.report = report
        self.knowledge = Knowledge(cell, ways)
        self.bound: str | None = None
        self.bits: list[int] = []
        self.exact_hits: Search | None = None
        self.exact_loops: Search | None = None
        self.occurred: tuple[int, int] | None = None

    def verdicts(self, properties: Iterable[str]) -> list[Verdict]:
        """Decide each property, in the order given."""
        wanted = list(properties)
        started = time.perf_counter()
        try:
            if self.effort.strategy != "states":
                return self._sample(wanted, started)
            while True:
                try:
                    return self._conclude(wanted, started)
                except Renew:
                    self.bits = []
                except OverflowError:
                    self._widen()
                except TooWideError as error:
                    return [self._verdict(name, Answer.UNDECIDED, 0, 0, started, str(error)) for name in wanted]
        finally:
            self.knowledge.close()

    def explored(self) -> Search:
        """All states, whatever falls. Raises ``TooWideError``; where a bound is met, the result says so."""
        while True:
            try:
                self.search = self._search(list(LIVENESS))  # nothing falls on the way
            except Renew:
                self.bits = []
            except OverflowError:
                self._widen()
            else:
                return self.search

    def _conclude(self, wanted: list[str], started: float) -> list[Verdict]:
        """Search and decide. ``Renew``, ``OverflowError``: to be done again."""
        self.exact_hits = self.exact_loops = self.occurred = None
        self.search = self._search(wanted)
        self.bound = self.search.result.bound
        if self.bound is None and self.model.runaway:
            self.bound = "a count falls below zero (balance), and runs are not followed from there"
        verdicts = [self._decide(name, started) for name in wanted]
        for name in UNASKED:
            if name not in wanted:
                found = self._decide(name, started)
                verdicts += [found] if found.verdict is Answer.VIOLATED else []
        return verdicts

    def _sample(self, wanted: list[str], started: float) -> list[Verdict]:
        """Verdicts of random schedules: violated, or undecided."""
        while True:
            self.model = Model(self.knowledge, merge=self.effort.merge)
            sampler = Sampler(
                self.model, self.effort.strategy, self.effort.seed, {name for name in wanted if name in SAFETY}
            )
            try:
                sampler.run(self.max_states)
                break
            except Renew:
                continue
        self.widths = sampler.widths
        bound = f"{self.effort.strategy}: {RUNS} schedules of {LENGTH} steps prove nothing"
        verdicts = []
        for name in wanted:
            found = sampler.found.get(name)
            kind = Answer.VIOLATED if found else Answer.UNDECIDED
            verdict = self._verdict(name, kind, len(sampler.states), sampler.steps, started, None if found else bound)
            if found is not None:
                fallen = Fallen(name, found.thread, name == Name.DEADLOCK)
                verdict.counterexample = explain(self.model, self.widths, found.path, fallen)
            verdicts.append(verdict)
        return verdicts

    def _search(self, wanted: list[str]) -> Search:
        """Search in full as far as that is quick; what is larger is searched again with less."""
        if not self.bits:
            self.model = Model(self.knowledge, merge=self.effort.merge)
            self.model.initial()
            self.bits = _first_widths(self.model)
        limit = self.max_states if self.learn is None else min(self.learn, self.max_states)
        search = self._run(wanted, limit, until_decided=True)
        if search.result.bound is not None and limit < self.max_states:
            search.look_ahead(*AHEAD)
            search = self._reduced(wanted)
        self.widths = search.tables.widths
        return search

    def _run(self, wanted: Iterable[str], limit: int, reduction: Reduction | None = None, **how: Any) -> Search:
        """Search, starting over when a component outgrows its field."""
        while True:
            tables = Tables(self.model, Widths(self.bits), reduction, self.effort.moving)
            search = Search(tables, wanted, limit, self.report, self.effort.workers)
            try:
                search.run(**how)
            except OverflowError:
                self._widen()
            else:
                return search

    def _widen(self) -> None:
        """Give a bit more to each component that has outgrown its field, and where a word has no room, to no other."""
        self.bits = [
            width + (len(states) > 1 << width) for width, states in zip(self.bits, self.model.states, strict=True)
        ]
        if sum(self.bits) > WORD:
            self.bits = [max(1, (len(states) - 1).bit_length()) for states in self.model.states]

    def _reduced(self, wanted: list[str]) -> Search:
        """Search with reduction, until what the search has learnt does not change the reduction any more."""
        reduction = Reduction(self.model)
        while True:
            try:
                search = self._run(wanted, self.max_states, reduction, until_decided=True)
            except Outdated as outdated:
                reduction = outdated.reduction
            else:
                return search

    def _decide(self, name: str, started: float) -> Verdict:
        result = self.search.result
        bound = self.bound
        try:
            found: Hit | Lasso | Stretch | Lost | None
            if not property_of(name).safety:
                found = None if self.model.runaway else decide(self.search, name)
            elif name == Name.BOUNDED_BUSY:
                found = bounded_busy(self.search)
            else:
                found = result.hits.get(name)
            if name == Name.DEADLOCK and found is None and not bound:
                found = forsaken(self.search)
            if name == Name.LOST_WAKEUP:
                found = lost_wakeup(self.search)
                bound = None if result.states > LOOKED_AT else bound  # it looks at no more
            if found is None and name in RULES:
                found = find(self.search, name)
        except TooLargeError as error:
            found, bound = None, str(error)
        if found is None:
            answer = Answer.UNDECIDED if bound else Answer.VACUOUS if self._vacuous(name) else Answer.HOLDS
            self.knowledge.check()
            return self._verdict(name, answer, result.states, result.transitions, started, bound)
        verdict = self._verdict(name, Answer.VIOLATED, result.states, result.transitions, started, None)
        verdict.counterexample = self._counterexample(name, found)
        verdict.seconds = time.perf_counter() - started
        return verdict

    def _verdict(
        self, name: str, verdict: Answer, states: int, transitions: int, started: float, bound: str | None
    ) -> Verdict:
        return Verdict(
            self.cell.scenario.name,
            self.cell.variant.name,
            self.cell.behaviour,
            self.cell.vcpus,
            self.cell.vmms,
            name,
            verdict,
            states,
            transitions,
            time.perf_counter() - started,
            property_of(name).fairness,
            bound,
            memory=self.cell.memory,
        )

    def _vacuous(self, name: str) -> bool:
        """What the property is about never occurred."""
        if self.occurred is None:
            self.occurred = self.search.occurred()
        return property_of(name).vacuous(*self.occurred)

    def _exact(self, name: str, found: Fault) -> tuple[Search, Fault]:
        """The same violation without reduction, where the way to it is the shortest; else as it was found."""
        if self.search.tables.reduction is None:
            return self.search, found
        if isinstance(found, Lasso | Stretch):
            if self.exact_loops is None:
                self.exact_loops = self._run((), min(EXACT, self.max_states))
            exact = self.exact_loops
            again: Fault | None = None
            if not exact.result.bound:
                again = decide(exact, name) if isinstance(found, Lasso) else find(exact, name)
        else:
            depth = found.depth if name == Name.BOUNDED_BUSY else 0
            if self.exact_hits is None or len(self.exact_hits.result.levels) < depth:
                hits = self.search.result.hits
                self.exact_hits = self._run(hits, self.max_states, until_decided=True, depth=depth)
            exact = self.exact_hits
            again = bounded_busy(exact) if name == Name.BOUNDED_BUSY else exact.result.hits.get(name)
        self.widths = exact.tables.widths if again else self.search.tables.widths
        return (exact, again) if again else (self.search, found)

    def _counterexample(self, name: str, found: Fault | Lost) -> Counterexample:
        if isinstance(found, Lost):
            path = to_lost(self.search, found)
            return explain(self.model, self.widths, path, Fallen(name, found.waiter, stuck=False))
        search, found = self._exact(name, found)
        if isinstance(found, Stretch):
            path = to_stretch(search, found)
            return explain(self.model, self.widths, path, Fallen(name, found.rule.about, stuck=False))
        about = found.thread or 0
        if isinstance(found, Lasso):
            path = to_lasso(search, found)
        elif found.layer is not None:
            path = to_busy(Busy(search, found.layer))
        else:
            path = to_hit(search, found)
            about = next((thread for thread in (found.blocked, found.about) if thread is not None), about)
        blocked = found.blocked if isinstance(found, Hit) else None
        stuck = not path.loop and (not property_of(name).safety or name == Name.DEADLOCK or blocked is not None)
        left = name == Name.DEADLOCK and blocked is not None
        return explain(self.model, self.widths, path, Fallen(name, about, stuck, left))


def _first_widths(model: Model) -> list[int]:
    """Fields that fit into one word, as generous as there is room."""
    count = len(model.threads)
    objects = [len(model.knowledge.known[members[0]]).bit_length() + 1 for members in model.members[count:]]
    width = 11
    while width > 5 and width * count + sum(objects) > 62:
        width -= 1
    return [width] * count + objects
