"""One closed world: what the explorer searches at a time."""

from __future__ import annotations

from dataclasses import dataclass

from kickstand.core.variants import Variant
from kickstand.explore.world.scenarios import Scenario

BEHAVIOURS = WELL, CARELESS = "well", "careless"


def infers_windows(variant: type[Variant]) -> bool:
    """The variant holds vCPUs because of slot changes, without being asked to."""
    return variant.region_begin is not Variant.region_begin


@dataclass(frozen=True, slots=True)
class Cell:
    """A scenario under a variant and a behaviour of userspace; ``vcpus`` and ``vmms`` are the size it was asked in."""

    scenario: Scenario
    variant: type[Variant]
    behaviour: str
    vcpus: int = 1
    vmms: int = 1
    memory: str = "sc"  # or one of ``stores.MEMORIES``
