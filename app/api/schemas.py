"""Bodies at the HTTP edge: what comes in is checked here, what goes out is described here.

Numbers come as integers or as ``"0x..."``; addresses and registers go out as ``"0x..."``. Structures of the ABI are
made from ``core.uapi``, so that they cannot drift from it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, cast

from fastapi import Path
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, create_model, model_validator

from app.core import layout, uapi
from app.core.memslots import Region as CoreRegion
from app.core.uapi import MemFlag, MpState


def number(value: object) -> object:
    """Read ``"0x..."`` (or a decimal string); leave everything else to the check that follows."""
    if isinstance(value, str):
        try:
            return int(value, 0)
        except ValueError:
            raise ValueError(f"{value[:40]!r} is neither a number nor '0x...'") from None
    if isinstance(value, bool):
        raise ValueError("a number, not true or false")
    return value


def flag_bits(value: object) -> object:
    """Read flags as a list of names; leave everything else to ``number``."""
    if isinstance(value, list):
        return int(MemFlag.from_names(map(str, cast("list[object]", value))))
    return number(value)


def hex_bytes(value: object) -> object:
    """Read a string of hex digits."""
    if isinstance(value, str):
        try:
            return bytes.fromhex(value)
        except ValueError:
            raise ValueError("not an even number of hex digits") from None
    raise ValueError("a string of hex digits")


def mp_state_named(value: object) -> object:
    """Read the name of an mp_state; leave everything else to the check that follows."""
    if isinstance(value, str):
        if value not in MpState.__members__:
            raise ValueError(f"{value[:40]!r} is none of {', '.join(MpState.__members__)}")
        return MpState[value]
    return value


NUMBER = WithJsonSchema(
    {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": "^(0x[0-9a-fA-F]+|[0-9]+)$"}]}
)
U8 = Annotated[int, BeforeValidator(number), Field(ge=0, lt=1 << 8), NUMBER]
U16 = Annotated[int, BeforeValidator(number), Field(ge=0, lt=1 << 16), NUMBER]
U32 = Annotated[int, BeforeValidator(number), Field(ge=0, lt=1 << 32), NUMBER]
U64 = Annotated[int, BeforeValidator(number), Field(ge=0, lt=1 << 64), NUMBER]
UNSIGNED: dict[int, Any] = {1: U8, 2: U16, 4: U32, 8: U64}
Hex = Annotated[str, Field(pattern="^0x[0-9a-f]+$", examples=["0x1000"])]
HexBytes = Annotated[
    bytes, BeforeValidator(hex_bytes), WithJsonSchema({"type": "string", "pattern": "^([0-9a-f]{2})*$"})
]
Flags = Annotated[
    int,
    BeforeValidator(flag_bits),
    Field(ge=0, lt=1 << 32),
    WithJsonSchema(
        {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"enum": list(MemFlag.__members__)}}], "default": 0}
    ),
]
VcpuId = Annotated[int, Path(description="The vCPU's id.")]
SlotId = Annotated[int, Path(description="The memory slot's number.", ge=0, lt=1 << 32)]
Milliseconds = Annotated[int, Field(ge=0)]
Errno = Annotated[str | None, Field(description="The errno's name, or null.")]


class Body(BaseModel):
    """A request body: a field that nobody knows is an error, not silence."""

    model_config = ConfigDict(extra="forbid")


# -- structures of the ABI ---------------------------------------------------------------------------------


def input_model(struct: layout.Struct) -> type[Body]:
    """The overlay of a structure: each field may be left out."""
    fields: dict[str, Any] = {
        member.name: (_input_type(member.kind) | None, None) for member in struct.fields if not member.hidden
    }
    return create_model(f"{struct.name}_in", __base__=Body, **fields)


def _input_type(kind: layout.Kind) -> Any:
    if isinstance(kind, layout.Struct):
        return input_model(kind)
    if isinstance(kind, layout.Array):
        return list[_input_type(kind.item)]  # type: ignore[misc]  # a type made at run time
    return UNSIGNED[kind.size]


def output_model(struct: layout.Struct) -> type[BaseModel]:
    """A structure as it is answered."""
    fields: dict[str, Any] = {
        member.name: (_output_type(member.kind), ...) for member in struct.fields if not member.hidden
    }
    return create_model(struct.name, **fields)


def _output_type(kind: layout.Kind) -> Any:
    if isinstance(kind, layout.Struct):
        return output_model(kind)
    if isinstance(kind, layout.Array):
        return list[_output_type(kind.item)]  # type: ignore[misc]  # a type made at run time
    return Hex if isinstance(kind, layout.Scalar) and kind.address else int


RegsIn = input_model(uapi.KVM_REGS)
SregsIn = input_model(uapi.KVM_SREGS)
Regs = output_model(uapi.KVM_REGS)
Sregs = output_model(uapi.KVM_SREGS)


# -- requests ----------------------------------------------------------------------------------------------


class CreateVm(Body):
    """KVM_CREATE_VM, and KVM_CREATE_VCPU for ids 0 to ``vcpus`` - 1."""

    id: str | None = None
    vcpus: int = 0
    variant: str = "sticky"
    engine: str = "script"
    mode: str = "precise"
    irqchip: bool = False
    switches: dict[str, Any] = Field(default_factory=dict, description="rwsem_steal, killable, exit_test")
    programs: list[Any] | dict[int, Any] | None = Field(
        default=None, description="Script guests' programs, by vCPU id."
    )
    seed: int = 0


class Kick(Body):
    """KVM_KICK_ALL_RUNNING_VCPUS; without ``timeout_ms`` it waits as the ioctl does."""

    timeout_ms: Milliseconds | None = None


class Session(Body):
    """The one-time code of the URL's fragment."""

    code: str


class CreateHostMemory(Body):
    """The VMM's mmap. ``fill``: a byte, a hex string that is repeated, or ``"pattern"``."""

    size: U64
    name: str = ""
    fill: int | str | None = Field(default=None, examples=[0, "cafe", "pattern"])


class Region(Body):
    """``kvm_userspace_memory_region`` without its slot; ``memory_size`` 0 deletes, and needs nothing else."""

    flags: Flags = 0
    guest_phys_addr: U64 = 0
    memory_size: U64
    userspace_addr: U64 = 0

    @model_validator(mode="after")
    def is_complete(self) -> Self:
        """A region that is not a deletion says where it is and what backs it."""
        missing = [name for name in ("guest_phys_addr", "userspace_addr") if name not in self.model_fields_set]
        if self.memory_size and missing:
            raise ValueError(f"{' and '.join(missing)} must be given, unless memory_size is 0")
        return self

    def region(self, slot: int) -> CoreRegion:
        """The ioctl's argument."""
        return CoreRegion(slot, self.flags, self.guest_phys_addr, self.memory_size, self.userspace_addr)


class RegionIn(Region):
    """The region of the slot in the path."""

    slot: U32 | None = Field(default=None, description="May be repeated here; must be the path's.")


class SlottedRegion(Region):
    """A region with its slot: one operation of a transaction."""

    slot: U32


class Transaction(Body):
    """Slot changes in order, all or nothing. ``protect`` null: as the VM's variant does it.

    ``timeout_ms`` is for the kick, which waits without one as the ioctl does.
    """

    operations: list[SlottedRegion]
    protect: Literal["kick", "none", "list"] | None = None
    timeout_ms: Milliseconds | None = None


class ClearDirtyLog(Body):
    """KVM_CLEAR_DIRTY_LOG: bit n stands for page ``first_page`` + n. Without fields: the whole slot."""

    first_page: U64 = 0
    num_pages: U32 | None = None
    bits: list[int] | None = None


class IrqLine(Body):
    """``kvm_irq_level``."""

    irq: U32
    level: int = Field(ge=0, le=1)


class Msi(Body):
    """``kvm_msi``; ``address`` may stand for its two halves."""

    address: U64 | None = None
    address_lo: U32 = 0
    address_hi: U32 = 0
    data: U32
    flags: U32 = 0
    devid: U32 = 0

    def target(self) -> int:
        """The whole address."""
        return self.address_hi << 32 | self.address_lo if self.address is None else self.address


class CreateVcpu(Body):
    """KVM_CREATE_VCPU."""

    id: int
    program: list[Any] | None = Field(default=None, description="A script guest's program.")


class Run(Body):
    """KVM_RUN. ``reply`` is the device's answer to the read at which the last run stopped."""

    immediate_exit: bool | None = None
    reply: HexBytes | None = None
    timeout_ms: Milliseconds | None = None
    nowait: bool = False


class SetMpState(Body):
    """``kvm_mp_state``, by name or by number."""

    mp_state: Annotated[MpState, BeforeValidator(mp_state_named), WithJsonSchema({"enum": list(MpState.__members__)})]


class Interrupt(Body):
    """``kvm_interrupt``."""

    vector: U32


class Start(Body):
    """A server-side VMM thread."""

    behaviour: Literal["well", "careless"] = "well"
    handle_exits: bool = True
