"""What a KVM_RUN leaves behind: its answer without an exit, and the fields of the tracepoints at its end."""

from __future__ import annotations

from functools import cache

from kickstand.core.run.exits import IoExit, MmioExit
from kickstand.core.run.run_page import Cause, RunResult
from kickstand.core.trace import KVM_MMIO, KVM_PIO, Fields, Tracepoint
from kickstand.core.uapi import ExitReason


@cache
def left_without_exit(errno: int, exit_reason: ExitReason, cause: Cause | None) -> RunResult:
    """KVM_RUN failed with ``errno``."""
    return RunResult(-1, errno, exit_reason, None, cause)


@cache
def of_userspace_exit(exit_reason: ExitReason, errno: int) -> Fields:
    """``kvm_userspace_exit``."""
    return {"reason": exit_reason.kernel_name, "errno": errno}


def event_of(exit: MmioExit | IoExit) -> tuple[Tracepoint, Fields]:
    """``kvm_mmio`` (a read is told before userspace has satisfied it) or ``kvm_pio``."""
    if isinstance(exit, MmioExit):
        kind = "write" if exit.is_write else "unsatisfied-read"
        return KVM_MMIO, {"type": kind, "len": exit.len, "gpa": hex(exit.phys_addr), "val": exit.data.hex()}
    where = {"rw": exit.direction, "port": exit.port, "size": exit.size, "count": exit.count}
    return KVM_PIO, {**where, "val": exit.data.hex()}
