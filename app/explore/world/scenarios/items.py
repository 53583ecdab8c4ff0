"""Mappings of a scenario file as checked data: what is missing, unknown or out of range is named."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, field_validator, model_validator

from kickstand.core.memslots import Region
from kickstand.core.uapi import MemFlag
from kickstand.explore.world.threads import VmmThread

LARGEST = 1 << 30  # bytes of one slot: every page is looked at by itself
FLAGS = {str(flag.name): int(flag) for flag in (MemFlag.LOG_DIRTY_PAGES, MemFlag.READONLY)}


def integer(value: Any, low: int, high: int) -> int:
    """An integer from ``low`` to ``high``, or one written as text (``0x1000``). Raises ``ValueError``."""
    try:
        found = int(value, 0) if isinstance(value, str) else value
    except ValueError:
        found = None
    if isinstance(found, bool) or not isinstance(found, int) or not low <= found <= high:
        raise ValueError(f"{value!r} is no integer from {low} to {high}")
    return found


def number(low: int, high: int) -> BeforeValidator:
    """The rule of a field that is an ``integer``."""
    return BeforeValidator(partial(integer, low=low, high=high))


def one_of(*words: str) -> BeforeValidator:
    """The rule of a field that is one of ``words``."""

    def check(value: Any) -> Any:
        if value not in words:
            raise ValueError(f"{value!r} is none of {', '.join(words)}")
        return value

    return BeforeValidator(check)


Number = Annotated[int, number(0, 1 << 64)]
Size = Annotated[int, number(0, LARGEST)]


class Item(BaseModel):
    """A mapping in a file: unknown and missing members are named, together with those that there are."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)
    aliases: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _members(cls, data: Any) -> Any:
        known = sorted({*cls.model_fields, *cls.aliases})
        if not isinstance(data, Mapping):
            raise ValueError(f"is a mapping with {', '.join(known)}")
        for key in data:
            if key not in known:
                raise ValueError(f"{key!r} is none of {', '.join(known)}")
        renamed = {cls.aliases.get(key, key): value for key, value in data.items()}
        for name, field in cls.model_fields.items():
            if field.is_required() and name not in renamed:
                raise ValueError(cls.lacks(name))
        return renamed

    @classmethod
    def lacks(cls, name: str) -> str:
        """How the message says that a member is missing."""
        return f"{name} is missing"


class RegionItem(Item):
    """A memory region in the words of scripts, or of the API."""

    aliases: ClassVar[Mapping[str, str]] = {
        "guest_phys_addr": "gpa",
        "memory_size": "size",
        "userspace_addr": "host",
    }
    slot: Number
    gpa: Number
    size: Size
    flags: Number = 0
    host: Number = 0

    @field_validator("flags", mode="before")
    @classmethod
    def _flags(cls, value: Any) -> Any:
        names = [value] if isinstance(value, str) and not value[:1].isdigit() else value
        if not isinstance(names, list):
            return value
        unknown = [name for name in names if name not in tuple(FLAGS)]  # by comparison: it may be a list
        if unknown:
            raise ValueError(f"{unknown[0]!r} is none of {', '.join(FLAGS)}")
        return sum({FLAGS[name] for name in names})

    @field_validator("host", mode="before")
    @classmethod
    def _host(cls, value: Any) -> Any:
        return value.get("abs", value.get("offset", 0)) if isinstance(value, Mapping) else value  # as ioctl scripts

    def region(self) -> Region:
        """The argument of the ioctl."""
        return Region(self.slot, self.flags, self.gpa, self.size, self.host)


class Operation(Item):
    """What a thread of a scenario does at a time."""

    vcpu_of: ClassVar[tuple[str, str]] = ("", "")  # the field that names a vCPU, and which of the VM's lists it is of

    @classmethod
    def lacks(cls, name: str) -> str:
        return f"{cls.name()} needs {name}"

    @classmethod
    def name(cls) -> str:
        """The operation's name in files and scripts."""
        return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in cls.__name__)[1:]

    @abstractmethod
    async def perform(self, thread: VmmThread) -> None:
        """Do it. ``KvmError`` where the ioctl fails."""
