"""What streams tell: one shape for the data of each event, told apart by ``event``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from kickstand.api.shapes.values import (
    Count,
    Digits,
    EngineMode,
    EngineName,
    ExitReason,
    Hex,
    MpStateName,
    Number,
    RequestName,
    VcpuMode,
)
from kickstand.api.shapes.vcpus import Vcpu
from kickstand.api.shapes.vms import Locks, Vm
from kickstand.core.memslots import Change
from kickstand.core.trace import VcpuState

REF = "#/components/schemas/"
Phase = Literal["requested", "completed", "taken back"]
Slots = Annotated[str, Field(json_schema_extra={"enum": [change.value for change in Change]})]


class Data(BaseModel):
    """What every event has; nothing more is told by `kvm_entry` and `kvm_destroy_vm`."""

    seq: Count
    vm: str | None
    vcpu: Number | None
    t_ns: Count


class KvmExit(Data):
    """A vCPU left guest mode. A kernel's tracepoint."""

    exit_reason: str


class KvmUserspaceExit(Data):
    """KVM_RUN returns. A kernel's tracepoint."""

    reason: ExitReason
    errno: Count


class KvmVcpuWakeup(Data):
    """A sleep inside KVM_RUN has ended. A kernel's tracepoint."""

    waited: bool
    valid: bool


class KvmMmio(Data):
    """The guest accesses memory where no slot is. A kernel's tracepoint."""

    type: Literal["write", "unsatisfied-read"]
    len: Annotated[int, Field(ge=1, le=8)]
    gpa: Hex
    val: Digits


class KvmPio(Data):
    """The guest accesses a port. A kernel's tracepoint."""

    rw: Literal["in", "out"]
    port: Annotated[int, Field(ge=0, lt=1 << 16)]
    size: Literal[1, 2, 4]
    count: Count
    val: Digits


class KvmInjVirq(Data):
    """An interrupt is injected. A kernel's tracepoint."""

    vector: Annotated[int, Field(ge=0, le=255)]


class KvmSetIrq(Data):
    """An interrupt line is set. A kernel's tracepoint."""

    gsi: Number
    level: Annotated[int, Field(ge=0)]


class KvmMsiSetIrq(Data):
    """A message-signalled interrupt is sent. A kernel's tracepoint."""

    address: Count
    data: Number


class KvmMakeRequest(Data):
    """A request to a vCPU is made."""

    request: RequestName


class KvmMode(Data):
    """A vCPU's mode changes."""

    mode: VcpuMode


class KvmKick(Data):
    """A vCPU in guest mode is interrupted."""

    ipi: bool


class VcpuStateChange(Data):
    """A vCPU does something else."""

    state: VcpuState
    old: VcpuState


class KvmMemslot(Data):
    """A memory slot came, went or changed."""

    change: Slots
    slot: Number
    gpa: Count
    npages: Count


class KvmKickAll(Data):
    """KVM_KICK_ALL_RUNNING_VCPUS begins, returns, or is given up."""

    phase: Phase


class KvmResumeAll(Data):
    """KVM_RESUME_ALL_KICKED_VCPUS begins or returns."""

    phase: Phase


class MemTransaction(Data):
    """A memory transaction begins or ends."""

    phase: Literal["begin", "end"]
    protect: Literal["kick", "none", "list"]
    operations: Count | None = None


class KvmCreateVm(Data):
    """A VM is made."""

    variant: str
    engine: EngineName
    mode: EngineMode


class KvmRestoreVm(Data):
    """A VM is made from what was kept."""

    variant: str
    engine: EngineName


class KvmCreateVcpu(Data):
    """A vCPU is made."""

    mp_state: MpStateName


class VmmRest(Data):
    """Threads that run only while somebody watches rest, or go on."""

    phase: Literal["begin", "end"]
    why: Literal["", "nobody watches", "kicked for a minute"]


class ExplorationChange(Data):
    """A job of the explorer begins, goes on or ends."""

    id: str
    state: Literal["running", "done", "failed", "cancelled"]
    cells: Count
    cells_done: Count | None = None
    search: dict[str, Any] | None = None
    error: str | None = None


class ExplorationCell(Data):
    """A job of the explorer has decided a cell."""

    id: str
    cell: dict[str, Any]


class SnapshotAll(Data):
    """The whole state at `seq`, of a stream of every VM."""

    epoch: str
    vms: list[Vm]


class SnapshotVm(Vm):
    """The whole state at `seq`, of a stream of one VM."""

    vm: str
    vcpu: None
    t_ns: Count
    locks: Locks


class SnapshotVcpu(Vcpu):
    """The whole state at `seq`, of a stream of one vCPU."""

    seq: Count
    vm: str
    vcpu: Number
    t_ns: Count
    epoch: str


class Gap(Data):
    """Events are missing; a snapshot follows."""

    model_config = ConfigDict(populate_by_name=True)

    reason: str
    count: Count | None = None
    from_: Count | None = Field(default=None, alias="from")
    to: Count | None = None
    after: str | None = None


class Bye(Data):
    """The server ends the stream."""

    reason: Literal["shutdown", "destroyed"]


class Heartbeat(BaseModel):
    """Nothing new, still here. As server-sent events it is a comment."""

    seq: Count
    t_ns: Count


EVENTS: dict[str, tuple[type[BaseModel], ...]] = {
    "snapshot": (SnapshotAll, SnapshotVm, SnapshotVcpu),
    "gap": (Gap,),
    "bye": (Bye,),
    "heartbeat": (Heartbeat,),
    "kvm_entry": (Data,),
    "kvm_exit": (KvmExit,),
    "kvm_userspace_exit": (KvmUserspaceExit,),
    "kvm_vcpu_wakeup": (KvmVcpuWakeup,),
    "kvm_mmio": (KvmMmio,),
    "kvm_pio": (KvmPio,),
    "kvm_inj_virq": (KvmInjVirq,),
    "kvm_set_irq": (KvmSetIrq,),
    "kvm_msi_set_irq": (KvmMsiSetIrq,),
    "kvm_make_request": (KvmMakeRequest,),
    "kvm_mode": (KvmMode,),
    "kvm_kick": (KvmKick,),
    "vcpu_state": (VcpuStateChange,),
    "kvm_memslot": (KvmMemslot,),
    "kvm_kick_all": (KvmKickAll,),
    "kvm_resume_all": (KvmResumeAll,),
    "mem_transaction": (MemTransaction,),
    "kvm_create_vm": (KvmCreateVm,),
    "kvm_destroy_vm": (Data,),
    "kvm_restore_vm": (KvmRestoreVm,),
    "kvm_create_vcpu": (KvmCreateVcpu,),
    "vmm_rest": (VmmRest,),
    "exploration": (ExplorationChange,),
    "exploration_cell": (ExplorationCell,),
}
"""Every name that a stream has, with what its data may be."""


def components() -> dict[str, Any]:
    """``Event``, one schema for each name, and the shapes of their data."""
    models = dict.fromkeys(model for several in EVENTS.values() for model in several)
    _, given = models_json_schema([(model, "serialization") for model in models], ref_template=f"{REF}{{model}}")
    names = {model.__name__: f"{model.__name__}Data" for model in models if model is not Data}
    found = _renamed(given["$defs"], {f"{REF}{old}": f"{REF}{new}" for old, new in names.items()})
    data = {names.get(name, "EventData" if name == "Data" else name): schema for name, schema in found.items()}
    events = {_event_name(name): _event(name, several) for name, several in EVENTS.items()}
    by_name = {name: f"{REF}{_event_name(name)}" for name in EVENTS}
    return data | events | {
        "Event": {
            "description": "One event of a stream; `event` tells which.",
            "oneOf": [{"$ref": ref} for ref in by_name.values()],
            "discriminator": {"propertyName": "event", "mapping": by_name},
        }
    }  # fmt: skip


def _event_name(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_")) + "Event"


def _event(name: str, models: tuple[type[BaseModel], ...]) -> dict[str, Any]:
    refs = [{"$ref": f"{REF}{'EventData' if model is Data else f'{model.__name__}Data'}"} for model in models]
    return {
        "type": "object",
        "description": f"The event `{name}`.",
        "properties": {
            "id": {"type": ["string", "null"], "pattern": "^[0-9a-f]+-[0-9]+$"},
            "event": {"type": "string", "const": name},
            "data": refs[0] if len(refs) == 1 else {"anyOf": refs},
        },
        "required": ["id", "event", "data"],
    }


def _renamed(schema: Any, refs: dict[str, str]) -> Any:
    if isinstance(schema, list):
        return [_renamed(item, refs) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {name: refs.get(value, value) if name == "$ref" else _renamed(value, refs) for name, value in schema.items()}
