"""What every part of a machine has in common: the numbers, and one model for both directions, checked in both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from kickstand.core.arch.irq.routing import MAX_ROUTES
from kickstand.core.uapi import MAX_VCPU_ID

T = TypeVar("T")
Encoded = bytes | Callable[[], bytes]
"""JSON, or what makes it of something that changes no more: that takes a while, and may be done in any thread."""
Unsigned = Annotated[int, Field(ge=0, lt=1 << 64)]
Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Vector = Annotated[int, Field(ge=0, le=0xFF)]
Gsi = Annotated[int, Field(ge=0, lt=MAX_ROUTES)]
VcpuId = Annotated[int, Field(ge=0, lt=MAX_VCPU_ID)]


class Part(BaseModel):
    """Types are not bent, and nothing unknown is taken."""

    model_config = ConfigDict(
        strict=True, extra="forbid", from_attributes=True, ser_json_bytes="hex", val_json_bytes="hex"
    )

    @classmethod
    def of(cls, live: Any) -> Self:
        """What is kept of ``live``: the attributes that have the names of the fields."""
        return cls.model_validate(live)

    def into(self, live: Any) -> None:
        """Put every field back where ``of`` found it."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            setattr(live, name, value.living() if isinstance(value, Part) else value)

    def living(self) -> Any:
        """What stands in the field of what lives: this, unless it is the form of one of the core's own objects."""
        return self

    def encoded(self) -> bytes:
        """One line of JSON."""
        return self.model_dump_json().encode()


def encoded(part: Encoded) -> bytes:
    """The JSON."""
    return part if isinstance(part, bytes) else part()


def decoded(kind: TypeAdapter[T], name: str, data: bytes) -> T:
    """A part from its JSON. ``ValueError`` names the first field that is not as it should be."""
    try:
        return kind.validate_json(data)
    except ValidationError as error:
        raise ValueError(sentence(name, error)) from None


def sentence(name: str, error: ValidationError) -> str:
    """What is wrong with a part: its first field that is, and the rule."""
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, (name, *first['loc'])))}: {first['msg'].removeprefix('Value error, ')}"
