"""What the core reports as it runs: KVM's tracepoints, and events of our own in their style.

Reporting is no operation: a tracer must not change what the core does, and the explorer uses none.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Protocol


class Tracepoint(StrEnum):
    """Names of events: tracepoints of the kernel (system ``kvm``), ours in their style, and of floors above."""

    KVM_ENTRY = "kvm_entry"
    KVM_EXIT = "kvm_exit"
    KVM_USERSPACE_EXIT = "kvm_userspace_exit"
    KVM_VCPU_WAKEUP = "kvm_vcpu_wakeup"
    KVM_MMIO = "kvm_mmio"
    KVM_PIO = "kvm_pio"
    KVM_INJ_VIRQ = "kvm_inj_virq"
    KVM_SET_IRQ = "kvm_set_irq"
    KVM_MSI_SET_IRQ = "kvm_msi_set_irq"

    KVM_MAKE_REQUEST = "kvm_make_request"
    KVM_KICK = "kvm_kick"
    KVM_MODE = "kvm_mode"
    KVM_MEMSLOT = "kvm_memslot"
    KVM_KICK_ALL = "kvm_kick_all"
    KVM_RESUME_ALL = "kvm_resume_all"
    MEM_TRANSACTION = "mem_transaction"
    VCPU_STATE = "vcpu_state"

    KVM_CREATE_VM = "kvm_create_vm"
    KVM_RESTORE_VM = "kvm_restore_vm"
    KVM_DESTROY_VM = "kvm_destroy_vm"
    KVM_CREATE_VCPU = "kvm_create_vcpu"
    VMM_REST = "vmm_rest"
    EXPLORATION = "exploration"
    EXPLORATION_CELL = "exploration_cell"


class VcpuState(StrEnum):
    """What a watcher sees a vCPU do."""

    USER = "user"  # its thread is in userspace
    WAITING = "waiting"  # in KVM_RUN, waiting for the read side (down_read)
    KERNEL = "kernel"
    GUEST = "guest"
    EXITING = "exiting"  # kicked out of guest mode, on the way to userspace
    HALTED = "halted"  # HLT with an in-kernel irqchip: asleep inside KVM_RUN
    BLOCKED = "blocked"  # asleep inside KVM_RUN for another reason: waiting for INIT or SIPI, a page, a hold


# The run loop's members by plain names: CPython 3.11 looks one up through its class as slowly as it runs a coroutine.
KVM_ENTRY, KVM_EXIT, KVM_USERSPACE_EXIT = Tracepoint.KVM_ENTRY, Tracepoint.KVM_EXIT, Tracepoint.KVM_USERSPACE_EXIT
KVM_MAKE_REQUEST, KVM_MODE = Tracepoint.KVM_MAKE_REQUEST, Tracepoint.KVM_MODE
KVM_KICK, VCPU_STATE, KVM_MMIO, KVM_PIO = (
    Tracepoint.KVM_KICK,
    Tracepoint.VCPU_STATE,
    Tracepoint.KVM_MMIO,
    Tracepoint.KVM_PIO,
)
USER, WAITING, KERNEL, GUEST = VcpuState.USER, VcpuState.WAITING, VcpuState.KERNEL, VcpuState.GUEST
EXITING, HALTED, BLOCKED = VcpuState.EXITING, VcpuState.HALTED, VcpuState.BLOCKED

Fields = Mapping[str, object]
NO_FIELDS: Fields = {}

STATE_CHANGES: Mapping[tuple[VcpuState, VcpuState], Fields] = {
    (old, new): {"state": new, "old": old} for old in VcpuState for new in VcpuState
}
"""The fields of ``VCPU_STATE`` by (old, new): most events are these, and they say one of a few things."""


class Tracer(Protocol):
    """Receives events; ``vcpu`` is the id, or None for what concerns the whole VM. ``fields`` never change."""

    def __call__(self, event: Tracepoint, vcpu: int | None, fields: Fields, /) -> object: ...


def no_trace(event: Tracepoint, vcpu: int | None, fields: Fields, /) -> None:
    """Report nothing."""
