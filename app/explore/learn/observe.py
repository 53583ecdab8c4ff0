"""What an observer notes as threads run: what transitions did, and where threads are.

Properties are questions about these: ``search/properties.py`` says which. Functions are named by reference, looked up
when a world is made: one that is renamed does not pass the type checker, one that is replaced (a mutation, a test) is
watched in its new form.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from enum import IntFlag
from types import CodeType, CoroutineType
from typing import Any

from kickstand.core.vcpu import Vcpu
from kickstand.core.vm import Vm
from kickstand.explore.world.scenarios.operations import ReadSlots
from kickstand.explore.world.threads import ExploredGuest


class Did(IntFlag):
    """What a transition did."""

    MISSING_SLOT = 1 << 0
    SPURIOUS_MMIO = 1 << 1
    LOST_EXIT = 1 << 2
    DIRTY_LOST = 1 << 3
    ENTERED = 1 << 4  # the vCPU was in guest mode on the way
    ACCESS = 1 << 5  # guest memory was read or written: wrong inside a window
    CONSUMED = 1 << 6  # another ioctl read the slots: wrong inside a window
    EINTR = 1 << 7  # KVM_RUN answered EINTR
    AT_HOME = 1 << 8  # the vCPU was in guest mode or halted on the way
    MISCOMPLETED = 1 << 9  # an access was completed twice, or not before the guest went on
    UNBALANCED = 1 << 10  # something is held too long, twice, or given back too often
    RETURNED = 1 << 11  # KVM_RUN returned
    UNLOCKED = 1 << 12  # a VMM's ioctl on slots returned, or a vCPU's SRCU read section ended
    FILLED = 1 << 13  # a device exit was ready for userspace
    ASKED = 1 << 14  # userspace was asked to complete an access
    FAILED = 1 << 16  # the thread ended with an exception
    DIRTIED = 1 << 15  # a guest stored to a page of a logged slot
    DYING = 1 << 17  # the clean-up of a thread that was killed


VIOLATIONS = (
    Did.MISSING_SLOT
    | Did.SPURIOUS_MMIO
    | Did.LOST_EXIT
    | Did.DIRTY_LOST
    | Did.MISCOMPLETED
    | Did.UNBALANCED
    | Did.FAILED
)


class At(IntFlag):
    """Where a thread is."""

    IN_GUEST = 1
    HALTED = 2
    INSIDE_RUN = 4  # in KVM_RUN, userspace's wrapper included
    INSIDE_IOCTL = 8
    ENDED = 16
    IN_KERNEL = 32  # in KVM_RUN, past the variant's gate
    CHANGING = 64  # in KVM_SET_USER_MEMORY_REGION, what the variant does around it included


HOME = At.IN_GUEST | At.HALTED


class Places:
    """Tells where a thread is by the functions that it is in."""

    def __init__(self) -> None:
        self.within: dict[CodeType, At] = {
            _code(ExploredGuest.enter): At.IN_GUEST,
            _code(Vcpu.kvm_vcpu_halt): At.HALTED,
            _code(Vcpu.run_from_userspace): At.INSIDE_RUN,
            _code(Vcpu.kvm_arch_vcpu_ioctl_run): At.IN_KERNEL,
            _code(Vm.with_slots_lock): At.INSIDE_IOCTL,
            _code(Vm.set_user_memory_region): At.CHANGING,
            _code(ReadSlots.perform): At.INSIDE_IOCTL,
        }
        self.out_of_guest = _code(ExploredGuest.fault_resolved)

    def of(self, coroutine: Coroutine[Any, Any, Any] | None) -> At:
        """Say where a thread is from its await chain; None has ended."""
        if coroutine is None or inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED:
            return At.ENDED
        place = At(0)
        link: Any = coroutine
        while type(link) is CoroutineType and link.cr_frame is not None:
            place |= self.within.get(link.cr_code, At(0))
            if link.cr_code is self.out_of_guest:
                place &= ~At.IN_GUEST
            link = link.cr_await
        return place


def _code(function: Callable[..., Any]) -> CodeType:
    code: CodeType = function.__code__
    return code
