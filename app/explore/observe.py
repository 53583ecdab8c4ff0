"""What an observer notes as threads run: flags on transitions, labels on local states.

Properties are questions about these: ``properties.py`` says which.
"""

from __future__ import annotations

import errno
from collections.abc import Coroutine, Mapping
from enum import IntFlag
from types import CoroutineType
from typing import Any

from app.core.guest import IoExit, MmioExit
from app.core.uapi import PAGE_SHIFT
from app.explore.objects import Trap
from app.explore.threads import Return
from app.explore.world import Kept
from app.guests.script import ScriptGuest


class Flag(IntFlag):
    """What a transition did. The first group are violations by themselves."""

    MISSING_SLOT = 1
    SPURIOUS_MMIO = 2
    LOST_EXIT = 4
    DIRTY_LOST = 8
    ACCESS = 32  # guest memory was read or written: wrong inside a window
    CONSUMED = 64  # another ioctl read the slots: wrong inside a window
    EINTR = 128  # KVM_RUN answered EINTR
    ENTERED = 16  # the vCPU was in guest mode on the way
    AT_HOME = 256  # the vCPU was in guest mode or halted on the way


VIOLATIONS = Flag.MISSING_SLOT | Flag.SPURIOUS_MMIO | Flag.LOST_EXIT | Flag.DIRTY_LOST


class Label(IntFlag):
    """Where a thread is."""

    IN_GUEST = 1
    HALTED = 2
    INSIDE_RUN = 4  # in KVM_RUN, userspace's wrapper included
    INSIDE_IOCTL = 8
    ENDED = 16


AT_HOME = Label.IN_GUEST | Label.HALTED


def label_of(coroutine: Coroutine[Any, Any, Any] | None) -> Label:
    """Say where a thread is from its await chain; None has ended."""
    if coroutine is None:
        return Label.ENDED
    label = Label(0)
    link: Any = coroutine
    while type(link) is CoroutineType and link.cr_frame is not None:
        name = link.cr_code.co_name
        if name == "enter" and isinstance(link.cr_frame.f_locals.get("self"), ScriptGuest):
            label |= Label.IN_GUEST
        elif name == "fault_resolved":
            label &= ~Label.IN_GUEST
        elif name == "kvm_vcpu_block" and link.cr_frame.f_locals.get("halted"):
            label |= Label.HALTED
        elif name == "run_from_userspace":
            label |= Label.INSIDE_RUN
        elif name in ("op_read_slots", "with_slots_lock"):
            label |= Label.INSIDE_IOCTL
        link = link.cr_await
    return label


class Observer:
    """Watches one thread. Its memory is one bit: KVM_RUN has a device exit ready."""

    def __init__(self, kept: Kept, *, ioctl: bool) -> None:
        self.kept_reads, self.kept_writes = kept
        self.ioctl = ioctl

    def see(self, trap: Trap, result: Any, memory: int, states: tuple[Any, Any]) -> tuple[int, int]:
        """Return the new memory and the flags of one operation; ``states`` of its object before and after."""
        name = trap.method
        if name == "run_returned":
            return 0, self._returned(trap.args[0], memory)
        if name == "fill":
            return int(isinstance(trap.args[0], IoExit | MmioExit)), 0
        if name == "guest_access":
            missing = result is None and trap.args[0] >> PAGE_SHIFT in self.kept_reads
            return memory, Flag.ACCESS | (Flag.MISSING_SLOT if missing else 0)
        if name == "lookup" and self.ioctl:
            return memory, Flag.CONSUMED
        if name == "publish" and _dirty_lost(*states):
            return memory, Flag.DIRTY_LOST
        return memory, 0

    def _returned(self, what: Return, filled: int) -> int:
        flags = 0
        if what.errno == errno.EINTR:
            flags |= Flag.EINTR
            if filled:
                flags |= Flag.LOST_EXIT
        elif what.gpa is not None:
            kept = self.kept_writes if what.exit == "MMIO write" else self.kept_reads
            if what.gpa >> PAGE_SHIFT in kept:
                flags |= Flag.SPURIOUS_MMIO
        return flags


def _dirty_lost(before: Any, after: Any) -> bool:
    """A bitmap with bits set went away with its slot."""
    left: Mapping[int, frozenset[int]] = dict(after[1])
    return any(pages and slot not in left for slot, pages in before[1])
