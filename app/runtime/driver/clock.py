"""Where a VM's timers get their time from: the event loop, or a virtual clock that jumps while the VM is idle."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from heapq import heappop, heappush

from kickstand.core.arch.irq.clock import Clock
from kickstand.core.atomics import atomic

NS = 1_000_000_000
AT_ONCE = 64  # timers that fire in one turn of the loop
OUT_OF_DATE = 64  # entries of a queue that may be so before it is made anew
READ_NS = 1_000  # what a look at the virtual clock takes
Fire = Callable[[int], None]
KINDS = ("loop", "virtual")


class LoopClock(Clock):
    """Monotonic time. ``fire`` is called with a timer's number when it is due.

    The loop has one alarm for all of them: of a VM whose vCPUs tick together it hears once a tick.
    """

    __slots__ = ("_alarm", "_due", "_fire", "_origin", "_queue", "_ringing")

    def __init__(self, fire: Fire) -> None:
        super().__init__()
        self._fire = fire
        self._origin = time.monotonic_ns()
        self._due: dict[int, int] = {}
        self._queue: list[tuple[int, int]] = []  # a heap of (due, number); what ``_due`` does not say is out of date
        self._alarm: asyncio.TimerHandle | None = None
        self._ringing = False

    @atomic
    async def now(self) -> int:
        """The time since the VM was made."""
        return self.time_now()

    @atomic
    async def set_timer(self, number: int, due: int | None) -> None:
        """Start a timer anew, or with None stop it."""
        if due is None:
            self._due.pop(number, None)
        elif self._due.get(number) != due:
            self._due[number] = due
            if len(self._queue) > OUT_OF_DATE + 2 * len(self._due):
                self._queue = sorted((due, number) for number, due in self._due.items())
            else:
                heappush(self._queue, (due, number))
            if self._queue[0] == (due, number) and not self._ringing:
                self._set_alarm()

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        while self._queue and self._due.get(self._queue[0][1]) != self._queue[0][0]:
            heappop(self._queue)
        if self._queue:
            wait_s = max(0, self._queue[0][0] - self.time_now()) / NS
            self._alarm = asyncio.get_running_loop().call_later(wait_s, self._ring)

    def _ring(self) -> None:
        now = self.time_now()
        self._ringing = True
        try:
            for _ in range(AT_ONCE):
                if not self._queue or self._queue[0][0] > now:
                    break
                due, number = heappop(self._queue)
                if self._due.get(number) == due:
                    del self._due[number]
                    self._fire(number)
        finally:
            self._ringing = False
            self._set_alarm()

    def time_now(self) -> int:
        """The time, for those who keep it."""
        return time.monotonic_ns() - self._origin

    def close(self) -> None:
        """Nothing is due any more."""
        self._due.clear()
        self._set_alarm()

    def set_time(self, now: int) -> None:
        """Go on from ``now``."""
        self._origin = time.monotonic_ns() - now


class VirtualClock(Clock):
    """Time that stands while anything runs, but for looks at it; ``look`` lets an idle VM jump to its next timer.

    It stands, too, once every timer has been due and woken nobody: they tick on in vain (an interrupt that is masked by
    priority, or by a guest that sleeps with interrupts off), until something else happens in the VM.
    """

    __slots__ = ("_fire", "_idle", "_looking", "_vain")

    def __init__(self, fire: Fire, idle: Callable[[], bool]) -> None:
        super().__init__()
        self._fire = fire
        self._idle = idle
        self._looking = False
        self._vain: set[int] = set()  # timers

    @atomic
    async def now(self) -> int:
        """The time, which has moved a little by being looked at."""
        self.time += READ_NS
        return self.time

    @atomic
    async def set_timer(self, number: int, due: int | None) -> None:
        """Start a timer anew, or with None stop it."""
        await super().set_timer(number, due)
        self._vain.discard(number)
        self._look_soon()

    def look(self) -> None:
        """Something has come to rest: see soon whether everything has."""
        self._vain.clear()
        self._look_soon()

    def _look_soon(self) -> None:
        if not self._looking and self.timers:
            self._looking = True
            asyncio.get_running_loop().call_soon(self._jump)

    def _jump(self) -> None:
        again = self._idle() and not all(number in self._vain for _, number in self.timers)
        if again:
            number = self.advance(self.timers[0][0])
            assert number is not None
            self._fire(number)
            self._vain.add(number)  # until somebody who wakes looks
        self._looking = False
        if again:
            self._look_soon()  # after those who have just been woken

    def time_now(self) -> int:
        """The time, for those who keep it."""
        return self.time

    def close(self) -> None:
        """Nothing is due any more."""
        self.timers = ()

    def set_time(self, now: int) -> None:
        """Go on from ``now``."""
        self.time = now
