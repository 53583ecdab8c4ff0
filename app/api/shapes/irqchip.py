"""Interrupt controllers in the kernel: their state, routing, lines and messages."""

from __future__ import annotations

import errno
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from kickstand.api.shapes.values import U32, U64, Body, Count, Digits, Done
from kickstand.core.arch.irq.routing import ChipId, MsiRoute, PinRoute, Route
from kickstand.core.errors import KvmError
from kickstand.core.uapi import MAX_IRQ_ROUTES

Vector = Annotated[int, Field(ge=0, le=0xFF)]


class ChipStateIn(Body):
    """The state of a controller, in the ABI's layout, as hex; what is shorter than the structure ends in zeros."""

    state: Annotated[str, Field(pattern=r"^(?:[0-9a-fA-F]{2})*$", max_length=2 * 1024)]

    def bytes_of(self, size: int) -> bytes:
        """The structure. EINVAL: longer than that."""
        given = bytes.fromhex(self.state)
        if len(given) > size:
            raise KvmError(errno.EINVAL, "state", f"{len(given)} bytes; the structure has {size}", field="state")
        return given.ljust(size, b"\0")


class ChipState(BaseModel):
    """The state of an interrupt controller in the ABI's layout, as hex."""

    state: Digits


class CreateIrqchip(Body):
    """KVM_CREATE_IRQCHIP, or KVM_CAP_SPLIT_IRQCHIP."""

    split: bool = False
    pins: Annotated[int, Field(ge=0, le=MAX_IRQ_ROUTES)] = 24


class TprAccessReporting(Body):
    """``kvm_tpr_access_ctl``."""

    enabled: bool


class VapicAddr(Body):
    """``kvm_vapic_addr``."""

    vapic_addr: U64


class ApicTimer(BaseModel):
    """The timer of a local APIC, counting."""

    due_ns: Count
    mode: Literal["one_shot", "periodic", "tsc_deadline"]
    vector: Vector
    masked: bool


Waker = Literal["extint", "init", "interrupt", "nmi", "signal", "sipi", "timer"]


class PendingInterrupts(BaseModel):
    """What a vCPU has pending, and what would end its sleep."""

    requested: list[Vector]
    in_service: list[Vector]
    task_priority: Vector | None
    nmi: bool
    init: bool
    sipi: Vector | None
    extint: bool
    timer: ApicTimer | None
    asleep: bool
    wakes: list[Waker]
    least_vector: Vector | None


class CreatePit(Body):
    """``kvm_pit_config``."""

    flags: U32 = 0


class GsiRoute(Body):
    """``kvm_irq_routing_entry``: to a pin of a controller, or a message of its own."""

    gsi: U32
    irqchip: Annotated[int, Field(ge=0, le=2)] | None = None
    pin: U32 = 0
    address: U64 | None = None
    data: U32 = 0
    flags: U32 = 0

    def entry(self) -> tuple[int, Route, int]:
        """As the core has it. EINVAL: neither a pin nor a message, or both."""
        if (self.irqchip is None) is (self.address is None):
            raise KvmError(errno.EINVAL, "KVM_SET_GSI_ROUTING", "name an irqchip or an address", field="entries")
        if self.address is not None:
            return self.gsi, MsiRoute(self.address, self.data), self.flags
        return self.gsi, PinRoute(ChipId(self.irqchip or 0), self.pin), self.flags


class GsiRouting(Body):
    """KVM_SET_GSI_ROUTING: the whole table."""

    entries: Annotated[list[GsiRoute], Field(max_length=MAX_IRQ_ROUTES)]


class IrqLine(Body):
    """``kvm_irq_level``."""

    irq: U32
    level: int = Field(ge=0, le=1)


class Msi(Body):
    """``kvm_msi``; ``address`` may stand for its two halves."""

    address: U64 | None = None
    address_lo: U32 = 0
    address_hi: U32 = 0
    data: U32
    flags: U32 = 0
    devid: U32 = 0

    def target(self) -> int:
        """The whole address."""
        return self.address_hi << 32 | self.address_lo if self.address is None else self.address


class MsiDone(Done):
    """KVM_SIGNAL_MSI returned."""

    delivered: bool
