"""An interrupt on its way to local APICs, and which of them it names (``struct kvm_lapic_irq``)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

XAPIC_BROADCAST = 0xFF
X2APIC_BROADCAST = 0xFFFF_FFFF
FLAT, CLUSTER = 0xFFFF_FFFF, 0x0FFF_FFFF  # models of logical destinations in xAPIC mode


class Delivery(IntEnum):
    """The delivery mode, as bits 8 to 10 of an ICR, a redirection entry or an MSI's data have it."""

    FIXED = 0
    LOWEST = 1
    SMI = 2
    REMRD = 3
    NMI = 4
    INIT = 5
    STARTUP = 6
    EXTINT = 7


class Shorthand(IntEnum):
    """The ICR's destination shorthand."""

    NONE = 0
    SELF = 1
    ALL = 2
    OTHERS = 3


@dataclass(frozen=True, slots=True)
class Message:
    """One interrupt message. ``source``: the vCPU whose ICR sent it, None for an MSI or an IOAPIC pin."""

    vector: int
    dest: int
    delivery: Delivery = Delivery.FIXED
    logical: bool = False
    level_triggered: bool = False
    assert_level: bool = True
    shorthand: Shorthand = Shorthand.NONE
    redirection_hint: bool = False
    source: int | None = None
    pin: int | None = None  # the IOAPIC pin it comes from

    @property
    def to_lowest_priority(self) -> bool:
        """One of those named takes it (``kvm_lowest_prio_delivery``)."""
        return self.delivery is Delivery.LOWEST or self.redirection_hint

    @property
    def is_physical_broadcast(self) -> bool:
        """To everybody: KVM delivers lowest priority as fixed then."""
        return not self.logical and self.dest == XAPIC_BROADCAST and self.shorthand is Shorthand.NONE


def msi(address: int, data: int, *, wide: bool = False) -> Message:
    """The message that a write of ``data`` (32 bits) to ``address`` (64 bits) is (``kvm_set_msi_irq``).

    ``wide``: the upper half of the address has bits 8 to 31 of the destination.
    """
    return Message(
        vector=data & 0xFF,
        dest=address >> 12 & 0xFF | (address >> 32 & 0xFFFF_FF00 if wide else 0),
        delivery=Delivery(data >> 8 & 7),
        logical=bool(address & 4),
        level_triggered=bool(data >> 15 & 1),
        redirection_hint=bool(address & 8),
    )


def ipi(icr: int, dest: int, source: int) -> Message:
    """The message that a write of an ICR's lower half is; ``dest`` from its upper half (``kvm_apic_send_ipi``)."""
    return Message(
        vector=icr & 0xFF,
        dest=dest,
        delivery=Delivery(icr >> 8 & 7),
        logical=bool(icr >> 11 & 1),
        level_triggered=bool(icr >> 15 & 1),
        assert_level=bool(icr >> 14 & 1),
        shorthand=Shorthand(icr >> 18 & 3),
        source=source,
    )


@dataclass(frozen=True, slots=True)
class Station:
    """What a local APIC is addressed by: vCPU, id, logical id, and the model that says how to read the latter."""

    vcpu_id: int
    number: int
    logical_id: int
    model: int
    x2apic: bool

    def is_named(self, message: Message, *, everybody: bool = True) -> bool:
        """``kvm_apic_match_dest``: the message's destination is, or includes, this APIC.

        ``everybody``: 0xff of an MSI or an IOAPIC names all, also in x2APIC mode.
        """
        if message.shorthand is not Shorthand.NONE:
            mine = message.source == self.vcpu_id
            return message.shorthand is Shorthand.ALL or mine is (message.shorthand is Shorthand.SELF)
        dest = message.dest
        if everybody and message.source is None and dest == XAPIC_BROADCAST and self.x2apic:
            dest = X2APIC_BROADCAST
        if dest == (X2APIC_BROADCAST if self.x2apic else XAPIC_BROADCAST):
            return True
        if message.logical:
            return self._is_named_logically(dest)
        return dest == (self.vcpu_id if dest > XAPIC_BROADCAST else self.number)

    def _is_named_logically(self, dest: int) -> bool:
        mine = self.logical_id
        if self.x2apic:
            return mine >> 16 == dest >> 16 and bool(mine & dest & 0xFFFF)
        mine >>= 24
        if self.model == FLAT:
            return bool(mine & dest)
        return self.model == CLUSTER and mine >> 4 == dest >> 4 and bool(mine & dest & 0xF)
