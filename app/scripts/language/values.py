"""The values that operations are made of: what a field of a script may hold.

Integers are JSON integers or ``"0x..."`` strings, as everywhere in Kickstand; bytes are hex.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from kickstand.core.errors import KvmError
from kickstand.core.uapi import KVM_REGS, KVM_SREGS, MpState, ioctl_by_name
from kickstand.guests.host_memory import MAX_NAME
from kickstand.guests.program import LONGEST_NUMBER, compile_program

MAX_HEX = 4 << 20
MAX_BITS = 1 << 20
MAX_MS = 600_000
REGISTERS = frozenset(KVM_REGS.names)
SPECIAL = frozenset(KVM_SREGS.names)
MP_STATES = frozenset(MpState.__members__)


def _number(value: object) -> object:
    if isinstance(value, str) and value[:2].lower() == "0x" and len(value) <= LONGEST_NUMBER:
        return int(value, 16)
    return value


Int = Annotated[int, Field(strict=True), BeforeValidator(_number)]
U8 = Annotated[Int, Field(ge=0, le=0xFF)]
U32 = Annotated[Int, Field(ge=0, lt=1 << 32)]
U64 = Annotated[Int, Field(ge=0, lt=1 << 64)]
Milliseconds = Annotated[Int, Field(ge=0, le=MAX_MS)]
Hex = Annotated[str, StringConstraints(strict=True, pattern=r"^(?:[0-9a-fA-F]{2})*$", max_length=MAX_HEX)]
Name = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=MAX_NAME)]


def _known(names: frozenset[str], what: str) -> BeforeValidator:
    def check(value: object) -> object:
        for name in value if isinstance(value, dict | list) else ():
            if not isinstance(name, str) or name not in names:
                raise ValueError(f"{name!r} is no {what}")
        return value

    return BeforeValidator(check)


def _mp_state(value: object) -> object:
    if isinstance(value, str) and value[:2].lower() != "0x":
        if value not in MP_STATES:
            raise ValueError(f"{value!r} is none of {', '.join(MpState.__members__)}")
        return int(MpState[value])
    return _number(value)


def _request(value: object) -> object:
    if isinstance(value, str) and value[:2].lower() != "0x":
        try:
            return ioctl_by_name(value).request
        except KeyError:
            raise ValueError(f"{value!r} is no ioctl") from None
    return _number(value)


def _program(value: object) -> object:
    try:
        compile_program(value)
    except KvmError as error:
        raise ValueError(error.detail) from None
    return value


Registers = Annotated[dict[str, U64], _known(REGISTERS, "register")]
Sreg = U64 | dict[str, U64] | Annotated[list[U64], Field(max_length=4)]
SpecialRegisters = Annotated[dict[str, Sreg], _known(SPECIAL, "special register")]
SpecialNames = Annotated[list[str], _known(SPECIAL, "special register")]
MpStateValue = Annotated[int, Field(strict=True, ge=0, lt=1 << 32), BeforeValidator(_mp_state)]
RequestCode = Annotated[int, Field(strict=True, ge=0, lt=1 << 32), BeforeValidator(_request)]
Bits = Annotated[list[U64], Field(max_length=MAX_BITS)]
Flag = Literal["immediate_exit", "request_interrupt_window"]
Program = Annotated[Any, BeforeValidator(_program)]


class Model(BaseModel):
    """Unknown members are refused: a misspelt one must not be ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Host(Model):
    """A host address: so many bytes into an arena, or this very address."""

    arena: Name | None = None
    offset: U64 | None = None
    abs: U64 | None = None

    @model_validator(mode="after")
    def _either(self) -> Host:
        if (self.arena is None) != (self.offset is None) or (self.arena is None) == (self.abs is None):
            raise ValueError("a host address is {arena, offset} or {abs}")
        return self
