"""Whose slice is next on the event loop: one in a few turns of it.

Sixty guests that compute then keep everybody else waiting for one slice, not for sixty; and a kick finds sixty guests
that wait and can leave at once. A call takes some turns to be read, performed and answered: it should not have to
wait for a slice in each.
"""

from __future__ import annotations

import asyncio
from weakref import WeakKeyDictionary

from kickstand.guests.x86.time_sharing.shares import Share, Shares

OTHERS = 3  # turns of the loop between two slices, if somebody else does something in them
IDLE_S = 50e-6  # a turn in which nobody does takes less
EXITS = 16
"""How many slices that end with an exit count as much as one to the end: not their time, so that it can be repeated."""


class Rotation:
    """The guests of one event loop, in the order in which they asked."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.guests = 0
        """How many are in guest mode."""
        self._loop = loop
        self._shares = Shares(EXITS)
        self._waiting: list[tuple[Share, asyncio.Future[None]]] = []
        self._due = False
        self._since = 0.0

    def turn(self, share: Share) -> asyncio.Future[None]:
        """Done when this guest may run its slice; whoever wants it to look up earlier may set the result."""
        turn = self._loop.create_future()
        self._shares.join(share)
        self._waiting.append((share, turn))
        if not self._due:
            self._due = True
            self._wait(OTHERS)
        return turn

    def after_all(self) -> asyncio.Future[None]:
        """Done when the guests that wait now have had their slices."""
        return self.turn(Share(max((share.used for share, _ in self._waiting), default=0)))

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
            _, turn = self._waiting.pop(self._shares.choose([share for share, _ in self._waiting]))
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
