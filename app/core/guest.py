"""Why a guest stopped, and what the kernel core asks of a guest engine.

An engine executes a vCPU's instructions. It knows guest-physical memory and nothing of KVM_RUN, requests
or the semaphore. The core calls ``enter``; the engine runs until something only the kernel or userspace
can do (an *exit*), or until an IPI reaches its CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from app.core.uapi import ExitReason, InternalError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from app.core.vcpu import Vcpu


@dataclass(frozen=True, slots=True)
class IoExit:
    """KVM_EXIT_IO. ``size`` bytes per element, ``count`` elements; ``data`` is empty for ``in``."""

    direction: str  # "in" or "out"
    size: int
    port: int
    count: int = 1
    data: bytes = b""
    reason: ClassVar[ExitReason] = ExitReason.IO

    @property
    def reply_length(self) -> int:
        """Bytes of device data this exit waits for."""
        return self.size * self.count if self.direction == "in" else 0


@dataclass(frozen=True, slots=True)
class MmioExit:
    """KVM_EXIT_MMIO: ``len`` is 1 to 8; ``data`` holds ``len`` bytes for a write and is empty for a read."""

    phys_addr: int
    len: int
    is_write: bool
    data: bytes = b""
    reason: ClassVar[ExitReason] = ExitReason.MMIO

    @property
    def reply_length(self) -> int:
        """Bytes of device data this exit waits for."""
        return 0 if self.is_write else self.len


@dataclass(frozen=True, slots=True)
class HltExit:
    """The guest executed HLT; RIP is past it. With an in-kernel irqchip the core sleeps instead of exiting."""

    reason: ClassVar[ExitReason] = ExitReason.HLT


@dataclass(frozen=True, slots=True)
class ShutdownExit:
    """Triple fault."""

    reason: ClassVar[ExitReason] = ExitReason.SHUTDOWN


@dataclass(frozen=True, slots=True)
class InternalErrorExit:
    """The instruction could not be emulated, for example because it was fetched from a hole."""

    suberror: InternalError = InternalError.EMULATION
    data: tuple[int, ...] = ()
    gpa: int | None = None  # where it was fetched from, for the explorer's properties; not in kvm_run
    reason: ClassVar[ExitReason] = ExitReason.INTERNAL_ERROR


@dataclass(frozen=True, slots=True)
class WindowExit:
    """KVM_EXIT_IRQ_WINDOW_OPEN: userspace asked to be told when an interrupt can be injected."""

    reason: ClassVar[ExitReason] = ExitReason.IRQ_WINDOW_OPEN


@dataclass(frozen=True, slots=True)
class FaultExit:
    """The slot exists but its host memory does not: KVM_RUN answers -1 EFAULT."""

    gpa: int


@dataclass(frozen=True, slots=True)
class RetryExit:
    """The access met a slot that an update has marked INVALID: enter again (x86 retries such faults)."""

    gpa: int


@dataclass(frozen=True, slots=True)
class InterruptedExit:
    """An IPI took the CPU out of guest mode between two instructions; nothing else happened."""


UserExit = IoExit | MmioExit | HltExit | ShutdownExit | InternalErrorExit | WindowExit
Exit = UserExit | FaultExit | RetryExit | InterruptedExit


class Guest(Protocol):
    """A guest engine: the CPU of one vCPU.

    The coroutines run as part of KVM_RUN and may await the core's operations, ``preempt`` and ``outside``;
    the plain methods are called between them, on the same thread.
    """

    async def enter(self, vcpu: Vcpu) -> Exit:
        """Execute until an exit; ``InterruptedExit`` as soon as an IPI is pending for the vCPU's CPU."""
        ...

    async def complete(self, vcpu: Vcpu, pending: IoExit | MmioExit, reply: bytes | None) -> Exit | None:
        """Finish the access behind ``pending`` with the device's answer, executing nothing beyond it.

        ``reply`` None means that userspace wrote nothing: the bytes that lie in the shared page count.
        Returns a further exit of the same instruction, or None when it is finished.
        """
        ...

    def kick(self) -> None:
        """An IPI is on its way: an engine on a thread of its own stops at the next instruction."""
        ...

    def interrupts_allowed(self) -> bool:
        """The guest would take an interrupt now."""
        ...

    def interrupt(self, vector: int) -> None:
        """Deliver this interrupt at the next entry."""
        ...

    def nmi(self) -> None:
        """Deliver an NMI at the next entry."""
        ...

    def start_at(self, vector: int) -> None:
        """A SIPI: start in real mode at ``vector << 12``."""
        ...

    def window_exit(self) -> WindowExit | None:
        """The exit for an open interrupt window, or None while it is closed."""
        ...

    def registers(self) -> dict[str, int]:
        """KVM_GET_REGS."""
        ...

    def set_registers(self, registers: Mapping[str, int]) -> None:
        """KVM_SET_REGS for the named registers."""
        ...

    def special_registers(self) -> dict[str, object]:
        """KVM_GET_SREGS."""
        ...

    def set_special_registers(self, changes: Mapping[str, object]) -> None:
        """KVM_SET_SREGS for the named registers; ``KvmError`` EINVAL for an invalid combination."""
        ...

    def close(self) -> None:
        """The vCPU is gone: give back threads and memory."""
        ...
