"""Exits that wait for ``complete_userspace_io``, as plain data that a snapshot can hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from kickstand.guests.x86.memory.physical import Fragment
from kickstand.guests.x86.memory.virtual import MAX_INSTRUCTION

READ_AHEAD = 1024  # bytes that INS asks for at most
_PORT_WIDTH = 4
_PER_EXIT = 8
_WIDEST = 64  # bytes of one access
_MOST_PIECES = 1024  # of one instruction
_HIGHEST = (1 << 64) - 1
_DECODED = 17  # sixteen registers and RFLAGS


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
    ``decoded``: the general registers and RFLAGS it was decoded with, if userspace has set others meanwhile.
    """

    rip: int
    code: bytes
    reads: list[bytes]
    data: bytearray
    missing: list[Fragment]
    decoded: tuple[int, ...] | None = None


@dataclass(slots=True)
class PendingWrite:
    """MMIO writes of an instruction that is finished but for them; the first is with userspace."""

    pieces: list[tuple[int, bytes]] = field(default_factory=list)


@dataclass(slots=True)
class PendingMsr:
    """RDMSR or WRMSR of a register that the kernel answers, or with ``user`` userspace; ``length`` bytes at RIP."""

    length: int
    write: bool
    user: bool = False


@dataclass(slots=True)
class PendingHypercall:
    """VMCALL, ``length`` bytes at RIP; userspace has what RAX gets."""

    length: int


Pending = PendingPort | PendingRead | PendingWrite | PendingMsr | PendingHypercall


def dump_pending(pending: Pending | None) -> dict[str, Any] | None:
    """Make JSON of it."""
    if pending is None:
        return None
    if isinstance(pending, PendingPort):
        return {"kind": "port", **asdict(pending)}
    if isinstance(pending, PendingMsr):
        return {"kind": "msr", **asdict(pending)}
    if isinstance(pending, PendingHypercall):
        return {"kind": "hypercall", **asdict(pending)}
    if isinstance(pending, PendingWrite):
        return {"kind": "write", "pieces": [[gpa, data.hex()] for gpa, data in pending.pieces]}
    return {
        "kind": "read",
        "rip": pending.rip,
        "code": pending.code.hex(),
        "reads": [data.hex() for data in pending.reads],
        "data": pending.data.hex(),
        "missing": [[part.gpa, part.offset, part.length] for part in pending.missing],
        "decoded": pending.decoded,
    }


def load_pending(values: Mapping[str, Any] | None) -> Pending | None:
    """Undo ``dump_pending``. ``KeyError``, ``TypeError``, ``ValueError``: no instruction stops like that."""
    if values is None:
        return None
    kind = values["kind"]
    if kind not in _LOADERS:
        raise ValueError(f"{kind!r} is no pending access")
    return _LOADERS[kind](values)


def _load_port(values: Mapping[str, Any]) -> PendingPort:
    size = within(values["size"], 1, _PORT_WIDTH)
    bits = values["address_bits"]
    if bits not in (16, 32, 64):
        raise ValueError(f"addresses have no {bits!r} bits")
    return PendingPort(
        rip=within(values["rip"], 0, _HIGHEST),
        length=within(values["length"], 1, MAX_INSTRUCTION),
        size=size,
        count=within(values["count"], 1, READ_AHEAD // size),
        out=bool(values["out"]),
        string=bool(values["string"]),
        address_bits=bits,
        repeat=bool(values["repeat"]),
    )


def _load_write(values: Mapping[str, Any]) -> PendingWrite:
    pieces = [(within(gpa, 0, _HIGHEST), bytes.fromhex(data)) for gpa, data in values["pieces"]]
    within(len(pieces), 1, _MOST_PIECES)
    if not all(0 < len(data) <= _PER_EXIT for _, data in pieces):
        raise ValueError("an exit carries one to eight bytes")
    return PendingWrite(pieces)


def _load_read(values: Mapping[str, Any]) -> PendingRead:
    code, reads = bytes.fromhex(values["code"]), [bytes.fromhex(data) for data in values["reads"]]
    data = bytearray.fromhex(values["data"])
    missing = [Fragment(within(gpa, 0, _HIGHEST), offset, length) for gpa, offset, length in values["missing"]]
    within(len(code), 1, MAX_INSTRUCTION)
    within(len(missing), 1, _MOST_PIECES)
    within(max(map(len, (data, *reads))), 1, _WIDEST)
    within(len(reads), 0, _MOST_PIECES)
    for part in missing:
        within(part.length, 1, _PER_EXIT)
        within(part.offset, 0, len(data) - part.length)
    decoded = values.get("decoded")
    if decoded is not None:
        decoded = tuple(within(value, 0, _HIGHEST) for value in decoded)
        within(len(decoded), _DECODED, _DECODED)
    return PendingRead(within(values["rip"], 0, _HIGHEST), code, reads, data, missing, decoded)


def _load_msr(values: Mapping[str, Any]) -> PendingMsr:
    return PendingMsr(
        within(values["length"], 1, MAX_INSTRUCTION), bool(values["write"]), bool(values.get("user", False))
    )


def _load_hypercall(values: Mapping[str, Any]) -> PendingHypercall:
    return PendingHypercall(within(values["length"], 1, MAX_INSTRUCTION))


_LOADERS: dict[str, Callable[[Mapping[str, Any]], Pending]] = {
    "port": _load_port,
    "write": _load_write,
    "read": _load_read,
    "msr": _load_msr,
    "hypercall": _load_hypercall,
}


def within(value: object, lowest: int, highest: int) -> int:
    """``value`` if it is an integer of that range. ``ValueError``: it is not."""
    if not isinstance(value, int) or not lowest <= value <= highest:
        raise ValueError(f"{value!r} is not between {lowest} and {highest}")
    return value
