"""The time that a VM's timers go by, in nanoseconds since it was made.

The clock here is virtual: it stands until somebody advances it. The server's follows its event loop. Either way a
timer that is due ends in ``Interrupts.timer_fired``, performed by whoever drives the clock.
"""

from __future__ import annotations

from kickstand.core.atomics import Shared, atomic


class Clock(Shared):
    """``timers`` is when each timer is due, by its number (a vCPU's id, or what the VM numbers otherwise)."""

    __slots__ = ("time", "timers")
    FIELDS = ("time", "timers")

    def __init__(self) -> None:
        super().__init__()
        self.time = 0
        self.timers: tuple[tuple[int, int], ...] = ()  # (due, number), the next one first

    @atomic
    async def now(self) -> int:
        """The time."""
        return self.time

    @atomic
    async def set_timer(self, number: int, due: int | None) -> None:
        """``hrtimer_start``, or with None ``hrtimer_cancel``."""
        others = (timer for timer in self.timers if timer[1] != number)
        self.timers = tuple(sorted((*others, *(() if due is None else ((due, number),)))))

    def advance(self, time: int) -> int | None:
        """Go to ``time``, but not past the next timer that is due: its number if there is one."""
        if self.timers and self.timers[0][0] <= time:
            due, number = self.timers[0]
            self.timers = self.timers[1:]
            self.time = max(self.time, due)
            return number
        self.time = max(self.time, time)
        return None
