"""Partial order reduction: in many states it is enough to let one thread move.

A thread is *free* in a state if its next step is independent of everything that any other thread may do from
where it is, now or later: nobody can hinder, help or notice it, so every run may as well begin with that step.
The runs left out are those that differ from one that is kept in the order of independent steps; weak fairness
and each thread's own story are the same in both. Three things see to that:

* what a thread may do later is read from the graph of its stops, as the search has learnt it. If the search
  learns more, the conclusions are drawn again; if they turn out different, the search starts over;
* properties that relate threads (an access *in a window*, nobody *inside* while a KICK waits) count as shared
  objects that the steps in question read and the VMM's steps write;
* on each loop of a thread's stops there is one from which it is never free, so nobody is put off for ever.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntFlag
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kickstand.core.arch.cpu.vcpu_arch import VcpuArch
from kickstand.core.atomics import Task
from kickstand.core.run.run_page import KvmRun
from kickstand.explore.learn.local import LocalThread
from kickstand.explore.learn.model import Model
from kickstand.explore.learn.objects import Trap
from kickstand.explore.learn.observe import At, Did
from kickstand.explore.search.independence import Independence
from kickstand.explore.world.ghosts import WatchedMemslots
from kickstand.explore.world.parts import Role
from kickstand.explore.world.threads import Transaction

INSIDE = At.INSIDE_RUN | At.INSIDE_IOCTL | At.IN_KERNEL
LOOKS_AT_WINDOW = Did.ACCESS | Did.CONSUMED | Did.EINTR | Did.ENTERED


class Bearing(IntFlag):
    """What a step has to do with properties that relate threads."""

    LOOKS = 1  # counts only inside a window
    WINDOW = 2  # opens or closes one
    INSIDE = 4  # enters or leaves KVM_RUN, or another ioctl
    KICK = 8  # begins or ends a KICK or a transaction, or is a reason for EINTR
    READS = 16  # begins or ends an SRCU read section
    SLOTS = 32  # publishes slots, or ends an ioctl that did


AGAINST = {
    Bearing.LOOKS: Bearing.WINDOW,
    Bearing.WINDOW: Bearing.LOOKS | Bearing.WINDOW,
    Bearing.INSIDE: Bearing.KICK,
    Bearing.KICK: Bearing.INSIDE | Bearing.KICK,
    Bearing.READS: Bearing.SLOTS,
    Bearing.SLOTS: Bearing.READS,
}


@dataclass(slots=True)
class Stops:
    """One thread's stops: what it does at each, and what it may do from there on."""

    traps: list[Trap | None]
    notes: list[int]
    targets: list[set[int]]
    inside: list[bool]
    loops: set[int] = field(default_factory=set)  # one of each loop
    names: list[Trap] = field(default_factory=list)  # the different traps, by number
    later: list[int] = field(default_factory=list)  # a bit for each trap, then the notes

    def look_ahead(self) -> None:
        """Work ``later`` out backwards along the edges."""
        number: dict[Trap, int] = {}
        own = []
        for trap in self.traps:
            if trap is not None and trap not in number:
                number[trap] = len(self.names)
                self.names.append(trap)
        for trap, note in zip(self.traps, self.notes, strict=True):
            own.append((0 if trap is None else 1 << number[trap]) | note << len(self.names))
        self.later = own
        changed = True
        while changed:
            changed = False
            for stop in reversed(range(len(own))):
                later = own[stop]
                for target in self.targets[stop]:
                    later |= self.later[target]
                if later != self.later[stop]:
                    self.later[stop] = later
                    changed = True


def _loop_breakers(targets: list[set[int]], order: list[int]) -> set[int]:
    """A set of stops without which there is no loop: as far as possible those late in ``order``."""
    kept: set[int] = set()
    for stop in order:
        if _leads_back(targets, kept, stop):
            continue
        kept.add(stop)
    return set(order) - kept


def _leads_back(targets: list[set[int]], kept: set[int], stop: int) -> bool:
    """A way from ``stop`` through ``kept`` ends at ``stop``."""
    seen: set[int] = set()
    work = [stop]
    while work:
        for target in targets[work.pop()]:
            if target == stop:
                return True
            if target in kept and target not in seen:
                seen.add(target)
                work.append(target)
    return False


def _of_operations() -> dict[Any, Bearing]:
    return {
        Transaction.kick_begins: Bearing.KICK,
        Transaction.kick_returned: Bearing.KICK | Bearing.WINDOW,
        Transaction.resume_begins: Bearing.WINDOW,
        Transaction.resume_returned: Bearing.KICK,
        Task.send_signal: Bearing.KICK,
        KvmRun.set_immediate_exit: Bearing.KICK,
        WatchedMemslots.publish: Bearing.SLOTS,
        VcpuArch.srcu_read_lock: Bearing.READS,
        VcpuArch.srcu_read_unlock: Bearing.READS,
    }


def _stops(here: LocalThread, *, vcpu: bool) -> Stops:
    bearings = _of_operations()
    targets = [here.targets.get(stop, set[int]()) for stop in range(len(here.stops))]
    notes = []
    traps = [here.trap(stop) for stop in range(len(here.stops))]
    for stop, trap in enumerate(traps):
        noted = here.noted.get(stop, 0)
        note = Bearing.LOOKS if noted & LOOKS_AT_WINDOW else Bearing(0)
        note |= Bearing.INSIDE if noted & Did.EINTR else Bearing(0)
        note |= Bearing.SLOTS if noted & Did.UNLOCKED and not vcpu else Bearing(0)
        inside = here.label(stop) & INSIDE
        if any(here.label(target) & INSIDE != inside for target in targets[stop]):
            note |= Bearing.INSIDE
        if trap is not None:
            note |= bearings.get(trap.method, Bearing(0))
        notes.append(int(note))
    found = Stops(traps, notes, targets, [bool(here.label(stop) & INSIDE) for stop in range(len(traps))])
    found.look_ahead()
    return found


def _against(note: int) -> int:
    against = Bearing(0)
    for one, others in AGAINST.items():
        if note & one:
            against |= others
    return int(against)


class Reduction:
    """Who is free where, as tables over the numbers of component states."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.independence = Independence(model.knowledge)
        self.stops = [
            _stops(here, vcpu=thread.role is Role.VCPU)
            for here, thread in zip(model.locals, model.threads, strict=True)
        ]
        self.threads = range(len(model.threads))
        self.version = version(model)
        self._classes()

    def _classes(self) -> None:
        """Stops with the same future are one class for others, stops that conflict alike one for themselves."""
        self.future: list[NDArray[np.int64]] = []
        futures: list[dict[int, int]] = []
        for stops in self.stops:
            numbers: dict[int, int] = {}
            self.future.append(np.array([numbers.setdefault(later, len(numbers)) for later in stops.later], np.int64))
            futures.append(numbers)
        self.own: list[list[NDArray[np.int64]]] = []
        self.tables: list[list[NDArray[np.bool_]]] = []
        for thread, stops in enumerate(self.stops):
            own, tables = [], []
            bound = [0] * len(stops.traps)
            for other in self.threads:
                masks = self._conflicts(thread, other)
                classes: dict[int, int] = {}
                bound = [sum_ + mask.bit_count() for sum_, mask in zip(bound, masks, strict=True)]
                own.append(np.array([classes.setdefault(mask, len(classes)) for mask in masks], np.int64))
                tables.append(
                    np.array([[not mask & later for later in futures[other]] for mask in classes], dtype=np.bool_)
                )
            stops.loops = _loop_breakers(stops.targets, sorted(range(len(bound)), key=lambda stop: (bound[stop], stop)))
            self.own.append(own)
            self.tables.append(tables)
        self.eligible = [
            np.array([trap is not None and stop not in stops.loops for stop, trap in enumerate(stops.traps)], np.bool_)
            for stops in self.stops
        ]
        self._states: list[NDArray[np.int64]] = [np.empty(0, np.int64) for _ in self.threads]

    def _conflicts(self, thread: int, other: int) -> list[int]:
        """For each stop of ``thread`` a mask of what of ``other`` it conflicts with, in the bits of ``later``."""
        here, there = self.stops[thread], self.stops[other]
        if thread == other:
            return [0] * len(here.traps)
        same_vm = self.model.threads[thread].vm == self.model.threads[other].vm
        known: dict[tuple[Trap | None, bool], int] = {}
        masks = []
        for trap, note, inside in zip(here.traps, here.notes, here.inside, strict=True):
            # Whoever helps a KICK on that waits for nobody of its own VM would hide that it waits.
            helps = self.model.threads[other].role is not Role.VMM or (same_vm and inside)
            if (trap, helps) not in known:
                known[trap, helps] = sum(
                    1 << number
                    for number, name in enumerate(there.names)
                    if trap is not None and self.independence.conflict(trap, name, helps=helps)
                )
            masks.append(known[trap, helps] | (_against(note) << len(there.names) if same_vm else 0))
        return masks

    def holds_in(self, later: Reduction) -> bool:
        """Whatever is concluded here follows from the knowledge of ``later`` too."""
        for thread in self.threads:
            old, new = self.stops[thread], later.stops[thread]
            known = len(old.traps)
            kept = [stop for stop in range(known) if stop not in old.loops]
            if _loop_breakers(new.targets, kept):
                return False
            for other in self.threads:
                before = self._free(thread, other, known, len(self.stops[other].traps))
                if (before & ~later._free(thread, other, known, len(self.stops[other].traps))).any():
                    return False
        return True

    def knows_less(self, later: Reduction) -> bool:
        """There are stops at which nobody is free only because they are not known here."""
        return any(len(old.traps) < len(new.traps) for old, new in zip(self.stops, later.stops, strict=True))

    def _free(self, thread: int, other: int, stops: int, others: int) -> NDArray[np.bool_]:
        """Whether ``thread`` is free of ``other``, for their first stops."""
        rows = self.tables[thread][other][self.own[thread][other][:stops]]
        return rows[:, self.future[other][:others]]

    def stop_of(self, thread: int, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The stop in each component state; -1 for a stop that is not known here."""
        known = self._states[thread]
        states = self.model.states[thread]
        if len(known) < len(states):
            fresh = [state[0] if state[0] < len(self.stops[thread].traps) else -1 for state in states[len(known) :]]
            known = self._states[thread] = np.concatenate([known, np.array(fresh, np.int64)])
        return known[numbers]

    def free(self, stops: list[NDArray[np.int64]], thread: int, among: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those positions of ``among`` where ``thread`` is free; ``stops`` are each thread's, by position."""
        here = stops[thread][among]
        among = among[self.eligible[thread][here] & (here >= 0)]
        for other in self.threads:
            if other == thread or not len(among):
                continue
            there = stops[other][among]
            good = self.tables[thread][other][self.own[thread][other][stops[thread][among]], self.future[other][there]]
            among = among[good & (there >= 0)]
        return among


class Outdated(Exception):  # no error: the search has learnt something
    """The reduction does not follow from what is known now; ``reduction`` does."""

    def __init__(self, reduction: Reduction) -> None:
        super().__init__()
        self.reduction = reduction


def version(model: Model) -> tuple[int, ...]:
    """Grows with everything that a reduction draws its conclusions from."""
    return (
        sum(map(len, model.knowledge.known)),
        sum(len(here.stops) for here in model.locals),
        sum(here.facts for here in model.locals),
    )
