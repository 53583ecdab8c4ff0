"""Whose slice is next on the event loop: one for each turn of it.

Sixty guests that compute then keep everybody else waiting for one slice, not for sixty; and a kick finds sixty guests
that wait and can leave at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from weakref import WeakKeyDictionary


class Rotation:
    """The guests of one event loop, in the order in which they asked."""

    def __init__(self) -> None:
        self.guests = 0
        """How many are in guest mode."""
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._due = False

    def turn(self) -> asyncio.Future[None]:
        """Done when the guest may run its slice; whoever wants it to look up earlier may set the result."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._next)
        return turn

    def _next(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                break
        self._due = bool(self._waiting)
        if self._due:
            asyncio.get_running_loop().call_soon(self._next)


_rotations: WeakKeyDictionary[asyncio.AbstractEventLoop, Rotation] = WeakKeyDictionary()


def rotation() -> Rotation:
    """The running loop's."""
    loop = asyncio.get_running_loop()
    found = _rotations.get(loop)
    if found is None:
        found = _rotations[loop] = Rotation()
    return found
