"""A violation with everything that shows it: its operations, its token, what the shipped runtime did with it."""

from __future__ import annotations

from dataclasses import dataclass
from traceback import extract_tb
from typing import Any

from kickstand.explore.evidence.columns import as_json, as_perfetto, columns, seen
from kickstand.explore.evidence.replay import Told, replay
from kickstand.explore.evidence.tokens import Schedule, encode
from kickstand.explore.evidence.trail import Tracer, Trail
from kickstand.explore.learn.model import Model
from kickstand.explore.learn.observe import Did
from kickstand.explore.search.properties import Name, property_of
from kickstand.explore.search.tables import Widths
from kickstand.explore.search.ways import Path
from kickstand.explore.world.scenarios import Scenario


@dataclass(slots=True)
class Counterexample:
    """A violation, confirmed on the shipped runtime."""

    trail: Trail
    schedule: Schedule
    token: str
    verdict: str
    scenario: Scenario
    told: list[Told]

    def text(self, *others: str) -> str:
        """The columns; ``others`` are verdicts of the same run on further properties."""
        return columns(self.trail, self.verdict, *others)

    def same_run(self, other: Counterexample) -> bool:
        """Both show the same operations and the same end."""
        return self.trail == other.trail

    def json(self) -> dict[str, Any]:
        """Steps as data."""
        return as_json(self.trail, self.verdict) | seen(self.trail, self.scenario, self.told)

    def perfetto(self) -> dict[str, Any]:
        """Steps as Chrome trace events."""
        return as_perfetto(self.trail, self.verdict)


OWN = ("learn/automata.py", "learn/objects.py", "world/own.py", "core/atomics.py")  # frames that are not the user's
UNSEEN = Did.UNBALANCED | Did.MISCOMPLETED | Did.FAILED  # deeds of operations that no other thread sees


@dataclass(frozen=True, slots=True)
class Fallen:
    """Which property fell; the thread that it is ``about``; ``stuck``: it fell because somebody waits for ever.

    ``left``: of a deadlock, that only this thread waits for ever, and others may go on.
    """

    name: str
    about: int
    stuck: bool
    left: bool = False


def explain(model: Model, widths: Widths, path: Path, fallen: Fallen) -> Counterexample:
    """Turn a path into operations, confirm them on the shipped runtime, and make the token."""
    cell = model.knowledge.cell
    unseen = bool(property_of(fallen.name).flag & UNSEEN)
    tracer = Tracer(model, widths)
    trail = tracer.trace(path, stuck=fallen.stuck, to_the_end=unseen, abrupt=fallen.name == Name.LOST_WAKEUP)
    schedule = schedule_of(trail, fallen.name, fallen.about + fallen.left)
    run = replay(cell, schedule)
    moved = path.moves or fallen.name == Name.ASSERTION
    error = model.error(fallen.about, widths.unpack(path.end)[fallen.about]) if moved else None
    story = _story(fallen.name, trail, fallen.about)
    if fallen.left:
        story = f"{trail.threads[fallen.about]} waits, and nothing can let it go on any more"
    if error is not None:
        story = f"{trail.threads[fallen.about]}: {_told(error)}"
    verdict = f"{fallen.name} is violated; {story}"
    return Counterexample(trail, schedule, encode(cell, schedule), verdict, cell.scenario, run.told)


def _told(error: BaseException) -> str:
    """An exception, where it was raised and in which function."""
    frames = [frame for frame in extract_tb(error.__traceback__) if not frame.filename.endswith(OWN)]
    where = f", {frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
    return f"{type(error).__name__}{': ' * bool(str(error))}{error}{where}"


def _story(name: str, trail: Trail, about: int) -> str:
    who = trail.threads[about]
    stories: dict[str, str] = {
        Name.DEADLOCK: "nothing can move any more",
        Name.LIVELOCK: f"{who} returns EINTR for ever inside the window",
        Name.KICK_RETURNS: f"the KICK of {who} never returns",
        Name.PROGRESS: f"{who} is never in its guest or halted again"
        if trail.threads[about].rpartition("/")[2].startswith("CPU")
        else f"{who} never gets on",
        Name.RESUME_RUNS: f"{who} never runs again",
        Name.KICK_DRAINS: f"KICK returned, and {who} is still in the KVM_RUN that it was in when KICK began",
        Name.EINTR_HAS_CAUSE: f"nobody kicked {who}, no signal came, immediate_exit was not set",
        Name.SIGNAL_LEAVES: f"a signal is pending for {who}, which never leaves KVM_RUN",
        Name.LOST_WAKEUP: f"{who} waits although it could go on: the last step has not woken it, "
        "and it sleeps for ever",
        Name.BOUNDED_BUSY: f"{who} returned EINTR three times in a row",
    }
    return stories.get(name, "rule: " + property_of(name).summary)


def schedule_of(trail: Trail, name: str, about: int) -> Schedule:
    """The operations and choices of a trail, as a token carries them."""
    threads = tuple(row.thread for row in trail.rows if row.choice is None)
    choices = tuple(row.choice for row in trail.rows if row.choice is not None)
    loop = 0 if trail.loop is None else sum(row.choice is None for row in trail.rows[trail.loop :])
    return Schedule(name, threads, choices, loop, about)
