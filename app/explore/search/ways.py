"""Ways through the graph of states, as whoever searches hands them on: moves from an initial state."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Move:
    """``thread`` takes a step from the state ``source`` to ``target``."""

    thread: int
    source: int
    target: int


@dataclass(slots=True)
class Path:
    """Moves from an initial state; the last ``loop`` of them repeat for ever. ``start`` is the first state."""

    start: int
    moves: list[Move] = field(default_factory=list)
    loop: int = 0

    @property
    def end(self) -> int:
        """The state after all moves."""
        return self.moves[-1].target if self.moves else self.start
