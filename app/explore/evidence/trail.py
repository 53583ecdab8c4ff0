"""A counterexample: every operation of a path, by thread and name, with what it changed.

The search walks in strides (a visible operation and the invisible ones after it); a trail has each operation,
because the replay on the shipped runtime performs each. ``shown`` says which are rows for a reader. A trail is plain
data: it goes from the process that found it to the one that prints it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from kickstand.core.arch.cpu.vcpu_arch import VcpuArch
from kickstand.core.memslots import Memslots, Region
from kickstand.core.run.run_page import KvmRun
from kickstand.core.shared.requests import Request, RequestBits, request_names
from kickstand.core.shared.rwsem import RwSemaphore
from kickstand.explore.learn.knowledge import Knowledge
from kickstand.explore.learn.local import Taken
from kickstand.explore.learn.model import Model
from kickstand.explore.learn.objects import Objects, Ref, Trap
from kickstand.explore.learn.where import Where
from kickstand.explore.search.tables import Widths
from kickstand.explore.search.ways import Move, Path
from kickstand.explore.world.parts import Role
from kickstand.explore.world.stores import Entry, StoreBuffer
from kickstand.explore.world.threads import Transaction, Userspace


@dataclass(frozen=True, slots=True)
class Row:
    """One operation of a trail. ``choice`` is the branch if it is a choice of the guest instead."""

    thread: int
    text: str  # the operation with its arguments and its result
    object: str = ""  # whose operation it is
    result: str = "None"
    choice: int | None = None
    changes: tuple[tuple[str, str, str], ...] = ()  # object, state before, state after
    shown: bool = True
    where: Where | None = None  # in the source


@dataclass(slots=True)
class Trail:
    """The operations of a counterexample; from row number ``loop`` on they repeat for ever."""

    threads: tuple[str, ...]
    rows: list[Row] = field(default_factory=list)
    loop: int | None = None
    blocked: tuple[tuple[str, str], ...] = ()  # who cannot move at the end, and what it would do

    @property
    def steps(self) -> int:
        """Rows of the printed form."""
        return sum(row.shown for row in self.rows)


class Tracer:
    """Turns a path of packed states into operations."""

    def __init__(self, model: Model, widths: Widths) -> None:
        self.model = model
        self.widths = widths
        self.objects: Objects = model.objects
        self.knowledge: Knowledge = model.knowledge
        self.states = list(self.knowledge.initial)
        self.trail = Trail(tuple(thread.name for thread in model.threads))
        self.told: set[Any] = {  # rows for a reader although no other thread sees them
            KvmRun.fill,
            Userspace.run_returned,
            Transaction.kick_begins,
            Transaction.resume_returned,
            VcpuArch.expect_completion,
        }

    def trace(self, path: Path, *, stuck: bool, to_the_end: bool = False, abrupt: bool = False) -> Trail:
        """Return the trail of ``path``; ``stuck``: its end is where somebody waits for ever.

        ``to_the_end``: what fell did so at an operation that no other thread sees.
        ``abrupt``: the last move is its visible operation alone.
        """
        self._begin(self.widths.unpack(path.start))
        first = len(path.moves) - path.loop
        for number, move in enumerate(path.moves):
            if path.loop and number == first:
                self.trail.loop = len(self.trail.rows)
            last = len(self.trail.rows)
            self._move(move)
            if to_the_end and number + 1 == len(path.moves) and self.model.threads[move.thread].role is Role.OWN:
                self.trail.rows[last:] = [replace(row, shown=True) for row in self.trail.rows[last:]]
            if abrupt and number + 1 == len(path.moves):
                del self.trail.rows[last + 1 :]
        if stuck:
            self.trail.blocked = self._blocked(self.widths.unpack(path.end))
        elif self.trail.loop is None and not to_the_end:
            while self.trail.rows and not self.trail.rows[-1].shown:
                self.trail.rows.pop()  # what the last thread did after the property had fallen
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
        self._note(thread, Taken(trap, outcome.result, outcome.states, here.stops[stop].node), shown=True)
        goal = self.model.stop(thread, after[thread])
        for tail in here.after(stop, outcome.result, involved, outcome.states):
            if tail.stop == goal:
                for step in tail.steps:
                    trap = step.trap
                    shown = trap is not None and (trap.method in self.told or here.observer.together(trap))
                    self._note(thread, step, shown=shown)
                return
        assert move.source == move.target, "a move without a trace"  # where a count falls below zero a run ends

    def _note(self, thread: int, step: Taken, *, shown: bool) -> None:
        trap = step.trap
        if trap is None:
            self.trail.rows.append(
                Row(thread, f"choose branch {step.result}", choice=step.result, result=str(step.result), shown=shown)
            )
            return
        actual = self.objects.apply(trap, tuple(self.states[index] for index in trap.involved))
        assert actual is not None
        changes = []
        for index, state in zip(trap.involved, actual.states, strict=True):
            if self.states[index] != state:
                old, new = (self.objects.states[index][number] for number in (self.states[index], state))
                changes += difference(self.objects.names[index], self.objects.real[index], old, new)
                self.states[index] = state
        text = row_text(trap, actual.result, self.objects.names)
        name = self.objects.names[trap.object]
        place = self.model.locals[thread].automaton.nodes[step.node].where if step.node >= 0 else None
        result = shown_value(actual.result)
        self.trail.rows.append(Row(thread, text, name, result, changes=tuple(changes), shown=shown, where=place))

    def _blocked(self, state: tuple[int, ...]) -> tuple[tuple[str, str], ...]:
        waiting = []
        for thread, here in enumerate(self.model.locals):
            trap = here.trap(self.model.stop(thread, state[thread]))
            if (
                self.model.threads[thread].role is Role.DRAIN
                or trap is None
                or self.objects.apply(trap, tuple(self.states[index] for index in trap.involved)) is not None
            ):
                continue
            waiting.append((self.trail.threads[thread], operation_name(trap, self.objects.names)))
        return tuple(waiting)


def row_text(trap: Trap, result: Any, names: list[str]) -> str:
    """One step: the operation and what it returned."""
    if trap.method is Userspace.run_returned:
        return f"KVM_RUN = {trap.args[0]}"
    if trap.method is StoreBuffer.drain:
        return "the oldest store reaches memory"
    text = operation_name(trap, names)
    if result is None:
        return text
    return f"{text} = {_pending(result) if trap.method is RequestBits.pending else shown_value(result)}"


def _pending(bits: int) -> str:
    return "|".join(name.removeprefix("KVM_REQ_") for name in request_names(bits)) or "0"


def operation_name(trap: Trap, names: list[str]) -> str:
    """``cpu0.requests.make(USERSPACE_KICK)``."""
    args = ", ".join(_argument(arg, names) for arg in trap.args)
    return f"{names[trap.object]}.{trap.name}({args})"


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
    if isinstance(value, Region):
        return f"slot {value.slot} at {value.guest_phys_addr:#x} +{value.memory_size:#x}"
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
        return [(name, _pending(old[0]), _pending(new[0]))]
    if isinstance(real, StoreBuffer):
        return [(name, _entries(old[0]), _entries(new[0]))]
    if isinstance(real, Memslots):
        return _slots_difference(name, old, new)
    fields = real.FIELDS or tuple(slot for slot in real.__slots__ if not slot.startswith("_"))
    if isinstance(real, RwSemaphore):
        fields = ("readers", "writer", "queue", "granted")
    changed = []
    for position, (before, after) in enumerate(zip(old, new, strict=True)):
        if before != after:
            field_name = fields[position] if position < len(fields) else str(position)
            changed.append((f"{name}.{field_name}", shown_value(before), shown_value(after)))
    return changed


def _entries(entries: tuple[Entry, ...]) -> str:
    return ", ".join(f"{field}={shown_value(value)}" for _, field, value in entries) or "empty"


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
