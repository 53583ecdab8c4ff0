"""Virtual machines: how one is asked for, and what it looks like."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from kickstand.api.shapes.memory import MemoryRegion
from kickstand.api.shapes.values import (
    LONGEST_NAME,
    Body,
    Count,
    EngineMode,
    EngineName,
    Milliseconds,
    Number,
    Program,
    Seed,
    number,
)
from kickstand.api.shapes.vcpus import Vcpu
from kickstand.guests import engines
from kickstand.journal.form import Switches as KeptSwitches
from kickstand.runtime.driver import clock as clocks
from kickstand.runtime.registry import NAME

ProgramOf = Annotated[int, BeforeValidator(number), Field(ge=0, lt=1 << 32)]
VariantName = Annotated[str, Field(max_length=LONGEST_NAME, examples=["sticky", "holds"])]


class SwitchesIn(KeptSwitches):
    """Choices that are orthogonal to the variant."""

    # An unknown one is refused with the names of those there are.
    model_config = ConfigDict(extra="allow", json_schema_extra={"additionalProperties": False})


class CreateVm(Body):
    """KVM_CREATE_VM, and KVM_CREATE_VCPU for ids 0 to ``vcpus`` - 1."""

    id: str | None = Field(default=None, max_length=LONGEST_NAME, json_schema_extra={"pattern": f"^{NAME.pattern}$"})
    vcpus: Number = 0
    variant: VariantName = "sticky"
    engine: str = Field(default="script", max_length=LONGEST_NAME, json_schema_extra={"enum": list(engines.NAMES)})
    mode: str = Field(default="precise", max_length=LONGEST_NAME, json_schema_extra={"enum": list(engines.MODES)})
    irqchip: bool = False
    clock: str = Field(default="loop", json_schema_extra={"enum": list(clocks.KINDS)})
    switches: SwitchesIn = SwitchesIn()
    programs: list[Program | None] | dict[ProgramOf, Program | None] | None = None
    seed: Seed = 0

    def options(self) -> dict[str, Any]:
        """What ``Registry.create`` takes."""
        return {**dict(self), "switches": self.switches.model_dump()}


class Kick(Body):
    """KVM_KICK_ALL_RUNNING_VCPUS; without ``timeout_ms`` it waits as the ioctl does."""

    timeout_ms: Milliseconds | None = None


class Switches(BaseModel):
    """A VM's switches."""

    rwsem_steal: bool
    killable: bool
    exit_test: Literal["before_r", "after_r"]


class Vm(BaseModel):
    """A VM as observers see it, at one sequence number."""

    id: str
    variant: str
    engine: EngineName
    mode: EngineMode
    irqchip: bool
    switches: Switches
    kicked: bool
    holds: Count
    vcpus: list[Vcpu]
    memory_regions: list[MemoryRegion]
    seq: Count
    epoch: str


class Vms(BaseModel):
    """All VMs."""

    vms: list[Vm]


class Queued(BaseModel):
    """One that waits for the lock."""

    who: Number | str
    side: Literal["read", "write"]
    age_ns: Count


class Locks(BaseModel):
    """The variant's lock."""

    readers: list[Number]
    writer: Number | str | None
    queue: list[Queued]


class Kicked(BaseModel):
    """KVM_KICK_ALL_RUNNING_VCPUS returned."""

    kick_id: Count
    changed: bool
    vcpus_stopped: Count
    holds: Count
    drain_ns: Count
    seq: Count


class Resumed(BaseModel):
    """KVM_RESUME_ALL_KICKED_VCPUS returned."""

    changed: bool
    cleared: Count
    holds: Count
    seq: Count
