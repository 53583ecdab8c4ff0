"""The operation ``ioctl``: any ioctl of the table, with its structure by the names of its fields, or as bytes.

The structure lies at ``STRUCTURE`` and what it points to at ``DATA``, for the emulator as for the real kernel (which
has these pages mapped there): so one script says the same to both.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any

from kickstand.core.errors import KvmError
from kickstand.core.uapi import Direction, Fd, Ioctl
from kickstand.core.uapi.layout import Struct
from kickstand.runtime.calls.ioctl import Declaration
from kickstand.runtime.table import DECLARED
from kickstand.scripts.language.errors import ScriptError
from kickstand.scripts.language.operations import DATA, ROOM, STRUCTURE
from kickstand.scripts.language.operations import Ioctl as Operation

_OWN = frozenset((
    "KVM_RUN", "KVM_CREATE_VCPU", "KVM_SET_USER_MEMORY_REGION", "KVM_SET_USER_MEMORY_REGION2", "KVM_CREATE_IRQCHIP",
    "KVM_KICK_ALL_RUNNING_VCPUS", "KVM_RESUME_ALL_KICKED_VCPUS",
))  # fmt: skip
"""Those that have operations of their own, which take more or wait."""


class Pages:
    """The program's memory, as far as it matters: a structure, and what that points to. EFAULT beside it."""

    def __init__(self, structure: bytes, data: bytes) -> None:
        self._pages = {
            STRUCTURE: bytearray(structure.ljust(ROOM, b"\0")),
            DATA: bytearray(data.ljust(ROOM, b"\0")),
        }

    def _find(self, address: int, length: int) -> tuple[bytearray, int]:
        for base, page in self._pages.items():
            if base <= address and address + length <= base + ROOM:
                return page, address - base
        raise KvmError(errno.EFAULT, "ioctl", f"{length} bytes at {address:#x} are not there")

    def read(self, address: int, length: int) -> bytes:
        """``copy_from_user``."""
        page, at = self._find(address, length)
        return bytes(page[at : at + length])

    def write(self, address: int, data: bytes) -> None:
        """``copy_to_user``."""
        page, at = self._find(address, len(data))
        page[at : at + len(data)] = data


def declared(operation: Operation) -> Declaration:
    """The ioctl that is meant. ``ScriptError``: there is none of that name, or it has an operation of its own."""
    fd = Fd.VM if operation.vcpu is None else Fd.VCPU
    name = f"KVM_{operation.name.removeprefix('KVM_')}"
    for found in DECLARED:
        if found.abi is not None and (found.abi.fd, found.abi.name) == (fd, name) and name not in _OWN:
            return found
    raise ScriptError(f"{operation.name!r} is no ioctl of a {fd.value} for this operation", field="args.name")


def pages_of(operation: Operation, found: Declaration) -> tuple[int, Pages]:
    """The argument and the memory. ``ScriptError``: fields that the structure has not, or cannot hold."""
    abi = found.abi
    if operation.number is not None or abi is None:
        return operation.number or 0, Pages(b"", b"")
    structure = bytes.fromhex(operation.hex)
    if operation.fields is not None:
        if abi.payload is None:
            raise ScriptError(f"{abi.name} has no fields here: say its bytes", field="args.fields")
        structure = _packed(abi.payload, operation.fields)
    return STRUCTURE, Pages(structure, bytes.fromhex(operation.data))


def _packed(payload: Struct, fields: Mapping[str, Any]) -> bytes:
    """What is not named is zero."""
    zeros = payload.to_json(payload.unpack(bytes(payload.size)))
    try:
        return payload.pack(payload.from_json({**zeros, **fields}))
    except (ValueError, TypeError, KeyError) as error:
        raise ScriptError(f"{payload.name}: {error}", field="args.fields") from None


def answer(operation: Operation, abi: Ioctl, value: int, pages: Pages) -> dict[str, Any]:
    """What the ioctl returned, and what it has filled in."""
    result: dict[str, Any] = {"value": value}
    if operation.number is None and abi.direction & Direction.READ:
        if abi.payload is not None:
            result["fields"] = abi.payload.to_json(abi.payload.unpack(pages.read(STRUCTURE, abi.payload.size)))
        else:
            result["hex"] = pages.read(STRUCTURE, ROOM).rstrip(b"\0").hex()
    if operation.data:
        result["data"] = pages.read(DATA, len(operation.data) // 2).hex()
    return result
