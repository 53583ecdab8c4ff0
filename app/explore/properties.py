"""The properties of the explorer, and how each is decided."""

from __future__ import annotations

from dataclasses import dataclass

from app.explore.observe import Flag

NO_FLAG = Flag(0)


@dataclass(frozen=True, slots=True)
class Property:
    """One property: ``fairness`` is what its verdict assumes of the scheduler."""

    name: str
    summary: str
    safety: bool
    fairness: str = "none"
    flag: Flag = NO_FLAG


PROPERTIES = {
    item.name: item
    for item in (
        Property(
            "missing_slot",
            "no guest access looks up a slot that is missing because a transaction is in progress",
            True,
            flag=Flag.MISSING_SLOT,
        ),
        Property(
            "spurious_mmio",
            "no KVM_RUN returns MMIO or INTERNAL_ERROR for an address that is RAM before and after",
            True,
            flag=Flag.SPURIOUS_MMIO,
        ),
        Property("deadlock", "no state where nothing can move and somebody is not at rest", True),
        Property("bounded_busy", "no vCPU returns EINTR more than twice in a row inside a window", True),
        Property("lost_exit", "no finished device exit is replaced by EINTR", True, flag=Flag.LOST_EXIT),
        Property(
            "livelock", "no run in which a window stays open for ever and a vCPU returns EINTR again and again", False
        ),
        Property("kick_returns", "every KICK that begins returns", False, "weak"),
        Property("progress", "vCPU 0 of every VM is in guest mode or halted again and again", False, "weak"),
        Property(
            "resume_runs",
            "once all transactions are over every vCPU is in guest mode or halted eventually",
            False,
            "weak",
        ),
        Property(
            "dirty_kept", "no page a guest wrote is missing from what the VMM collected", True, flag=Flag.DIRTY_LOST
        ),
        Property("closed_window", "no vCPU reads or writes guest memory inside a window", True),
        Property(
            "no_bystander", "only KVM_RUN of this VM is waited for; other users of slots stay out of the window", True
        ),
    )
}

SAFETY = tuple(name for name, item in PROPERTIES.items() if item.safety)
LIVENESS = tuple(name for name, item in PROPERTIES.items() if not item.safety)
