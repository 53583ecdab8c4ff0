"""Calls of ioctls that have no operation of their own, told as the operation ``ioctl``.

A method's arguments are put back into the structure that they were taken from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from kickstand.core.arch.msr_filter import Range
from kickstand.core.uapi import Direction, Fd, Ioctl
from kickstand.runtime.table import DECLARED
from kickstand.scripts.language.operations import DATA

Given = Mapping[str, Any]
Parts = dict[str, Any]  # of the operation's arguments: ``fields``, ``number``, ``hex``, ``data``


def _bytes(given: Given) -> Parts:
    return {"hex": given["data"].hex()}


def _fields(*names: str, **renamed: str) -> Callable[[Given], Parts]:
    """A field for each of the method's arguments; ``renamed``: the field's name where it is another."""
    names_of = dict(zip(names, names, strict=True)) | renamed
    return lambda given: {"fields": {field: given[argument] for argument, field in names_of.items()}}


def _number(name: str) -> Callable[[Given], Parts]:
    return lambda given: {"number": given[name]}


def _whole(name: str) -> Callable[[Given], Parts]:
    """An argument that has all fields."""
    return lambda given: {"fields": dict(given[name]) if isinstance(given[name], Mapping) else asdict(given[name])}


def _capability(given: Given) -> Parts:
    args = [*given["args"], 0, 0, 0, 0][:4]  # a caller that is no program may leave some out
    return {"fields": {"cap": int(given["capability"]), "flags": given["flags"], "args": args}}


def _attribute(given: Given) -> Parts:
    fields = {"group": given["group"], "attr": given["attribute"], "addr": DATA}
    return {"fields": fields, "data": given["value"].to_bytes(8, "little").hex()}


def _filter(given: Given) -> Parts:
    """The bitmaps follow one another."""
    ranges: list[dict[str, int]] = []
    data = b""
    for range_ in given["ranges"]:
        ranges.append(_range(range_, DATA + len(data)))
        data += range_.bitmap
    return {"fields": {"flags": given["flags"], "ranges": ranges}, "data": data.hex()}


def _range(range_: Range, bitmap: int) -> dict[str, int]:
    return {"flags": range_.flags, "nmsrs": range_.nmsrs, "base": range_.base, "bitmap": bitmap}


_PARTS: dict[str, Callable[[Given], Parts]] = {
    "set_fpu": _bytes, "set_xsave": _bytes, "set_debugregs": _bytes,
    "set_sregs2": _whole("sregs"), "set_vcpu_events": _whole("events"),
    "set_guest_debug": _fields("control", registers="debugreg"),
    "set_tsc_khz": _number("khz"), "set_vcpu_tsc_khz": _number("khz"), "set_clock": _whole("data"),
    "set_boot_cpu_id": _number("vcpu_id"), "set_nr_mmu_pages": _number("count"),
    "kvmclock_ctrl": lambda _: {}, "set_vcpu_attribute": _attribute,
    "enable_cap": _capability, "enable_vcpu_cap": _capability, "set_msr_filter": _filter,
    "setup_mce": _fields("mcg_cap"), "set_mce": _whole("error"),
    "report_tpr_access": _fields("enabled", "flags"), "set_vapic_addr": _fields(address="vapic_addr"),
    "register_coalesced": _whole("zone"), "unregister_coalesced": _whole("zone"),
    "reset_dirty_rings": lambda _: {},
}  # fmt: skip
_ABI: dict[str, Ioctl] = {found.method: found.abi for found in DECLARED if found.abi is not None}


def told(method: str) -> bool:
    """Calls of this method are told here."""
    return method in _PARTS


def of_vcpu(method: str) -> bool:
    """It is an ioctl of a vCPU."""
    return told(method) and _ABI[method].fd is Fd.VCPU


def arguments(method: str, given: Given) -> dict[str, Any]:
    """The operation's arguments."""
    abi, parts = _ABI[method], _PARTS[method](given)
    if "fields" in parts:
        assert abi.payload is not None
        nothing = abi.payload.unpack(bytes(abi.payload.size))
        parts["fields"] = abi.payload.to_json({**nothing, **parts["fields"]})
    of = {"vcpu": given["vcpu_id"]} if of_vcpu(method) else {}
    return {"name": abi.name.removeprefix("KVM_"), **of, **parts}


def result(method: str, asked: Mapping[str, Any], returned: object) -> dict[str, Any]:
    """The fields of an answer that is no failure."""
    answer: dict[str, Any] = {"value": returned if isinstance(returned, int) else 0}
    if _ABI[method].direction & Direction.READ:
        answer["fields"] = asked["fields"]
    return answer | ({"data": asked["data"]} if asked.get("data") else {})
