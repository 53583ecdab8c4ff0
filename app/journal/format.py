"""The form of everything that is kept of a machine, checked before anything is made of it.

A journal is this program's own, a snapshot may be from anyone: both go through here, so that no number is out of its
range and no text longer than an exit can carry when the machine is put together. The CPU's registers are checked by
the guest engine, the slots by KVM's own rules.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from app.core.uapi import MAX_VCPU_ID, MAX_VCPUS, ExitReason, InternalError, MpState

FORMAT = 1
ENGINES = Literal["script", "x86"]  # what the real kernel keeps is not ours to write down
MOST_HOLDS = 1 << 16
MOST_ARENAS = 1 << 16
MOST_ELEMENTS = 1024  # of one port access
LONGEST_REPLY = 1 << 16

Unsigned = Annotated[int, Field(ge=0, lt=1 << 64)]
Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Vector = Annotated[int, Field(ge=0, le=0xFF)]
VcpuId = Annotated[int, Field(ge=0, lt=MAX_VCPU_ID)]


_HEX = r"^([0-9a-f]{2})*$"
ExitBytes = Annotated[str, Field(pattern=_HEX, max_length=2 * 8)]
PortBytes = Annotated[str, Field(pattern=_HEX, max_length=2 * 8 * MOST_ELEMENTS)]
ReplyBytes = Annotated[str, Field(pattern=_HEX, max_length=2 * LONGEST_REPLY)]


class Part(BaseModel):
    """Types are not bent, and nothing unknown is taken."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Io(Part):
    """``IoExit``."""

    kind: Literal["IoExit"]
    direction: Literal["in", "out"]
    size: Literal[1, 2, 4, 8]
    port: Annotated[int, Field(ge=0, le=0xFFFF)]
    count: Annotated[int, Field(ge=1, le=MOST_ELEMENTS)]
    data: PortBytes

    @model_validator(mode="after")
    def is_whole(self) -> Self:
        """An OUT carries all of its elements, an IN none."""
        _check_length(self.data, self.size * self.count if self.direction == "out" else 0)
        return self


class Mmio(Part):
    """``MmioExit``."""

    kind: Literal["MmioExit"]
    phys_addr: Unsigned
    len: Annotated[int, Field(ge=1, le=8)]
    is_write: bool
    data: ExitBytes

    @model_validator(mode="after")
    def is_whole(self) -> Self:
        """A write carries its bytes, a read none."""
        _check_length(self.data, self.len if self.is_write else 0)
        return self


def _check_length(data: str, length: int) -> None:
    if len(data) != 2 * length:
        raise ValueError(f"an exit of {length} bytes with {len(data) // 2}")


class Plain(Part):
    """The exits that say nothing more."""

    kind: Literal["HltExit", "ShutdownExit", "WindowExit"]


class Internal(Part):
    """``InternalErrorExit``."""

    kind: Literal["InternalErrorExit"]
    suberror: Literal[*(int(error) for error in InternalError)]  # type: ignore[valid-type]
    data: Annotated[list[Unsigned], Field(max_length=16)]
    gpa: Unsigned | None


Access = Annotated[Io | Mmio, Field(discriminator="kind")]
Exit = Annotated[Io | Mmio | Plain | Internal, Field(discriminator="kind")]


class Arch(Part):
    """``vcpu->arch``."""

    mp_state: Literal[*(int(state) for state in MpState)]  # type: ignore[valid-type]
    pending: Access | None
    irr: Annotated[list[Vector], Field(max_length=256)]
    nmi: bool
    init: bool
    sipi: Vector | None


class Page(Part):
    """``kvm_run``."""

    exit_reason: Literal[*(int(reason) for reason in ExitReason)]  # type: ignore[valid-type]
    exit: Exit | None
    reply: ReplyBytes | None
    immediate_exit: bool
    kept: bool = False  # by the user; files from before do not say
    request_interrupt_window: bool


class Cpu(Part):
    """One vCPU; ``guest`` is for its engine."""

    arch: Arch
    page: Page
    signal: bool
    guest: dict[str, Any]


class Window(Part):
    """What a variant keeps."""

    holds: Annotated[int, Field(ge=0, le=MOST_HOLDS)]


class Machine(Part):
    """The part ``vm``."""

    format: int
    id: str
    variant: str
    engine: ENGINES
    mode: str
    irqchip: bool
    switches: dict[str, bool | str]
    seed: int
    kick_id: Count
    window: Window
    vcpus: Annotated[list[VcpuId], Field(max_length=MAX_VCPUS)]
    requests: Annotated[list[Unsigned], Field(max_length=MAX_VCPUS)]
    running: bool
    threads: Annotated[list[tuple[VcpuId, Literal["well", "careless"], bool]], Field(max_length=MAX_VCPUS)]
    memory: Annotated[list[tuple[Unsigned, Count, str]], Field(max_length=MOST_ARENAS)]
    files: list[str]

    @model_validator(mode="after")
    def agrees(self) -> Self:
        """Every vCPU is there once, and what is about a vCPU is about one of them."""
        if len(set(self.vcpus)) != len(self.vcpus) or len(self.requests) != len(self.vcpus):
            raise ValueError("a vcpu that is there twice, or without requests")
        if not {vcpu_id for vcpu_id, _, _ in self.threads} <= set(self.vcpus):
            raise ValueError("a thread of a vcpu that is not there")
        return self


class Slots(Part):
    """The part ``slots``: numbers of slots, and runs of dirty pages."""

    slots: list[tuple[Unsigned, Unsigned, Unsigned, Unsigned, Unsigned]]
    dirty: dict[str, list[Unsigned]]


MACHINE, SLOTS, CPU = TypeAdapter(Machine), TypeAdapter(Slots), TypeAdapter(Cpu)
COUNTERS: TypeAdapter[Any] = TypeAdapter(dict[str, list[Count]])


def check(adapter: TypeAdapter[Any], name: str, part: bytes) -> None:
    """Raise ``ValueError``, naming the first field that is not as it should be."""
    try:
        adapter.validate_json(part, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, (name, *first["loc"])))
        raise ValueError(f"{where}: {first['msg']}") from None
