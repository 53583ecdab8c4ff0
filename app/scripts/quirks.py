"""Where the emulator and a real /dev/kvm may differ, and why. Everything else is a bug of the emulator.

The real KVM of the reference recordings is nested: its vendor module shadows page tables and runs part of the
guest's code in KVM's software interpreter. Each entry looks at one difference and says whether it is that quirk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from app.scripts.parse import Operation


@dataclass(frozen=True, slots=True)
class Quirk:
    """``applies(operations up to and with the differing one, emulator's answer, device's answer)``."""

    name: str
    reason: str
    applies: Callable[[Sequence[Operation], dict[str, Any], dict[str, Any]], bool]


def _no_memory(operations: Sequence[Operation], _emulator: dict[str, Any], device: dict[str, Any]) -> bool:
    made = any(step.op == "set_memory_region" for step in operations)
    return operations[-1].op in ("run", "finish_run") and device.get("errno") == "ENOSPC" and not made


QUIRKS: tuple[Quirk, ...] = (
    Quirk(
        "run-without-memory",
        "KVM_RUN with no slot ever set: the recording kernel answers ENOSPC, since its vendor module needs a page for "
        "the guest's tables; hardware virtualization runs into an internal error.",
        _no_memory,
    ),
)


def explained(operations: Sequence[Operation], emulator: dict[str, Any], device: dict[str, Any]) -> Quirk | None:
    """The quirk behind a difference, if it is one."""
    return next((quirk for quirk in QUIRKS if quirk.applies(operations, emulator, device)), None)
