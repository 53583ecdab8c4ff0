"""How a ledger of requirements is written down: each with what shows it.

A ``Shows`` is a cell of the explorer with the verdict that it must have, a ``ByTest`` is a test by name, an
``OutOfScope`` says why there is none. ``requirements.py`` is the ledger.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shows:
    """A verdict of the explorer."""

    scenario: str
    variant: str
    behaviour: str
    property: str
    verdict: str
    vmms: int = 1

    def __str__(self) -> str:
        size = "" if self.vmms == 1 else f" --vmms {self.vmms}"
        return f"{self.scenario} {self.variant} {self.behaviour}{size}: {self.property} {self.verdict}"


@dataclass(frozen=True, slots=True)
class ByTest:
    """A test in ``path``."""

    path: str
    name: str

    def __str__(self) -> str:
        return f"{self.path}::{self.name}"


@dataclass(frozen=True, slots=True)
class OutOfScope:
    """Why nothing shows it."""

    reason: str

    def __str__(self) -> str:
        return f"out of scope: {self.reason}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One requirement."""

    id: str
    what: str
    shown_by: tuple[Shows | ByTest | OutOfScope, ...]


def cell(text: str) -> Shows:
    """``"merge sticky well lost_exit violated"``, with an optional number of VMMs at the end."""
    scenario, variant, behaviour, name, verdict, *vmms = text.split()
    return Shows(scenario, variant, behaviour, name, verdict, int(vmms[0]) if vmms else 1)


def entry(id: str, what: str, *shown_by: str | ByTest | OutOfScope) -> Entry:
    return Entry(id, what, tuple(cell(item) if isinstance(item, str) else item for item in shown_by))
