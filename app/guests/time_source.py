"""The host's time as guests can read it: a counter that counts nanoseconds, the same on every kind of host."""

from __future__ import annotations

import time

from kickstand.core.uapi import TSC_KHZ


class Nanoseconds:
    """Monotonic time as a counter."""

    is_tsc = False
    khz = TSC_KHZ

    def counter(self) -> int:
        """Nanoseconds since some moment of this host's."""
        return time.monotonic_ns()

    def realtime_ns(self) -> int:
        """Nanoseconds since 1970."""
        return time.time_ns()


NANOSECONDS = Nanoseconds()
