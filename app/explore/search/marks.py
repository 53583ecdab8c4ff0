"""What properties ask of a global state, read from its components: stages, labels, windows."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntFlag
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from kickstand.core.arch.cpu.vcpu_arch import VcpuArch
from kickstand.core.atomics import Task
from kickstand.core.run.run_page import KvmRun
from kickstand.core.shared.requests import Request
from kickstand.explore.learn.observe import HOME, At, Did
from kickstand.explore.learn.observer import SLOTS
from kickstand.explore.search.statements import Statements
from kickstand.explore.search.tables import Mask, Tables, Words
from kickstand.explore.world.parts import Role
from kickstand.explore.world.threads import Stage

EVENTS = tuple(map(VcpuArch.FIELDS.index, ("irr", "nmi", "init")))
SIGNAL, IMMEDIATE = Task.FIELDS.index("signal"), KvmRun.FIELDS.index("immediate_exit")


class Mark(IntFlag):
    """Facts about one thread's component."""

    ENDED = 1
    AT_HOME = 2
    HALTED = 4
    IN_GUEST = 8
    INSIDE = 16  # in KVM_RUN, or in an ioctl that uses the slots
    KICKING = 32
    WINDOW = 64
    TRANSACTION = 128  # any stage but OUTSIDE
    IN_KERNEL = 256  # in KVM_RUN, past the variant's gate
    SIGNALLED = 512
    IMMEDIATE = 1024  # immediate_exit is set
    READING = 2048  # in an SRCU read section
    DUE = 4096  # an event waits that would end a sleep
    CHANGING = 8192  # in KVM_SET_USER_MEMORY_REGION
    KICKED = 16384  # KVM_REQ_USERSPACE_KICK is pending
    FAILED = 32768  # it has ended with an exception


BY_PLACE = (
    (At.ENDED, Mark.ENDED),
    (HOME, Mark.AT_HOME),
    (At.HALTED, Mark.HALTED),
    (At.IN_GUEST, Mark.IN_GUEST),
    (At.INSIDE_RUN | At.INSIDE_IOCTL, Mark.INSIDE),
    (At.IN_KERNEL, Mark.IN_KERNEL),
    (At.CHANGING, Mark.CHANGING),
)


class Marks:
    """Facts about states, a lookup a thread."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.model = tables.model
        self.known: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64) for _ in tables.threads]
        self.judged: dict[tuple[int, Any], Mask] = {}
        threads = self.model.threads
        self.vmms = [number for number, thread in enumerate(threads) if thread.role is Role.VMM]
        self.vcpus = [number for number, thread in enumerate(threads) if thread.role is Role.VCPU]
        self.own = [number for number, thread in enumerate(threads) if thread.role is Role.OWN]
        self.statements = Statements(tables)
        self.ioctls = [number for number, thread in enumerate(threads) if thread.role is Role.IOCTL]

    def same_vm(self, thread: int, among: list[int]) -> list[int]:
        """Those of ``among`` that belong to the VM of ``thread``."""
        vm = self.model.threads[thread].vm
        return [other for other in among if self.model.threads[other].vm == vm]

    def of(self, words: Words, thread: int) -> NDArray[np.int64]:
        """The marks of one thread in each state."""
        known = self.known[thread]
        count = len(self.model.states[thread])
        if len(known) < count:
            fresh = [self.mark(thread, number) for number in range(len(known), count)]
            known = self.known[thread] = np.concatenate([known, np.array(fresh, dtype=np.int64)])
        return known[self.tables.widths.field(words, thread)]

    def about_to(self, words: Words, thread: int, operation: Any) -> Mask:
        """The thread's next step is ``operation``."""
        here = self.model.locals[thread]

        def judge(number: int) -> bool:
            trap = here.trap(self.model.stop(thread, number))
            return trap is not None and trap.method is operation

        return self._judged(words, thread, operation, judge)

    def may(self, words: Words, thread: int, did: Did) -> Mask:
        """The thread's next step may do this, as far as the search has seen."""
        here = self.model.locals[thread]
        return self._judged(
            words, thread, did, lambda number: bool(here.noted.get(self.model.stop(thread, number), 0) & did)
        )

    def _judged(self, words: Words, thread: int, key: Any, judge: Callable[[int], bool]) -> Mask:
        count = len(self.model.states[thread])
        known = self.judged.get((thread, key))
        if known is None or len(known) < count:
            known = self.judged[thread, key] = np.array([judge(number) for number in range(count)], dtype=bool)
        return known[self.tables.widths.field(words, thread)]

    def window(self, words: Words, thread: int) -> Mask:
        """A window of the VM of ``thread`` is open."""
        return self.any(words, self.same_vm(thread, self.vmms), Mark.WINDOW)

    def any(self, words: Words, threads: list[int], mark: Mark) -> Mask:
        """One of ``threads`` has ``mark``."""
        found = np.zeros(len(words), dtype=bool)
        for thread in threads:
            found |= (self.of(words, thread) & mark) != 0
        return found

    def all(self, words: Words, threads: list[int], mark: Mark) -> Mask:
        """Each of ``threads`` has ``mark``."""
        found = np.ones(len(words), dtype=bool)
        for thread in threads:
            found &= (self.of(words, thread) & mark) != 0
        return found

    def at_rest(self, words: Words) -> Mask:
        """Nobody who cannot move here is stuck: finished VMMs, guests that halt outside any transaction."""
        if self.own:
            finite = [thread for thread in self.own if not self.model.threads[thread].rests]
            over: Mask = self.all(words, finite, Mark.ENDED) | self.said(words)
            return over
        rest = self.all(words, self.vmms, Mark.ENDED)
        for thread in self.vcpus:
            here = self.of(words, thread)
            asleep = ((here & (Mark.HALTED | Mark.DUE)) == Mark.HALTED) & ~self._due_in_common(words, thread)
            rest &= asleep | ((here & (Mark.IN_GUEST | Mark.ENDED)) != 0)
        return rest | self.any(words, self.vcpus, Mark.IN_GUEST)  # a spinning guest moves

    def said(self, words: Words) -> Mask:
        """The user says that waiting is no deadlock here."""
        rest = np.zeros(len(words), dtype=bool)
        for statement in self.statements.rest:
            rest |= self.statements.mask(statement, words)
        return rest

    def settled(self, words: Words, thread: int) -> Mask:
        """A thread that does not move here for ever is no matter: it has ended, is at home, or may rest."""
        settled = (self.of(words, thread) & (Mark.ENDED | Mark.AT_HOME)) != 0
        if self.model.threads[thread].rests:
            settled[:] = True
        over: Mask = settled | self.said(words)
        return over

    def _due_in_common(self, words: Words, thread: int) -> Mask:
        """An event waits for a vCPU whose events others raise: then they are no part of its own component."""
        vcpu = self.model.threads[thread].vcpu
        index: int = -1 if vcpu is None else cast("Any", vcpu.arch).index
        component = self.model.component_of.get(index)
        if component is None or component < len(self.model.threads):
            return np.zeros(len(words), dtype=bool)
        known, at = self.model.objects.states[index], self.model.place[index]
        numbers = self.model.states[component]
        due = np.array([any(bool(known[state[at]][field]) for field in EVENTS) for state in numbers], dtype=bool)
        return due[self.tables.widths.field(words, component)]

    def waits_for_bystander(self, words: Words, vmm: int) -> Mask:
        """``vmm``, which cannot move, waits in KICK although nobody of its own VM uses its slots."""
        kicking = (self.of(words, vmm) & Mark.KICKING) != 0
        own = self.same_vm(vmm, self.vcpus + self.ioctls)
        others = [other for other in self.same_vm(vmm, self.vmms) if other != vmm]
        waits: Mask = kicking & ~self.any(words, own, Mark.INSIDE) & ~self.any(words, others, Mark.TRANSACTION)
        return waits

    def mark(self, thread: int, number: int) -> int:
        """The marks of one state of a thread's component."""
        label = self.model.label(thread, number)
        mark = Mark(0)
        for places, fact in BY_PLACE:
            if label & places:
                mark |= fact
        mark |= Mark.FAILED * (self.model.error(thread, number) is not None)
        stage = self.model.stage(thread, number)
        if stage is Stage.KICKING:
            mark |= Mark.KICKING
        if stage is Stage.WINDOW:
            mark |= Mark.WINDOW
        if stage not in (None, Stage.OUTSIDE):
            mark |= Mark.TRANSACTION
        if any(how == SLOTS for _, how in self.model.memory(thread, number).held):
            mark |= Mark.READING
        vcpu = self.model.threads[thread].vcpu
        if vcpu is not None:
            over = bool(label & At.ENDED) and self.model.error(thread, number) is None
            mark |= Mark.AT_HOME * over  # somebody has killed it: it will not be missed
            mark |= Mark.SIGNALLED * self._is_set(thread, number, vcpu.task, SIGNAL)
            mark |= Mark.DUE * any(self._is_set(thread, number, vcpu.arch, field) for field in EVENTS)
            bits = self.model.object_state(thread, number, cast("Any", vcpu.requests).index)
            mark |= Mark.KICKED * (bits is not None and bool(bits[0] & Request.USERSPACE_KICK.bit))
            mark |= Mark.IMMEDIATE * self._is_set(thread, number, vcpu.run_page, IMMEDIATE)
        return int(mark)

    def _is_set(self, thread: int, number: int, shared: Any, field: int) -> bool:
        """A field of an object of the thread's own is true."""
        state = self.model.object_state(thread, number, shared.index)
        return state is not None and bool(state[field])
