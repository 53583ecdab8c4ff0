"""Exits that wait for ``complete_userspace_io``, as plain data that a snapshot can hold."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from app.guests.x86.memory import Fragment

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(slots=True)
class PendingPort:
    """Port I/O. IN and OUT move RIP on completion; OUTS has written its registers before the exit."""

    rip: int
    length: int
    size: int
    count: int
    out: bool
    string: bool = False
    address_bits: int = 64
    repeat: bool = False


@dataclass(slots=True)
class PendingRead:
    """An MMIO read: the first of ``missing`` is with userspace; ``data`` is the access so far.

    ``code`` is the instruction and ``reads`` what its earlier reads gave, so that it can be done once all is known.
    """

    rip: int
    code: bytes
    reads: list[bytes]
    data: bytearray
    missing: list[Fragment]


@dataclass(slots=True)
class PendingWrite:
    """MMIO writes of an instruction that is finished but for them; the first is with userspace."""

    pieces: list[tuple[int, bytes]] = field(default_factory=list)


Pending = PendingPort | PendingRead | PendingWrite


def dump_pending(pending: Pending | None) -> dict[str, Any] | None:
    """Make JSON of it."""
    if pending is None:
        return None
    if isinstance(pending, PendingPort):
        return {"kind": "port", **asdict(pending)}
    if isinstance(pending, PendingWrite):
        return {"kind": "write", "pieces": [[gpa, data.hex()] for gpa, data in pending.pieces]}
    return {
        "kind": "read",
        "rip": pending.rip,
        "code": pending.code.hex(),
        "reads": [data.hex() for data in pending.reads],
        "data": pending.data.hex(),
        "missing": [[part.gpa, part.offset, part.length] for part in pending.missing],
    }


def load_pending(values: Mapping[str, Any] | None) -> Pending | None:
    """Undo ``dump_pending``."""
    if values is None:
        return None
    fields = {name: value for name, value in values.items() if name != "kind"}
    if values["kind"] == "port":
        return PendingPort(**fields)
    if values["kind"] == "write":
        return PendingWrite([(gpa, bytes.fromhex(data)) for gpa, data in fields["pieces"]])
    return PendingRead(
        rip=fields["rip"],
        code=bytes.fromhex(fields["code"]),
        reads=[bytes.fromhex(data) for data in fields["reads"]],
        data=bytearray.fromhex(fields["data"]),
        missing=[Fragment(*part) for part in fields["missing"]],
    )
