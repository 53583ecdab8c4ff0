"""Who is next where several guests want to run: the one that has had least.

Turns alone are not fair to a guest that leaves often. It would wait for a whole turn of the others after each exit that
the kernel answers; its timer's interrupt has three of them, so that it would get nowhere beside a guest that spins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Share:
    """What one guest has had, in whatever they all are measured in."""

    used: float = 0


class Shares:
    """Those of the guests that compete. One that comes back after a rest may be behind by ``credit``, not more."""

    def __init__(self, credit: float) -> None:
        self._credit = credit
        self._level = 0.0

    def join(self, share: Share) -> None:
        """A guest wants to run."""
        share.used = max(share.used, self._level - self._credit)

    def choose(self, shares: Sequence[Share]) -> int:
        """The place of the one that is next; of equals it is the first."""
        place = min(range(len(shares)), key=lambda index: shares[index].used)
        self._level = max(self._level, shares[place].used)
        return place
