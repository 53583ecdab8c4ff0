"""What a replay makes of the operations that were performed: which properties fall, seen afresh.

The search decides over graphs; here is one run, so that what the search remembers of sets of states is a few plain
facts. Where threads are is asked when they have come to rest.
"""

from __future__ import annotations

import errno
from collections.abc import Coroutine, Sequence
from typing import Any

from kickstand.core.shared.requests import Request, VcpuMode
from kickstand.explore.learn.objects import Trap
from kickstand.explore.learn.observe import At, Did, Places
from kickstand.explore.learn.observer import NOTHING, SLOTS, Observer
from kickstand.explore.search.properties import PROPERTIES, Name
from kickstand.explore.world.cell import infers_windows
from kickstand.explore.world.ghosts import WatchedMemslots
from kickstand.explore.world.parts import Role, World
from kickstand.explore.world.threads import Stage, Transaction, Userspace


class Seen:
    """What the judge knows of one thread."""

    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        self.memory = NOTHING
        self.flags = 0
        self.at = At(0)
        self.eintr_in_row = 0
        self.caused = False  # there was a reason for EINTR since the call began
        self.waited: set[int] = set()  # of a VMM: vCPUs that are in the KVM_RUN that they were in when KICK began
        self.readers: set[int] = set()  # of a VMM: vCPUs that still read the slots that it has replaced


class Judge:
    """Watches one run of a world."""

    def __init__(self, world: World, coroutines: Sequence[Coroutine[Any, Any, Any]]) -> None:
        self.world = world
        self.coroutines = coroutines
        self.places = Places()
        self.fallen: set[str] = set()
        self.came: set[str] = set()  # what was to become true, and has
        self._statements()
        self.seen = [Seen(Observer(world.kept[thread.vm], ioctl=thread.role is Role.IOCTL)) for thread in world.threads]
        numbers = range(len(world.threads))
        self.vcpus = [number for number in numbers if world.threads[number].role is Role.VCPU]
        self.vmms = [number for number in numbers if world.threads[number].role is Role.VMM]

    # -- what happens ------------------------------------------------------------------------------------

    def settled(self, thread: int | None) -> None:
        """A thread (None: each) has come to its next operation, or has ended."""
        for number in (thread,) if thread is not None else range(len(self.seen)):
            seen, before = self.seen[number], self.seen[number].at
            seen.at = self.places.of(self.coroutines[number])
            if seen.at & At.INSIDE_RUN and not before & At.INSIDE_RUN:
                seen.caused = False
            if seen.at & At.ENDED and seen.memory.held:
                self.fallen.add(Name.BALANCE)
        for vmm in self.vmms:
            self.seen[vmm].waited = {vcpu for vcpu in self.seen[vmm].waited if self.seen[vcpu].at & At.IN_KERNEL}
        for vcpu in self.vcpus:
            if self.seen[vcpu].at & At.INSIDE_RUN:
                self.seen[vcpu].caused |= self._reason(vcpu)

    def performed(self, thread: int, trap: Trap, result: Any, states: tuple[Any, Any]) -> None:
        """A thread has performed an operation; ``states`` of its object before and after."""
        seen = self.seen[thread]
        seen.memory, did = seen.observer.see(trap, result, seen.memory, states)
        seen.flags |= did
        self.fallen |= {item.name for item in PROPERTIES.values() if did & item.flag}
        window = self.window(thread)
        if window and did & Did.ACCESS:
            self.fallen.add(Name.CLOSED_WINDOW)
        if window and did & Did.CONSUMED:
            self.fallen.add(Name.NO_BYSTANDER)
        if not window or trap.method is VcpuMode.interrupted:  # or the guest was entered
            seen.eintr_in_row = 0
        if trap.method is Userspace.run_returned:
            self._returned(thread, window=window, eintr=trap.args[0].errno == errno.EINTR)
        self._stretches(thread, trap, did)
        self._statements()

    def _statements(self) -> None:
        """What the user's own statements say now."""
        self.fallen |= {name for name, statement in self.world.never.items() if statement()}
        self.came |= {name for name, statement in self.world.eventually.items() if statement()}

    def _returned(self, thread: int, *, window: bool, eintr: bool) -> None:
        seen = self.seen[thread]
        seen.eintr_in_row = seen.eintr_in_row + 1 if window and eintr else 0
        if seen.eintr_in_row > 2:
            self.fallen.add(Name.BOUNDED_BUSY)
        if eintr and not seen.caused:
            self.fallen.add(Name.EINTR_HAS_CAUSE)
        seen.at = At(0)
        for vmm in self.vmms:
            self.seen[vmm].waited.discard(thread)

    def _stretches(self, thread: int, trap: Trap, did: int) -> None:
        seen, mine = self.seen[thread], self._vcpus_of(thread)
        if trap.method is Transaction.kick_begins:
            seen.waited = {vcpu for vcpu in mine if self.seen[vcpu].at & At.IN_KERNEL}
        if trap.method is Transaction.kick_returned and seen.waited:
            self.fallen.add(Name.KICK_DRAINS)
        if did & Did.DYING:
            seen.readers = set()
        elif trap.method is WatchedMemslots.publish:
            seen.readers |= {vcpu for vcpu in mine if any(how == SLOTS for _, how in self.seen[vcpu].memory.held)}
        if did & Did.UNLOCKED:
            if seen.readers:
                self.fallen.add(Name.BALANCE)
            seen.readers = set()
            for other in self.seen:
                other.readers.discard(thread)

    # -- questions ---------------------------------------------------------------------------------------

    def stage(self, vmm: int) -> Stage:
        """The stage of a VMM's transaction."""
        stage: Stage = self.world.threads[vmm].transaction.stage
        return stage

    def window(self, thread: int) -> bool:
        """A window of the VM of ``thread`` is open."""
        return any(self.stage(vmm) is Stage.WINDOW for vmm in self._vmms_of(thread))

    def signalled(self, vcpu: int) -> bool:
        """A signal is pending for a vCPU's thread."""
        owner = self.world.threads[vcpu].vcpu
        return owner is not None and owner.task.signal

    def _reason(self, vcpu: int) -> bool:
        """Somebody kicks, or a signal is pending, or immediate_exit is set."""
        owner = self.world.threads[vcpu].vcpu
        assert owner is not None
        kicks = any(self.stage(vmm) is not Stage.OUTSIDE for vmm in self._vmms_of(vcpu))
        if infers_windows(type(owner.vm.variant)):
            kicks |= any(self.seen[vmm].at & At.CHANGING for vmm in self._vmms_of(vcpu))
        kicks |= bool(owner.requests.bits & Request.USERSPACE_KICK.bit)
        return kicks or owner.task.signal or owner.run_page.immediate_exit

    def _vcpus_of(self, thread: int) -> list[int]:
        return [vcpu for vcpu in self.vcpus if self.world.threads[vcpu].vm == self.world.threads[thread].vm]

    def _vmms_of(self, thread: int) -> list[int]:
        return [vmm for vmm in self.vmms if self.world.threads[vmm].vm == self.world.threads[thread].vm]
