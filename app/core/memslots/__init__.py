"""Memory slots: what a call may make of them (``regions``), and the set that vCPUs read (``active``)."""

from kickstand.core.memslots.active import UPDATE_IN_PROGRESS, Memslots, Settled
from kickstand.core.memslots.regions import (
    ADDRESS_SPACES,
    SET_MEMORY,
    USER_SPACE_END,
    Change,
    Plan,
    Region,
    Slot,
    invalidated,
    plan,
)
from kickstand.core.memslots.table import SlotTable

__all__ = [
    "ADDRESS_SPACES", "SET_MEMORY", "UPDATE_IN_PROGRESS", "USER_SPACE_END", "Change", "Memslots", "Plan", "Region",
    "Settled", "Slot", "SlotTable", "invalidated", "plan",
]  # fmt: skip
