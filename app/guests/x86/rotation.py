"""Whose slice is next on the event loop: one in a few turns of it.

Sixty guests that compute then keep everybody else waiting for one slice, not for sixty; and a kick finds sixty guests
that wait and can leave at once. A call takes some turns to be read, performed and answered: it should not have to
wait for a slice in each.
"""

from __future__ import annotations

import asyncio
from collections import deque
from weakref import WeakKeyDictionary

OTHERS = 3  # turns of the loop between two slices; an idle loop takes a hundredth of a slice for one


class Rotation:
    """The guests of one event loop, in the order in which they asked."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.guests = 0
        """How many are in guest mode."""
        self._loop = loop
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._due = False

    def turn(self) -> asyncio.Future[None]:
        """Done when the guest may run its slice; whoever wants it to look up earlier may set the result."""
        turn = self._loop.create_future()
        self._waiting.append(turn)
        if not self._due:
            self._due = True
            self._loop.call_soon(self._next, OTHERS)
        return turn

    def _next(self, others: int) -> None:
        if not others:
            self._begin_slice()
        self._due = bool(self._waiting)
        if self._due:
            self._loop.call_soon(self._next, others - 1 if others else OTHERS)

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
