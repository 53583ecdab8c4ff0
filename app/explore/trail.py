"""A counterexample: every operation of a path, by thread and name, with what it changed.

The search walks in strides (a visible operation and the invisible ones after it); a trail has each operation,
because the replay on the shipped runtime performs each. ``shown`` says which are rows for a reader.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from app.core.requests import Request, RequestBits, request_names
from app.explore.knowledge import Knowledge
from app.explore.local import Step, seen_from_outside
from app.explore.model import Model
from app.explore.objects import Objects, Ref, Trap
from app.explore.paths import Move, Path
from app.explore.tables import Widths

NOTED = {"fill", "run_returned", "kick_begins", "resume_returned", "expect_completion"}


@dataclass(frozen=True, slots=True)
class Event:
    """One operation of a trail; ``trap`` None is a choice of the guest, ``result`` the branch."""

    thread: int
    trap: Trap | None
    result: Any
    changes: tuple[tuple[str, str, str], ...] = ()  # object, state before, state after
    shown: bool = True


@dataclass(slots=True)
class Trail:
    """The operations of a counterexample; from event number ``loop`` on they repeat for ever."""

    threads: tuple[str, ...]
    events: list[Event] = field(default_factory=list)
    loop: int | None = None
    blocked: tuple[tuple[str, str], ...] = ()  # who cannot move at the end, and what it would do

    @property
    def steps(self) -> int:
        """Rows of the printed form."""
        return sum(event.shown for event in self.events)


class Tracer:
    """Turns a path of packed states into operations."""

    def __init__(self, model: Model, widths: Widths) -> None:
        self.model = model
        self.widths = widths
        self.objects: Objects = model.objects
        self.knowledge: Knowledge = model.knowledge
        self.states = list(self.knowledge.initial)
        self.trail = Trail(tuple(thread.name for thread in model.threads))

    def trace(self, path: Path, *, stuck: bool) -> Trail:
        """Return the trail of ``path``; ``stuck``: its end is where somebody waits for ever."""
        self._begin(self.widths.unpack(path.start))
        first = len(path.moves) - path.loop
        for number, move in enumerate(path.moves):
            if path.loop and number == first:
                self.trail.loop = len(self.trail.events)
            self._move(move)
        if stuck:
            self.trail.blocked = self._blocked(self.widths.unpack(path.end))
        elif self.trail.loop is None:
            while self.trail.events and not self.trail.events[-1].shown:
                self.trail.events.pop()  # what the last thread did after the property had fallen
        return self.trail

    def _begin(self, state: tuple[int, ...]) -> None:
        """The invisible steps with which threads start."""
        for thread, here in enumerate(self.model.locals):
            goal = self.model.stop(thread, state[thread])
            for tail in here.start(self.knowledge.initial):
                if tail.stop == goal:
                    for step in tail.steps:
                        self._note(thread, step, shown=False)
                    break

    def _move(self, move: Move) -> None:
        thread = move.thread
        here = self.model.locals[thread]
        before, after = self.widths.unpack(move.source), self.widths.unpack(move.target)
        stop = self.model.stop(thread, before[thread])
        trap = here.trap(stop)
        assert trap is not None
        involved = tuple(self.states[index] for index in trap.involved)
        outcome = self.objects.apply(trap, involved)
        assert outcome is not None
        self._note(thread, Step(trap, outcome.result, outcome.states), shown=True)
        goal = self.model.stop(thread, after[thread])
        for tail in here.after(stop, outcome.result, involved, outcome.states):
            if tail.stop == goal:
                for step in tail.steps:
                    self._note(
                        thread,
                        step,
                        shown=step.trap is not None and (step.trap.method in NOTED or seen_from_outside(step.trap)),
                    )
                return
        raise AssertionError("a move without a trace")

    def _note(self, thread: int, step: Step, *, shown: bool) -> None:
        changes = []
        if step.trap is not None:
            trap = step.trap
            actual = self.objects.apply(trap, tuple(self.states[index] for index in trap.involved))
            assert actual is not None
            step = Step(trap, *actual)
            for index, state in zip(trap.involved, step.states, strict=True):
                if self.states[index] != state:
                    old, new = (self.objects.states[index][number] for number in (self.states[index], state))
                    changes += difference(self.objects.names[index], self.objects.real[index], old, new)
                    self.states[index] = state
        self.trail.events.append(Event(thread, step.trap, step.result, tuple(changes), shown))

    def _blocked(self, state: tuple[int, ...]) -> tuple[tuple[str, str], ...]:
        waiting = []
        for thread, here in enumerate(self.model.locals):
            trap = here.trap(self.model.stop(thread, state[thread]))
            if (
                trap is None
                or self.objects.apply(trap, tuple(self.states[index] for index in trap.involved)) is not None
            ):
                continue
            waiting.append((self.trail.threads[thread], self.name(trap)))
        return tuple(waiting)

    def name(self, trap: Trap) -> str:
        """An operation as a reader sees it."""
        return operation_name(trap, self.objects.names)


def operation_name(trap: Trap, names: list[str]) -> str:
    """``cpu0.requests.make(USERSPACE_KICK)``."""
    args = ", ".join(_argument(arg, names) for arg in trap.args)
    return f"{names[trap.object]}.{trap.method}({args})"


def _argument(arg: Any, names: list[str]) -> str:
    if type(arg) is Ref:
        return names[arg.object]
    return shown_value(arg)


def shown_value(value: Any) -> str:
    """A value in few letters."""
    if isinstance(value, Request):
        return value.name
    if isinstance(value, Enum):
        return str(value.name)
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return hex(value) if value > 4095 else str(value)
    if hasattr(value, "base_gfn"):
        return f"slot {value.id}{' INVALID' if value.invalid else ''}"
    if hasattr(value, "reason"):
        return type(value).__name__.removesuffix("Exit")
    if isinstance(value, tuple):
        return "(" + ", ".join(shown_value(item) for item in value) + ")"
    if isinstance(value, frozenset):
        return "{" + ", ".join(sorted(map(shown_value, value))) + "}"
    return str(value)


def difference(name: str, real: Any, old: tuple[Any, ...], new: tuple[Any, ...]) -> list[tuple[str, str, str]]:
    """What of an object's state has changed: field, before, after."""
    if isinstance(real, RequestBits):
        before, after = (
            "|".join(bit.removeprefix("KVM_REQ_") for bit in request_names(state[0])) or "0" for state in (old, new)
        )
        return [(name, before, after)]
    fields = real.FIELDS or tuple(slot for slot in real.__slots__ if not slot.startswith("_"))
    if type(real).__name__ == "RwSemaphore":
        fields = ("readers", "writer", "queue", "granted")
    if type(real).__name__ == "Memslots":
        return _slots_difference(name, old, new)
    changed = []
    for position, (before, after) in enumerate(zip(old, new, strict=True)):
        if before != after:
            field_name = fields[position] if position < len(fields) else str(position)
            changed.append((f"{name}.{field_name}", shown_value(before), shown_value(after)))
    return changed


def _slots_difference(name: str, old: tuple[Any, ...], new: tuple[Any, ...]) -> list[tuple[str, str, str]]:
    """Slot by slot, and the dirty pages of each."""
    changed: list[tuple[str, str, str]] = []
    for part, (what, shown) in enumerate((("slot", _shown_slot), ("dirty", shown_value))):
        before, after = dict(old[part]), dict(new[part])
        for number in sorted({*before, *after}):
            was, now = (shown(side[number]) if number in side else "none" for side in (before, after))
            if was != now:
                changed.append((f"{name}.{what} {number}", was, now))
    return changed


def _shown_slot(slot: Any) -> str:
    if slot.invalid:
        return "INVALID"
    pages = f"{slot.npages} page{'s' * (slot.npages > 1)}"
    return f"{pages} READONLY" if slot.readonly else pages
