"""What is answered, for the schema: the runtime makes the shapes, and no answer passes through these models."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from app.api.schemas import Errno, Hex
from app.core.trace import VcpuState


class Thread(BaseModel):
    """A server-side VMM thread."""

    behaviour: Literal["well", "careless"]
    spins: int
    handle_exits: bool
    running: bool
    ended: str | None


class Counters(BaseModel):
    """A vCPU's statistics, named after KVM's."""

    runs: int
    exits: int
    eintr: int
    spins: int
    entries: int
    halts: int
    halt_wakeups: int
    signal_exits: int
    request_irq_exits: int
    mmio: int
    pio: int
    faults_retried: int


class VcpuShape(BaseModel):
    """A vCPU as observers see it."""

    id: int
    state: VcpuState
    mode: str
    mp_state: str
    requests: list[str]
    exit_reason: str
    thread: Thread | None
    counters: Counters


class Vcpus(BaseModel):
    """A page of the vCPU table; ``next`` goes into ``after``."""

    vcpus: list[VcpuShape]
    next: int | None


class RegionShape(BaseModel):
    """A memory slot."""

    slot: int
    flags: int
    guest_phys_addr: Hex
    memory_size: int
    userspace_addr: Hex


class Regions(BaseModel):
    """The memory slots."""

    regions: list[RegionShape]


class SwitchesShape(BaseModel):
    """A VM's switches."""

    rwsem_steal: bool
    killable: bool
    exit_test: Literal["before_r", "after_r"]


class VmShape(BaseModel):
    """A VM as observers see it, at one sequence number."""

    id: str
    variant: str
    engine: str
    mode: str
    irqchip: bool
    switches: SwitchesShape
    kicked: bool
    holds: int
    vcpus: list[VcpuShape]
    memory_regions: list[RegionShape]
    seq: int
    epoch: str


class Vms(BaseModel):
    """All VMs."""

    vms: list[VmShape]


class Queued(BaseModel):
    """One that waits for the semaphore."""

    who: int | str
    side: Literal["read", "write"]
    age_ns: int


class Locks(BaseModel):
    """The variant's lock."""

    readers: list[int]
    writer: int | str | None
    queue: list[Queued]


class Kicked(BaseModel):
    """KVM_KICK_ALL_RUNNING_VCPUS returned."""

    kick_id: int
    changed: bool
    vcpus_stopped: int
    holds: int
    drain_ns: int
    seq: int


class Resumed(BaseModel):
    """KVM_RESUME_ALL_KICKED_VCPUS returned."""

    changed: bool
    cleared: int
    holds: int
    seq: int


class HostMemoryShape(BaseModel):
    """An allocation."""

    userspace_addr: Hex
    size: int


class OperationResult(BaseModel):
    """One ioctl of a list."""

    ret: int
    errno: Errno


class TransactionDone(BaseModel):
    """A memory transaction was applied."""

    results: list[OperationResult]
    drain_ns: int
    window_ns: int
    seq: int


class DirtyPages(BaseModel):
    """Page numbers within the slot, sorted."""

    dirty_pages: list[int]


class Done(BaseModel):
    """An ioctl succeeded."""

    ret: int
    errno: Errno
    seq: int


class MsiDone(Done):
    """KVM_SIGNAL_MSI: ``ret`` is 1 if a vCPU took it."""

    delivered: bool


class MpStateShape(BaseModel):
    """``kvm_mp_state``."""

    mp_state: str


class Io(BaseModel):
    """``kvm_run.io``."""

    direction: Literal["in", "out"]
    size: int
    port: int
    count: int
    data: str | None


class Mmio(BaseModel):
    """``kvm_run.mmio``."""

    phys_addr: Hex
    len: int
    is_write: bool
    data: str | None


class InternalErrorShape(BaseModel):
    """``kvm_run.internal``."""

    suberror: int
    ndata: int
    data: list[Hex]


class SystemEventShape(BaseModel):
    """``kvm_run.system_event``."""

    type: int
    ndata: int
    data: list[Hex]


class RunDone(BaseModel):
    """KVM_RUN returned. ``ret`` -1 with EINTR is an ordinary answer."""

    ret: int
    errno: Errno
    exit_reason: str = Field(examples=["KVM_EXIT_IO"])
    exit_reason_value: int
    io: Io | None = None
    mmio: Mmio | None = None
    internal_error: InternalErrorShape | None = None
    system_event: SystemEventShape | None = None
    cause: Literal["userspace_kick", "signal", "immediate_exit", "poll_timeout", "client_disconnect"] | None
    kick_id: int | None
    run_ns: int
    seq: int


class ScriptDone(BaseModel):
    """The operations' results in order. As NDJSON each is a line of its own."""

    results: list[dict[str, Any]]
    seq: int


class VariantInfo(BaseModel):
    """A variant of the proposal."""

    name: str
    summary: str


class EngineInfo(BaseModel):
    """A guest engine, and why it cannot be used here, if so."""

    name: str
    available: bool
    reason: str | None


class KvmInfo(BaseModel):
    """KVM_GET_API_VERSION, KVM_CHECK_EXTENSION for every capability, and what this server has."""

    api_version: int
    capabilities: dict[str, int]
    limits: dict[str, int]
    variants: list[VariantInfo]
    engines: list[EngineInfo]
    scenarios: list[str]
    properties: list[str]


class Health(BaseModel):
    """The server answers."""

    status: str
