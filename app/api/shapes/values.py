"""What a field may hold: numbers of a width, addresses, bytes, and names of which there is a list.

Numbers come as integers or as ``"0x..."``; addresses and registers go out as ``"0x..."``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, cast

from fastapi import Path
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from typing_extensions import TypeAliasType

from kickstand.core.shared.requests import NO_ACTION, Mode, Request
from kickstand.core.uapi import ExitReason as CoreExitReason
from kickstand.core.uapi import MemFlag
from kickstand.core.uapi import MpState as CoreMpState
from kickstand.guests import engines
from kickstand.guests.program import LONGEST_NUMBER

LONGEST_NAME = 64


class Body(BaseModel):
    """A request body: types are not bent, and a field that nobody knows is an error, not silence."""

    model_config = ConfigDict(extra="forbid", strict=True)


# -- what comes in -----------------------------------------------------------------------------------------


def number(value: object) -> object:
    """Read ``"0x..."`` (or a decimal string); leave everything else to the check that follows."""
    if isinstance(value, str):
        if len(value) > LONGEST_NUMBER:
            raise ValueError("a number of more digits than any field has")
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
        if value not in CoreMpState.__members__:
            raise ValueError(f"{value[:40]!r} is none of {', '.join(CoreMpState.__members__)}")
        return CoreMpState[value]
    if isinstance(value, int) and not isinstance(value, bool) and value in CoreMpState.__members__.values():
        return CoreMpState(value)
    return value


def number_schema(highest: int, lowest: int = 0) -> dict[str, Any]:
    """The schema of an integer that may be written as ``"0x..."``."""
    integer = {"type": "integer", "minimum": lowest, "maximum": highest}
    return {"anyOf": [integer, {"type": "string", "pattern": "^(0x[0-9a-fA-F]+|[0-9]+)$"}]}


def one_of(names: Iterable[str]) -> dict[str, Any]:
    """The schema of a name from a list."""
    return {"type": "string", "enum": list(names)}


U8 = Annotated[int, BeforeValidator(number), Field(ge=0, lt=1 << 8), WithJsonSchema(number_schema(2**8 - 1))]
U16 = Annotated[int, BeforeValidator(number), Field(ge=0, lt=1 << 16), WithJsonSchema(number_schema(2**16 - 1))]
U32 = Annotated[int, BeforeValidator(number), Field(ge=0, lt=1 << 32), WithJsonSchema(number_schema(2**32 - 1))]
U64 = Annotated[int, BeforeValidator(number), Field(ge=0, lt=1 << 64), WithJsonSchema(number_schema(2**64 - 1))]
UNSIGNED: dict[int, Any] = {1: U8, 2: U16, 4: U32, 8: U64}
HexBytes = Annotated[
    bytes, BeforeValidator(hex_bytes), WithJsonSchema({"type": "string", "pattern": "^([0-9a-fA-F]{2})*$"})
]
_FLAGS = {
    "anyOf": [*number_schema(2**32 - 1)["anyOf"], {"type": "array", "items": one_of(MemFlag.__members__)}],
    "default": 0,
}
Flags = Annotated[int, BeforeValidator(flag_bits), Field(ge=0, lt=1 << 32), WithJsonSchema(_FLAGS)]
MpStateIn = Annotated[CoreMpState, BeforeValidator(mp_state_named), WithJsonSchema(one_of(CoreMpState.__members__))]
Milliseconds = Annotated[int, Field(ge=0, lt=1 << 31)]
PageNumber = Annotated[int, Field(ge=0, lt=1 << 52)]  # there may be thousands: no "0x..." is looked for
Number = Annotated[int, Field(ge=0, lt=1 << 32)]  # where no "0x..." is expected
Seed = Annotated[int, Field(ge=0, lt=1 << 64)]
Program = TypeAliasType("Program", Annotated[list[Any], WithJsonSchema({"type": "array", "minItems": 1})])
"""A script guest's program: its compiler looks at every step, so that nothing unchecked is behind the ``Any``.
The schema of its steps is in ``shapes.programs``."""

# -- parameters of paths -----------------------------------------------------------------------------------

VcpuId = Annotated[int, Path(description="The vCPU's id.", ge=0, lt=1 << 32)]
SlotId = Annotated[int, Path(description="The memory slot's number.", ge=0, lt=1 << 32)]
HostAddress = Annotated[U64, Path(description="A host address, `0x...` or a number.", examples=["0x7f0000000000"])]

# -- what goes out -----------------------------------------------------------------------------------------

Count = Annotated[int, Field(ge=0)]
Hex = Annotated[str, Field(pattern="^0x[0-9a-f]+$", examples=["0x1000"])]
Digits = Annotated[str, Field(pattern="^([0-9a-f]{2})*$")]
Errno = Annotated[str | None, Field(pattern="^E[A-Z0-9]+$", examples=["EINTR"])]
Ret = Annotated[int, Field(ge=-1)]
ExitReason = TypeAliasType(
    "ExitReason", Annotated[str, WithJsonSchema(one_of(reason.kernel_name for reason in CoreExitReason))]
)
MpStateName = TypeAliasType("MpStateName", Annotated[str, WithJsonSchema(one_of(CoreMpState.__members__))])
VcpuMode = TypeAliasType("VcpuMode", Annotated[str, WithJsonSchema(one_of(Mode.__members__))])
RequestName = TypeAliasType(
    "RequestName",
    Annotated[str, WithJsonSchema(one_of(sorted(r.kernel_name for r in Request if not r & NO_ACTION)))],
)
EngineName = TypeAliasType("EngineName", Annotated[str, WithJsonSchema(one_of(engines.NAMES))])
EngineMode = TypeAliasType("EngineMode", Annotated[str, WithJsonSchema(one_of(engines.MODES))])


class Done(BaseModel):
    """An ioctl succeeded."""

    ret: Count
    errno: Errno
    seq: Count
