"""How scripts write what the machine takes and answers: answers of KVM_RUN, structures, routes, the pattern."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from kickstand.core.arch.coalesced import Entry
from kickstand.core.arch.irq.routing import ChipId, MsiRoute, PinRoute
from kickstand.core.errors import KvmError
from kickstand.scripts.language import operations as ops
from kickstand.scripts.language.errors import ScriptError

Result = dict[str, Any]


@cache
def _units() -> bytes:
    return struct.pack(f"<{1 << 16}I", *range(0xC35A_0000, 0xC35B_0000))


def pattern(size: int) -> bytes:
    """What ``fill_pattern`` writes: 32-bit unit i is ``i & 255, i >> 8 & 255, 0x5a, 0xc3``."""
    units = _units()
    return (units * -(-size // len(units)))[:size]


def run_result(answer: Mapping[str, Any]) -> Result:
    """KVM_RUN's answer (``Machine.run``) in the form of the recorded traces."""
    result: Result = {name: answer[name] for name in ("ret", "errno")}
    result["exit_reason"] = str(answer["exit_reason"]).removeprefix("KVM_EXIT_")
    details: Mapping[str, Any] = answer.get("io") or answer.get("mmio") or {}
    result |= {name: value for name, value in details.items() if value is not None}
    if "phys_addr" in result:
        result["phys_addr"] = int(result["phys_addr"], 16)
    if "internal_error" in answer:
        result["suberror"] = answer["internal_error"]["suberror"]
    return result


def coalesced_result(taken: Iterable[Entry]) -> Result:
    """Coalesced writes that were taken from their ring."""
    return {"writes": [{"addr": entry.phys_addr, "pio": entry.pio, "hex": entry.data.hex()} for entry in taken]}


def structure(digits: str, size: int) -> bytes:
    """Bytes of a structure; what is shorter ends in zeros. ``ScriptError``: it is longer."""
    data = bytes.fromhex(digits)
    if len(data) > size:
        raise ScriptError(f"{len(data)} bytes; the structure has {size}", field="args.hex")
    return data.ljust(size, b"\0")


def target(route: ops.Route) -> PinRoute | MsiRoute:
    """Where a route leads. EINVAL: there is no such chip. ``ScriptError``: it names both ways or none."""
    if (route.irqchip is None) is (route.address is None):
        raise ScriptError("a route names an irqchip or an address", field="args.entries")
    if route.address is not None:
        return MsiRoute(route.address, route.data)
    if route.irqchip is None or route.irqchip not in ChipId.__members__.values():
        raise KvmError(errno.EINVAL, "KVM_SET_GSI_ROUTING", f"there is no chip {route.irqchip}", field="irqchip")
    return PinRoute(ChipId(route.irqchip), route.pin)
