"""Signals of threads that wait in KVM_RUN: each must get its thread out, and none may be lost.

A thread whose call was received waits killably, so a signal stays pending until it is seen here: at once when a thread
of the program sends it, else within ``POLL_S``.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

POLL_S = 0.002
SOON_S = 0.0002  # a sender has been let go on with its call, which takes less than that
SHARE = 10  # polls take at most one part in so many of the time
_FIELDS = re.compile(rb"^(State|SigPnd|ShdPnd|SigBlk):\s*(\w+)", re.MULTILINE)
_STATUS_SIZE = 4096
_GONE = (b"Z", b"X")


@dataclass(slots=True, eq=False)
class Waiting:
    """A thread in KVM_RUN. ``mask``: what KVM_SET_SIGNAL_MASK blocks meanwhile, None for what the thread blocks."""

    tid: int
    mask: int | None
    on_signal: Callable[[], None]
    on_end: Callable[[], None]
    status: int | None = field(default=None, init=False)

    def look(self) -> bool:
        """Look at the thread once; true if there was something to say."""
        pending = self._pending()
        if pending is None:
            self.on_end()
        elif pending:
            self.on_signal()
        return pending != 0

    def _pending(self) -> int | None:
        """The signals that would interrupt it; None if it has ended."""
        try:
            if self.status is None:
                self.status = os.open(f"/proc/{self.tid}/status", os.O_RDONLY | os.O_CLOEXEC)
            fields = dict(_FIELDS.findall(os.pread(self.status, _STATUS_SIZE, 0)))
        except OSError:
            return None
        if fields[b"State"] in _GONE:
            return None
        blocked = int(fields[b"SigBlk"], 16) if self.mask is None else self.mask
        return (int(fields[b"SigPnd"], 16) | int(fields[b"ShdPnd"], 16)) & ~blocked

    def close(self) -> None:
        """It does not wait any more."""
        if self.status is not None:
            os.close(self.status)
            self.status = None


class Signals:
    """Looks after all threads in KVM_RUN while there are any."""

    def __init__(self) -> None:
        self._waiting: dict[int, Waiting] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._soon: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Waiting]:
        return iter(tuple(self._waiting.values()))

    def add(self, waiting: Waiting) -> None:
        """Look after a thread from now on. A signal that its own mask blocks may be pending already."""
        self._waiting[waiting.tid] = waiting
        if waiting.mask is not None:
            waiting.look()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(POLL_S, self._poll)

    def remove(self, tid: int) -> None:
        """The thread's KVM_RUN is over."""
        found = self._waiting.pop(tid, None)
        if found is not None:
            found.close()

    def sent(self) -> None:
        """A thread of the program is about to send a signal."""
        if self._waiting and self._soon is None:
            self._soon = asyncio.get_running_loop().call_later(SOON_S, self._look_soon)

    def _look_soon(self) -> None:
        self._soon = None
        self.look()

    def look(self) -> None:
        """Look at all of them."""
        for waiting in self:
            if waiting.look():
                waiting.close()

    def _poll(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        begun = loop.time()
        self.look()
        if self._waiting:
            self._timer = loop.call_later(max(POLL_S, SHARE * (loop.time() - begun)), self._poll)

    def close(self) -> None:
        """Stop looking."""
        for timer in (self._timer, self._soon):
            if timer is not None:
                timer.cancel()
        for tid in tuple(self._waiting):
            self.remove(tid)
