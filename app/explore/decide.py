"""One cell: a scenario, a variant and a behaviour, searched once, and a verdict for each property asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from app.core.variants import Variant, variant
from app.explore.busy import Busy, bounded_busy
from app.explore.columns import as_json, as_perfetto, columns, seen
from app.explore.knowledge import Cell, Knowledge
from app.explore.liveness import Lasso, TooLargeError, decide
from app.explore.model import Model, Renew
from app.explore.paths import Path, to_hit, to_lasso
from app.explore.properties import LIVENESS, PROPERTIES, SAFETY
from app.explore.reduction import Outdated, Reduction
from app.explore.replay import Told, replay
from app.explore.sampling import LENGTH, RUNS, Sampler
from app.explore.scenarios import Scenario
from app.explore.search import Hit, Progress, Search
from app.explore.tables import Tables, TooWideError, Widths
from app.explore.tokens import Schedule, encode
from app.explore.trail import Tracer, Trail

MAX_STATES = 64_000_000
LEARN = 200_000  # states after which a search is large enough to be worth reducing
AHEAD = (4_000, 400)  # and how many further states a level it looks at, for how many levels, to know what there is
EXACT = 4_000_000  # states within which a loop is sought again without reduction, for the shortest way to it
REPORT = Callable[[Progress], None]


@dataclass(slots=True)
class Counterexample:
    """A violation, confirmed on the shipped runtime."""

    trail: Trail
    schedule: Schedule
    token: str
    names: list[str]
    verdict: str
    scenario: Scenario
    told: list[Told]

    def text(self) -> str:
        """The columns."""
        return columns(self.trail, self.names, self.verdict)

    def json(self) -> dict[str, Any]:
        """Steps as data."""
        return as_json(self.trail, self.names, self.verdict) | seen(self.trail, self.scenario, self.told)

    def perfetto(self) -> dict[str, Any]:
        """Steps as Chrome trace events."""
        return as_perfetto(self.trail, self.names, self.verdict)


@dataclass(slots=True)
class Verdict:
    """The answer for one property of one cell. ``bound`` says why an ``undecided`` one is."""

    scenario: str
    variant: str
    behaviour: str
    vcpus: int
    vmms: int
    property: str
    verdict: str  # holds, violated, undecided
    states: int
    transitions: int
    seconds: float
    fairness: str
    bound: str | None = None
    counterexample: Counterexample | None = None
    extra: dict[str, Any] = field(default_factory=dict)

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
        if self.bound is not None:
            cell["bound"] = self.bound
        if found is not None:
            cell["counterexample"] = found.json()
        return cell


class Decision:
    """The search of one cell, and what is concluded from it."""

    def __init__(
        self,
        scenario: Scenario,
        kind: str | type[Variant],
        behaviour: str,
        size: tuple[int, int],
        *,
        max_states: int = MAX_STATES,
        merge: bool = True,
        learn: int | None = LEARN,
        report: REPORT | None = None,
        strategy: str = "states",
        seed: int = 0,
        workers: int = 1,
    ) -> None:
        self.scenario = scenario
        self.kind = variant(kind) if isinstance(kind, str) else kind
        self.behaviour = behaviour
        self.size = size
        self.max_states = max_states
        self.merge = merge
        self.learn = learn if merge else None  # None: no reduction
        self.report = report
        self.strategy = strategy
        self.seed = seed
        self.workers = workers
        self.knowledge = Knowledge(Cell(scenario, self.kind, behaviour))
        self.bound: str | None = None
        self.bits: list[int] = []
        self.exact_hits: Search | None = None
        self.exact_loops: Search | None = None

    def verdicts(self, properties: Iterable[str]) -> list[Verdict]:
        """Decide each property, in the order given."""
        wanted = list(properties)
        started = time.perf_counter()
        try:
            if self.strategy != "states":
                return self._sample(wanted, started)
            while True:
                try:
                    return self._conclude(wanted, started)
                except Renew:
                    self.bits = []
                except OverflowError:
                    self._widen()
                except TooWideError as error:
                    return [self._verdict(name, "undecided", 0, 0, started, str(error)) for name in wanted]
        finally:
            self.knowledge.close()

    def _conclude(self, wanted: list[str], started: float) -> list[Verdict]:
        """Search and decide. ``Renew``, ``OverflowError``: to be done again."""
        self.exact_hits = self.exact_loops = None
        self.search = self._search(wanted)
        self.bound = self.search.result.bound
        return [self._decide(name, started) for name in wanted]

    def _sample(self, wanted: list[str], started: float) -> list[Verdict]:
        """Verdicts of random schedules: violated, or undecided."""
        while True:
            self.model = Model(self.knowledge, merge=self.merge)
            sampler = Sampler(self.model, self.strategy, self.seed, {name for name in wanted if name in SAFETY})
            try:
                sampler.run(self.max_states)
                break
            except Renew:
                continue
        self.widths = sampler.widths
        bound = f"{self.strategy}: {RUNS} schedules of {LENGTH} steps prove nothing"
        verdicts = []
        for name in wanted:
            found = sampler.found.get(name)
            kind = "violated" if found else "undecided"
            verdict = self._verdict(name, kind, len(sampler.states), sampler.steps, started, None if found else bound)
            if found is not None:
                verdict.counterexample = self.explain(name, found.path, found.thread, stuck=name == "deadlock")
            verdicts.append(verdict)
        return verdicts

    def _search(self, wanted: list[str]) -> Search:
        """Search in full as far as that is quick; what is larger is searched again with less."""
        only_safety = all(name in SAFETY and name != "bounded_busy" for name in wanted)
        if not self.bits:
            self.model = Model(self.knowledge, merge=self.merge)
            self.model.initial()
            self.bits = _first_widths(self.model)
        limit = self.max_states if self.learn is None else min(self.learn, self.max_states)
        search = self._run(wanted, limit, until_decided=only_safety)
        if search.result.bound is not None and limit < self.max_states:
            search.look_ahead(*AHEAD)
            search = self._reduced(wanted, until_decided=only_safety)
        self.widths = search.tables.widths
        return search

    def _run(self, wanted: Iterable[str], limit: int, reduction: Reduction | None = None, **how: Any) -> Search:
        """Search, starting over when a component outgrows its field."""
        while True:
            tables = Tables(self.model, Widths(self.bits), reduction)
            search = Search(tables, wanted, limit, self.report, self.workers)
            try:
                search.run(**how)
            except OverflowError:
                self._widen()
            else:
                return search

    def _widen(self) -> None:
        """Give a bit more to each component that has outgrown its field."""
        self.bits = [
            width + (len(states) > 1 << width) for width, states in zip(self.bits, self.model.states, strict=True)
        ]

    def _reduced(self, wanted: list[str], *, until_decided: bool) -> Search:
        """Search with reduction, until what the search has learnt does not change the reduction any more."""
        reduction = Reduction(self.model)
        while True:
            try:
                search = self._run(wanted, self.max_states, reduction, until_decided=until_decided)
            except Outdated as outdated:
                reduction = outdated.reduction
            else:
                return search

    def _decide(self, name: str, started: float) -> Verdict:
        result = self.search.result
        bound = self.bound
        try:
            found: Hit | Lasso | None
            if name in LIVENESS:
                found = decide(self.search, name)
            elif name == "bounded_busy":
                found = bounded_busy(self.search)
            else:
                found = result.hits.get(name)
        except TooLargeError as error:
            found, bound = None, str(error)
        if found is None:
            return self._verdict(
                name, "undecided" if bound else "holds", result.states, result.transitions, started, bound
            )
        verdict = self._verdict(name, "violated", result.states, result.transitions, started, None)
        verdict.counterexample = self._counterexample(name, found)
        verdict.seconds = time.perf_counter() - started
        return verdict

    def _verdict(
        self, name: str, verdict: str, states: int, transitions: int, started: float, bound: str | None
    ) -> Verdict:
        return Verdict(
            self.scenario.name,
            self.kind.name,
            self.behaviour,
            *self.size,
            name,
            verdict,
            states,
            transitions,
            time.perf_counter() - started,
            PROPERTIES[name].fairness,
            bound,
        )

    def _exact(self, name: str, found: Hit | Lasso) -> tuple[Search, Hit | Lasso]:
        """The same violation without reduction, where the way to it is the shortest; else as it was found."""
        if self.search.tables.reduction is None:
            return self.search, found
        if isinstance(found, Lasso):
            if self.exact_loops is None:
                self.exact_loops = self._run((), min(EXACT, self.max_states))
            exact = self.exact_loops
            again: Hit | Lasso | None = None if exact.result.bound else decide(exact, name)
        else:
            depth = found.depth if name == "bounded_busy" else 0
            if self.exact_hits is None or len(self.exact_hits.result.levels) < depth:
                hits = self.search.result.hits
                self.exact_hits = self._run(hits, self.max_states, until_decided=True, depth=depth)
            exact = self.exact_hits
            again = bounded_busy(exact) if name == "bounded_busy" else exact.result.hits.get(name)
        self.widths = exact.tables.widths if again else self.search.tables.widths
        return (exact, again) if again else (self.search, found)

    def _counterexample(self, name: str, found: Hit | Lasso) -> Counterexample:
        search, found = self._exact(name, found)
        about = found.thread or 0
        if isinstance(found, Lasso):
            path = to_lasso(search, found)
        elif found.layer is not None:
            path = Busy(search, found.layer).path()
        else:
            path = to_hit(search, found)
            if found.blocked is not None:
                about = found.blocked
        stuck = not path.loop and (
            name in LIVENESS or name == "deadlock" or getattr(found, "blocked", None) is not None
        )
        return self.explain(name, path, about, stuck=stuck)

    def explain(self, name: str, path: Path, about: int, *, stuck: bool) -> Counterexample:
        """Turn a path into operations, confirm them on the shipped runtime, and make the token."""
        trail = Tracer(self.model, self.widths).trace(path, stuck=stuck)
        schedule = schedule_of(trail, name, about)
        run = replay(self.scenario, self.kind, self.behaviour, schedule)
        token = encode(self.scenario, self.kind, self.behaviour, self.size, schedule)
        verdict = f"{name} is violated; {_story(name, trail, about)}"
        return Counterexample(trail, schedule, token, self.model.objects.names, verdict, self.scenario, run.told)


def _story(name: str, trail: Trail, about: int) -> str:
    who = trail.threads[about]
    stories = {
        "deadlock": "nothing can move any more",
        "livelock": f"{who} returns EINTR for ever inside the window",
        "kick_returns": f"the KICK of {who} never returns",
        "progress": f"{who} is never in its guest or halted again",
        "resume_runs": f"{who} never runs again",
        "bounded_busy": f"{who} returned EINTR three times in a row",
    }
    return stories.get(name, "rule: " + PROPERTIES[name].summary)


def schedule_of(trail: Trail, name: str, about: int) -> Schedule:
    """The operations and choices of a trail, as a token carries them."""
    threads = tuple(event.thread for event in trail.events if event.trap is not None)
    choices = tuple(event.result for event in trail.events if event.trap is None)
    loop = 0 if trail.loop is None else sum(event.trap is not None for event in trail.events[trail.loop :])
    return Schedule(name, threads, choices, loop, about)


def _first_widths(model: Model) -> list[int]:
    """Fields that fit into one word, as generous as there is room."""
    count = len(model.threads)
    objects = [len(model.knowledge.known[members[0]]).bit_length() + 1 for members in model.members[count:]]
    width = 11
    while width > 5 and width * count + sum(objects) > 62:
        width -= 1
    return [width] * count + objects
