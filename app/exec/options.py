"""What the command line says about the VMs of a program."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

VARIANTS = {"none": "none", "hold": "holds", "kick": "sticky"}  # what a protection needs, unless another is asked for


@dataclass(slots=True)
class Options:
    """``share``: memory in place, until that turns out to be impossible; ``trace``: where to write the run."""

    variant: str = "none"
    mode: str = "precise"
    protect: str = "none"
    share: bool = True
    trace: Path | None = None
