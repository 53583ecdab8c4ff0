"""Where each global system interrupt goes: pins of the controllers, or a message of its own."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType

from kickstand.core.arch.irq.ioapic import PINS
from kickstand.core.errors import KvmError
from kickstand.core.uapi import MAX_IRQ_ROUTES

NAME = "KVM_SET_GSI_ROUTING"
MAX_ROUTES = MAX_IRQ_ROUTES
VALID_DEVID = 1
PIC_INPUTS = 8


class ChipId(IntEnum):
    """``KVM_IRQCHIP_*``."""

    PIC_MASTER = 0
    PIC_SLAVE = 1
    IOAPIC = 2


class RouteType(IntEnum):
    """``KVM_IRQ_ROUTING_*``; the others are of other machines or Hyper-V's and Xen's."""

    IRQCHIP = 1
    MSI = 2


@dataclass(frozen=True, slots=True)
class PinRoute:
    """To an input of a controller."""

    chip: ChipId
    pin: int


@dataclass(frozen=True, slots=True)
class MsiRoute:
    """A message of its own."""

    address: int
    data: int

    @property
    def is_wide(self) -> bool:
        """Its address can name a 32-bit APIC id (``kvm_msi_route_invalid``)."""
        return not self.address >> 32 & 0xFF


Route = PinRoute | MsiRoute
Table = Mapping[int, tuple[Route, ...]]


def pic_route(irq: int) -> PinRoute:
    """Input ``irq`` (0 to 15) of the 8259 pair."""
    return PinRoute(ChipId(irq >> 3), irq & 7)


DEFAULT: Table = MappingProxyType(
    {gsi: (PinRoute(ChipId.IOAPIC, gsi), *((pic_route(gsi),) if gsi < 2 * PIC_INPUTS else ())) for gsi in range(PINS)}
)
"""What KVM_CREATE_IRQCHIP sets up: GSI n is pin n of the IOAPIC, below 16 input n of the 8259 pair too."""
EMPTY: Table = MappingProxyType({})


def check_route(gsi: int, route: Route, flags: int, *, split: bool, wide: bool = False) -> None:
    """One entry of KVM_SET_GSI_ROUTING. EINVAL: a number that is too large, a pin that there is not, a flag.

    ``wide``: messages name 32-bit APIC ids.
    """
    if not 0 <= gsi < MAX_ROUTES:
        raise KvmError(errno.EINVAL, NAME, f"gsi {gsi} is not below {MAX_ROUTES}", field="gsi")
    if flags & ~(VALID_DEVID if isinstance(route, MsiRoute) else 0):
        raise KvmError(errno.EINVAL, NAME, f"flags {flags:#x} mean nothing here", field="flags")
    if isinstance(route, MsiRoute):
        if wide and not route.is_wide:
            raise KvmError(errno.EINVAL, NAME, "bits 32 to 39 of the address mean nothing", field="address")
        return
    if split:
        raise KvmError(errno.EINVAL, NAME, "a split irqchip has no pins in the kernel", field="type")
    pins = PINS if route.chip is ChipId.IOAPIC else PIC_INPUTS
    if not 0 <= route.pin < pins:
        raise KvmError(errno.EINVAL, NAME, f"pin {route.pin} is not below {pins}", field="pin")


def table(entries: Iterable[tuple[int, Route]]) -> Table:
    """The table of a list of entries. EINVAL: a GSI has two routes to one controller, or a message beside a route."""
    made: dict[int, tuple[Route, ...]] = {}
    for gsi, route in entries:
        beside = made.get(gsi, ())
        for other in beside:
            if isinstance(route, MsiRoute) or isinstance(other, MsiRoute) or route.chip is other.chip:
                raise KvmError(errno.EINVAL, NAME, f"gsi {gsi} has two routes that exclude each other", field="gsi")
        made[gsi] = (*beside, route)
    return made
