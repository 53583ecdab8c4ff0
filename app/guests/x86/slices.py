"""Whose slice is next on the event loop: one in a few turns of it.

Sixty guests that compute then keep everybody else waiting for one slice, not for sixty; and a kick finds sixty guests
that wait and can leave at once. A call takes some turns to be read, performed and answered: it should not have to
wait for a slice in each.
"""

from __future__ import annotations

import asyncio
from collections import deque
from weakref import WeakKeyDictionary

OTHERS = 3  # turns of the loop between two slices, if somebody else does something in them
IDLE_S = 50e-6  # a turn in which nobody does takes less


class Rotation:
    """The guests of one event loop, in the order in which they asked."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.guests = 0
        """How many are in guest mode."""
        self._loop = loop
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._due = False
        self._since = 0.0

    def turn(self) -> asyncio.Future[None]:
        """Done when the guest may run its slice; whoever wants it to look up earlier may set the result."""
        turn = self._loop.create_future()
        self._waiting.append(turn)
        if not self._due:
            self._due = True
            self._wait(OTHERS)
        return turn

    def _wait(self, others: int) -> None:
        self._since = self._loop.time()
        self._loop.call_soon(self._next, others)

    def _next(self, others: int) -> None:
        if not others or self._loop.time() - self._since < IDLE_S:
            self._begin_slice()
            others = OTHERS + 1
        self._due = bool(self._waiting)
        if self._due:
            self._wait(others - 1)

    def _begin_slice(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                break


_rotations: WeakKeyDictionary[asyncio.AbstractEventLoop, Rotation] = WeakKeyDictionary()


def rotation() -> Rotation:
    """The running loop's."""
    loop = asyncio.get_running_loop()
    found = _rotations.get(loop)
    if found is None:
        found = _rotations[loop] = Rotation(loop)
    return found
