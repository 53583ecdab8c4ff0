"""vCPUs: what is asked of them, and what they look like."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from kickstand.api.shapes.values import (
    U32,
    Body,
    Count,
    Digits,
    Errno,
    ExitReason,
    Hex,
    HexBytes,
    Milliseconds,
    MpStateIn,
    MpStateName,
    Number,
    Program,
    RequestName,
    Ret,
    VcpuMode,
)
from kickstand.core.trace import VcpuState

Behaviour = Literal["well", "careless"]


class CreateVcpu(Body):
    """KVM_CREATE_VCPU."""

    id: Number
    program: Program | None = None


class Run(Body):
    """KVM_RUN. ``reply`` is the device's answer to the read at which the last run stopped."""

    immediate_exit: bool | None = None
    reply: HexBytes | None = None
    timeout_ms: Milliseconds | None = None
    nowait: bool = False


class SetMpState(Body):
    """``kvm_mp_state``, by name or by number."""

    mp_state: MpStateIn


class Interrupt(Body):
    """``kvm_interrupt``."""

    vector: U32


class Start(Body):
    """A server-side VMM thread."""

    behaviour: Behaviour = "well"
    handle_exits: bool = True
    while_watched: bool = False


class Thread(BaseModel):
    """A server-side VMM thread."""

    behaviour: Behaviour
    spins: Count
    handle_exits: bool
    running: bool
    ended: str | None


class Counters(BaseModel):
    """A vCPU's statistics, named after KVM's; each counts since the vCPU was made."""

    runs: Count
    exits: Count
    eintr: Count
    spins: Count
    entries: Count
    halts: Count
    halt_wakeups: Count
    signal_exits: Count
    request_irq_exits: Count
    mmio: Count
    pio: Count
    faults_retried: Count


class Vcpu(BaseModel):
    """A vCPU as observers see it."""

    id: Number
    state: VcpuState
    mode: VcpuMode
    mp_state: MpStateName
    requests: list[RequestName]
    exit_reason: ExitReason
    thread: Thread | None
    counters: Counters


class Vcpus(BaseModel):
    """A page of the vCPU table."""

    vcpus: list[Vcpu]
    next: Number | None


class MpStateAnswer(BaseModel):
    """``kvm_mp_state``."""

    mp_state: MpStateName


class Io(BaseModel):
    """``kvm_run.io``: an IN or OUT that userspace is to do."""

    direction: Literal["in", "out"]
    size: Literal[1, 2, 4]
    port: int = Field(ge=0, lt=1 << 16)
    count: Count
    data: Digits | None


class Mmio(BaseModel):
    """``kvm_run.mmio``: an access to guest memory where no slot is."""

    phys_addr: Hex
    len: int = Field(ge=1, le=8)
    is_write: bool
    data: Digits | None


class InternalError(BaseModel):
    """``kvm_run.internal``: KVM cannot go on."""

    suberror: int = Field(ge=1, le=4)
    ndata: int = Field(ge=0, le=16)
    data: list[Hex]


class Eoi(BaseModel):
    """``kvm_run.eoi``: the guest has ended an interrupt of userspace's IOAPIC."""

    vector: int = Field(ge=0, le=255)


class TprAccess(BaseModel):
    """``kvm_run.tpr_access``: the guest has accessed its task priority in the APIC's page."""

    rip: Hex
    is_write: bool


class SystemEvent(BaseModel):
    """``kvm_run.system_event``: the guest wants a reset or a shutdown."""

    type: Count
    ndata: int = Field(ge=0, le=16)
    data: list[Hex]


Cause = Literal["userspace_kick", "signal", "immediate_exit", "poll_timeout", "client_disconnect"]


class RunDone(BaseModel):
    """KVM_RUN returned. ``ret`` -1 with EINTR is an ordinary answer."""

    ret: Ret
    errno: Errno
    exit_reason: ExitReason
    exit_reason_value: int = Field(ge=0, le=40)
    io: Io | None = None
    mmio: Mmio | None = None
    internal_error: InternalError | None = None
    system_event: SystemEvent | None = None
    eoi: Eoi | None = None
    tpr_access: TprAccess | None = None
    cause: Cause | None
    kick_id: Count | None
    run_ns: Count
    seq: Count
