"""What waits for a vCPU to look at it, as its thread is told: an interrupt, or INIT and a start-up IPI."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Waiting(IntEnum):
    """An interrupt that waits for delivery, and where its vector is to be had."""

    NONE = 0
    APIC = 1
    EXTINT = 2  # at the 8259 pair, or at userspace's


@dataclass(frozen=True, slots=True)
class Start:
    """What INIT and SIPI ask for: a reset, and the page where to start."""

    reset: bool
    vector: int | None


NO_START = Start(reset=False, vector=None)
