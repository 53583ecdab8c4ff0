"""Binary layout of C structures, described once for bytes, JSON and scripts.

A kind knows its size and alignment and turns a value into bytes and back. A ``Struct`` places its
fields by the rules of the C ABI, and is itself a kind, so that ``kvm_segment`` nests in ``kvm_sregs``.
Byte order is little-endian, as on x86. Padding is not shown: it is zero when packed and ignored when read.
"""

from __future__ import annotations

import struct as packed
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from kickstand.core.uapi import codec


class Kind(Protocol):
    """The type of a field."""

    @property
    def size(self) -> int:
        """Bytes taken."""
        ...

    @property
    def align(self) -> int:
        """Bytes of alignment."""
        ...

    def pack(self, value: object) -> bytes:
        """Return exactly ``size`` bytes. Raises ValueError for what the kind cannot hold."""
        ...

    def unpack(self, data: bytes) -> object:
        """Return the value that ``pack`` would turn into ``data``."""
        ...

    def to_json(self, value: object) -> object:
        """Return the value as JSON has it: bytes as lower-case hex, addresses and registers as ``"0x..."``."""
        ...

    def from_json(self, value: object) -> object:
        """Return a value for ``pack``. Integers are accepted as numbers and as ``"0x..."``."""
        ...


@dataclass(frozen=True, slots=True)
class Scalar:
    """An integer. ``address`` marks what a person reads in hexadecimal: addresses and registers."""

    name: str
    size: int
    signed: bool = False
    address: bool = False

    @property
    def align(self) -> int:
        return self.size

    def pack(self, value: object) -> bytes:
        if not isinstance(value, int):
            raise ValueError(f"{value!r} is not an integer")
        try:
            return int(value).to_bytes(self.size, "little", signed=self.signed)
        except OverflowError:
            raise ValueError(f"{value:#x} does not fit {self.name}") from None

    def unpack(self, data: bytes) -> int:
        return int.from_bytes(data, "little", signed=self.signed)

    def to_json(self, value: object) -> int | str:
        number = cast("int", value)
        return hex(number) if self.address else int(number)

    def from_json(self, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError(f"{value!r} is not an integer")
        return int(value, 0) if isinstance(value, str) else value


@dataclass(frozen=True, slots=True)
class Bytes:
    """``size`` raw bytes. A shorter value is filled up with zeros."""

    size: int
    align: int = field(default=1, init=False)

    def pack(self, value: object) -> bytes:
        if not isinstance(value, bytes | bytearray):
            raise ValueError(f"{value!r} is not bytes")
        if len(value) > self.size:
            raise ValueError(f"{len(value)} bytes do not fit {self.size}")
        return bytes(value).ljust(self.size, b"\0")

    def unpack(self, data: bytes) -> bytes:
        return bytes(data)

    def to_json(self, value: object) -> str:
        return cast("bytes", value).hex()

    def from_json(self, value: object) -> bytes:
        if not isinstance(value, str):
            raise ValueError(f"{value!r} is not a string of hex digits")
        return bytes.fromhex(value)


@dataclass(frozen=True, slots=True)
class Array:
    """``count`` values of one kind. A shorter list is filled up with zeros."""

    item: Kind
    count: int

    @property
    def size(self) -> int:
        return self.item.size * self.count

    @property
    def align(self) -> int:
        return self.item.align

    def pack(self, value: object) -> bytes:
        items = _items(value)
        if len(items) > self.count:
            raise ValueError(f"{len(items)} values do not fit {self.count}")
        return b"".join(map(self.item.pack, items)).ljust(self.size, b"\0")

    def unpack(self, data: bytes) -> list[object]:
        step = self.item.size
        return [self.item.unpack(data[at : at + step]) for at in range(0, self.size, step)]

    def to_json(self, value: object) -> list[object]:
        return [self.item.to_json(item) for item in _items(value)]

    def from_json(self, value: object) -> list[object]:
        return [self.item.from_json(item) for item in _items(value)]


@dataclass(frozen=True, slots=True)
class Field:
    """One member of a structure; ``offset`` is in bytes from the structure's start."""

    name: str
    offset: int
    kind: Kind
    hidden: bool = False

    @property
    def size(self) -> int:
        return self.kind.size

    @property
    def end(self) -> int:
        return self.offset + self.kind.size


@dataclass(frozen=True, slots=True)
class Struct:
    """A C structure: ``fields`` in order, padding included as hidden fields."""

    name: str
    fields: tuple[Field, ...]
    size: int
    align: int
    _at_once: tuple[Callable[[bytes], Any], Callable[[Any], bytes]] = field(init=False, compare=False, repr=False)

    names: tuple[str, ...] = field(init=False, compare=False, repr=False)
    """The names of the fields, without padding."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_at_once", codec.codec(_leaf(self)))
        object.__setattr__(self, "names", tuple(member.name for member in self.fields if not member.hidden))

    def __getitem__(self, name: str) -> Field:
        """Return the field of that name. Raises ValueError if there is none."""
        for candidate in self.fields:
            if candidate.name == name and not candidate.hidden:
                return candidate
        raise ValueError(f"{self.name} has no field {name!r}")

    def offset(self, name: str) -> int:
        """Return the offset of a field in bytes."""
        return self[name].offset

    def pack(self, value: object) -> bytes:
        """Return the structure's bytes. A field that is not named is zero."""
        try:
            return self._at_once[1](value)
        except (TypeError, KeyError, ValueError, packed.error):
            return self._packed(value)  # which knows what is missing or wrong

    def _packed(self, value: object) -> bytes:
        data = bytearray(self.size)
        for name, item in _members(value).items():
            member = self[name]
            try:
                data[member.offset : member.end] = member.kind.pack(item)
            except ValueError as error:
                raise ValueError(f"{self.name}.{name}: {error}") from None
        return bytes(data)

    def unpack(self, data: bytes) -> dict[str, Any]:
        """Return every field by name. Raises ValueError unless ``data`` has exactly ``size`` bytes."""
        if len(data) != self.size:
            raise ValueError(f"{self.name} has {self.size} bytes, not {len(data)}")
        fields: dict[str, Any] = self._at_once[0](data)
        return fields

    def to_json(self, value: object) -> dict[str, Any]:
        return {name: self[name].kind.to_json(item) for name, item in _members(value).items()}

    def from_json(self, value: object) -> dict[str, Any]:
        return {name: self[name].kind.from_json(item) for name, item in _members(value).items()}


U8 = Scalar("u8", 1)
U16 = Scalar("u16", 2)
U32 = Scalar("u32", 4)
U64 = Scalar("u64", 8)
S64 = Scalar("s64", 8, signed=True)
ADDR = Scalar("u64", 8, address=True)

PADDING = "padding"


def struct(name: str, *members: tuple[str, Kind]) -> Struct:
    """Lay out a structure as a C compiler does. A member called ``PADDING`` is named padding of the kernel's header.

    ``("rax rbx", ADDR)`` stands for two members, like ``__u64 rax, rbx;``.
    """
    fields: list[Field] = []
    end, align = 0, 1
    for names, kind in members:
        for member_name in names.split():
            offset = _round_up(end, kind.align)
            fields.append(Field(member_name, offset, kind, hidden=member_name == PADDING))
            end, align = offset + kind.size, max(align, kind.align)
    return Struct(name, tuple(fields), _round_up(end, align), align)


def _leaf(kind: Kind) -> codec.Leaf:
    if isinstance(kind, Scalar):
        return codec.number(kind.size, signed=kind.signed)
    if isinstance(kind, Array):
        return codec.array(_leaf(kind.item), kind.count)
    if not isinstance(kind, Struct):
        return codec.raw(kind.size)
    members, padded, end = [], "", 0
    for member in kind.fields:
        padded += f"{member.offset - end}x"
        if member.hidden:
            padded += f"{member.size}x"
        else:
            leaf = _leaf(member.kind)
            members.append((member.name, leaf))
            padded += leaf[0]
        end = member.end
    return codec.record(members, f"{padded}{kind.size - end}x")


def _round_up(value: int, align: int) -> int:
    return -(-value // align) * align


def _items(value: object) -> list[object]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise ValueError(f"{value!r} is not a list")
    return list(cast("Iterable[object]", value))


def _members(value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{value!r} is not a mapping")
    return cast("Mapping[str, object]", value)
