"""Interrupts and exceptions that wait to be delivered, and what two of them in a row become."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from kickstand.guests.x86.state.faults import CONTRIBUTORY, DF, PF, WITH_ERROR_CODE, GuestFaultError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Event:
    """Something to deliver. ``software``: INT n; ``exception``: takes part in double faults."""

    vector: int
    error: int | None = None
    software: bool = False
    exception: bool = False
    return_rip: int | None = None
    address: int | None = None

    @classmethod
    def from_fault(cls, fault: GuestFaultError) -> Event:
        """The exception a fault stands for."""
        error = fault.error if fault.vector in WITH_ERROR_CODE else None
        return cls(fault.vector, error, exception=True, address=fault.address)

    def to_json(self) -> dict[str, Any]:
        """Make plain data of it."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any] | None) -> Event | None:
        """Undo ``to_json``."""
        return None if values is None else cls(**values)


@dataclass(frozen=True, slots=True)
class Told:
    """Numbers that KVM_SET_VCPU_EVENTS has named last: they are told also where nothing of the kind waits any more."""

    exception: int = 0
    has_error_code: int = 0
    error_code: int = 0
    interrupt: int = 0
    shadow: int = 0
    """Which instructions cast the shadow that is there now; 0: the guest's own."""


@dataclass(slots=True)
class Events:
    """What waits to be delivered (``kvm_vcpu_events``)."""

    queued: Event | None = None
    interrupt: int | None = None
    nmis: int = 0
    nmi_masked: bool = False
    nmi_injected: bool = False
    """One was on its way when the state was saved: it is delivered at the next entry, masked or not."""
    told: Told = Told()

    def forget(self) -> None:
        """Nothing waits any more."""
        self.queued, self.interrupt, self.nmis, self.nmi_masked = None, None, 0, False
        self.nmi_injected = False


def combine(first: Event, second: Event) -> Event | None:
    """What a fault during the delivery of ``first`` becomes; None: triple fault."""
    if first.vector == DF and first.exception:
        return None
    if not first.exception:
        return second
    severe = second.vector in CONTRIBUTORY or (second.vector == PF and first.vector == PF)
    if severe and first.vector in CONTRIBUTORY | {PF}:
        return Event(DF, 0, exception=True)
    return second
