"""What properties ask of a global state, read from its components: stages, labels, windows."""

from __future__ import annotations

from enum import IntFlag

import numpy as np
from numpy.typing import NDArray

from app.explore.observe import AT_HOME, Label
from app.explore.tables import Tables, Words
from app.explore.threads import Stage

Mask = NDArray[np.bool_]


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


class Marks:
    """Facts about states, a lookup a thread."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.model = tables.model
        self.known: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64) for _ in tables.threads]
        threads = self.model.threads
        self.vmms = [number for number, thread in enumerate(threads) if thread.kind == "vmm"]
        self.vcpus = [number for number, thread in enumerate(threads) if thread.kind == "vcpu"]
        self.ioctls = [number for number, thread in enumerate(threads) if thread.kind == "ioctl"]

    def same_vm(self, thread: int, among: list[int]) -> list[int]:
        """Those of ``among`` that belong to the VM of ``thread``."""
        vm = self.model.threads[thread].vm
        return [other for other in among if self.model.threads[other].vm == vm]

    def of(self, words: Words, thread: int) -> NDArray[np.int64]:
        """The marks of one thread in each state."""
        known = self.known[thread]
        count = len(self.model.states[thread])
        if len(known) < count:
            fresh = [self._mark(thread, number) for number in range(len(known), count)]
            known = self.known[thread] = np.concatenate([known, np.array(fresh, dtype=np.int64)])
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
        rest = self.all(words, self.vmms, Mark.ENDED)
        for thread in self.vcpus:
            rest &= (self.of(words, thread) & (Mark.HALTED | Mark.IN_GUEST | Mark.ENDED)) != 0
        return rest | self.any(words, self.vcpus, Mark.IN_GUEST)  # a spinning guest moves

    def waits_for_bystander(self, words: Words, vmm: int) -> Mask:
        """``vmm``, which cannot move, waits in KICK although nobody of its own VM uses its slots."""
        kicking = (self.of(words, vmm) & Mark.KICKING) != 0
        own = self.same_vm(vmm, self.vcpus + self.ioctls)
        others = [other for other in self.same_vm(vmm, self.vmms) if other != vmm]
        waits: Mask = kicking & ~self.any(words, own, Mark.INSIDE) & ~self.any(words, others, Mark.TRANSACTION)
        return waits

    def _mark(self, thread: int, number: int) -> int:
        label = self.model.label(thread, number)
        mark = Mark(0)
        if label & Label.ENDED:
            mark |= Mark.ENDED
        if label & AT_HOME:
            mark |= Mark.AT_HOME
        if label & Label.HALTED:
            mark |= Mark.HALTED
        if label & Label.IN_GUEST:
            mark |= Mark.IN_GUEST
        if label & (Label.INSIDE_RUN | Label.INSIDE_IOCTL):
            mark |= Mark.INSIDE
        stage = self.model.stage(thread, number)
        if stage is Stage.KICKING:
            mark |= Mark.KICKING
        if stage is Stage.WINDOW:
            mark |= Mark.WINDOW
        if stage not in (None, Stage.OUTSIDE):
            mark |= Mark.TRANSACTION
        return int(mark)
