"""The part ``vm``: how a machine was made, its vCPUs' names, its window and its host memory."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic import model_validator as checked

from kickstand.core.memslots import USER_SPACE_END
from kickstand.core.uapi import MAX_VCPUS, PAGE_SIZE
from kickstand.core.variants.holds import MOST_HOLDS
from kickstand.guests.host_memory import MOST_ARENAS
from kickstand.journal.form.arch import KvmArch
from kickstand.journal.form.part import Count, Part, Unsigned, VcpuId

FORMAT = 3  # the next one: see ``upgrade``


class Switches(Part):
    """``core.vm.Switches``: what may be given for a new VM is what is kept of it."""

    rwsem_steal: bool = False
    killable: bool = False
    exit_test: Literal["before_r", "after_r"] = "before_r"


class DirtyLog(Part):
    """KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2."""

    manual: bool = False
    initially_set: bool = False


class OpenWindow(Part):
    """What a variant keeps; one of the user's own may keep more."""

    model_config = ConfigDict(extra="allow")

    holds: Annotated[int, Field(ge=0, le=MOST_HOLDS)]


class Machine(Part):
    """The part ``vm``."""

    format: Literal[3]
    id: str
    variant: str
    engine: Literal["script", "x86"]  # what the real kernel keeps is not ours to write down
    mode: str
    irqchip: bool
    clock: Literal["loop", "virtual"] = "loop"
    switches: Switches
    arch: KvmArch = KvmArch()
    dirty_log: DirtyLog = DirtyLog()
    seed: int
    kick_id: Count
    window: OpenWindow
    vcpus: Annotated[list[VcpuId], Field(max_length=MAX_VCPUS)]
    requests: Annotated[list[Unsigned], Field(max_length=MAX_VCPUS)]
    running: bool
    threads: Annotated[list[tuple[VcpuId, Literal["well", "careless"], bool]], Field(max_length=MAX_VCPUS)]
    memory: Annotated[list[tuple[Unsigned, Count, str]], Field(max_length=MOST_ARENAS)]
    files: list[str]

    @checked(mode="after")
    def agrees(self) -> Self:
        """Every vCPU is there once, and what is about a vCPU is about one of them."""
        if len(set(self.vcpus)) != len(self.vcpus) or len(self.requests) != len(self.vcpus):
            raise ValueError("a vcpu that is there twice, or without requests")
        if not {vcpu_id for vcpu_id, _, _ in self.threads} <= set(self.vcpus):
            raise ValueError("a thread of a vcpu that is not there")
        return self

    @checked(mode="after")
    def is_memory(self) -> Self:
        """Pieces of host memory are whole pages, one above the other."""
        end = 0
        for base, size, _ in self.memory:
            if size <= 0 or size % PAGE_SIZE or base % PAGE_SIZE or base < end or base + size > USER_SPACE_END:
                raise ValueError(f"host memory of {size} bytes at {base:#x} is none")
            end = base + size
        return self


MACHINE = TypeAdapter(Machine)
