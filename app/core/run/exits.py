"""Why a guest stopped. Exits are plain data: engines make them, the core acts on them, userspace reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kickstand.core.uapi import ExitReason, InternalError


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
class EoiExit:
    """KVM_EXIT_IOAPIC_EOI: with a split irqchip, the guest has ended an interrupt that userspace's IOAPIC sent."""

    vector: int
    reason: ClassVar[ExitReason] = ExitReason.IOAPIC_EOI


@dataclass(frozen=True, slots=True)
class TprAccessExit:
    """KVM_EXIT_TPR_ACCESS: the instruction at ``rip`` has accessed the task priority in the APIC's page."""

    rip: int
    is_write: bool
    reason: ClassVar[ExitReason] = ExitReason.TPR_ACCESS


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


@dataclass(frozen=True, slots=True)
class MsrExit:
    """RDMSR or WRMSR of a register that is not the CPU's own. The answer: a byte (1: #GP), then eight of the value.

    ``msr_reason``: why userspace is asked (``msr_filter``); 0: the kernel is. ``ns_ahead``: for a deadline of the time
    stamp counter, how far it is in the future.
    """

    index: int
    is_write: bool
    value: int = 0
    ns_ahead: int = 0
    msr_reason: int = 0

    @property
    def reason(self) -> ExitReason:
        """KVM_EXIT_X86_RDMSR or KVM_EXIT_X86_WRMSR."""
        return ExitReason.X86_WRMSR if self.is_write else ExitReason.X86_RDMSR

    @property
    def reply_length(self) -> int:
        """Bytes of the answer."""
        return 9


@dataclass(frozen=True, slots=True)
class HypercallExit:
    """KVM_EXIT_HYPERCALL: userspace answers with what the guest gets in RAX."""

    nr: int
    args: tuple[int, ...]
    longmode: bool
    reason: ClassVar[ExitReason] = ExitReason.HYPERCALL

    @property
    def reply_length(self) -> int:
        """Bytes of the answer."""
        return 8


@dataclass(frozen=True, slots=True)
class DebugExit:
    """KVM_EXIT_DEBUG: a breakpoint, or one instruction was executed. ``pc`` is linear."""

    exception: int
    pc: int
    dr6: int
    dr7: int
    reason: ClassVar[ExitReason] = ExitReason.DEBUG


@dataclass(frozen=True, slots=True)
class TprExit:
    """KVM_EXIT_SET_TPR: the guest has lowered CR8; userspace's business where the APIC is. RIP is past it."""

    reason: ClassVar[ExitReason] = ExitReason.SET_TPR


@dataclass(frozen=True, slots=True)
class RingFullExit:
    """KVM_EXIT_DIRTY_RING_FULL: userspace has to harvest and reset the vCPU's ring first."""

    reason: ClassVar[ExitReason] = ExitReason.DIRTY_RING_FULL


Access = IoExit | MmioExit | MsrExit | HypercallExit
Asked = Access  # what waits for an answer before the guest can go on
UserExit = (
    Access
    | HltExit
    | ShutdownExit
    | InternalErrorExit
    | WindowExit
    | EoiExit
    | TprAccessExit
    | DebugExit
    | TprExit
    | RingFullExit
)
Exit = UserExit | FaultExit | RetryExit | InterruptedExit
