"""The host's time-stamp counter: a program that reads it itself (RDTSC) sees its guests' counters keep to it."""

from __future__ import annotations

import ctypes
import mmap
import time
from collections.abc import Callable

# rdtsc; shl rdx, 32; or rax, rdx; ret
_CODE = bytes.fromhex("0f31 48c1e220 4809d0 c3")
_LEAST_NS = 20_000_000  # over so long the rate is known to a millionth or so
_TRIES = 5
_KILO = 1_000_000  # nanoseconds in a millisecond


def _reader() -> Callable[[], int]:
    """A call of machine code. ``OSError``: memory cannot be executed here."""
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(_CODE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    read: Callable[[], int] = ctypes.CFUNCTYPE(ctypes.c_uint64)(address)
    _kept.append(page)
    return read


_kept: list[mmap.mmap] = []


class HostTsc:
    """Counter and rate. ``OSError``: this process may not execute memory that it wrote."""

    is_tsc = True

    def __init__(self) -> None:
        self.counter = _reader()
        self._began = self._pair()
        self._khz = 0

    def _pair(self) -> tuple[int, int]:
        """(counter, nanoseconds), read as close to each other as can be."""
        pairs: list[tuple[int, int, int]] = []
        for _ in range(_TRIES):
            before = self.counter()
            now = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
            after = self.counter()
            pairs.append((after - before, (before + after) // 2, now))
        _, counter, now = min(pairs)
        return counter, now

    @property
    def khz(self) -> int:
        """Measured once, since this was made; waits if that was just now."""
        if not self._khz:
            began, then = self._began
            left = then + _LEAST_NS - time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
            if left > 0:
                time.sleep(left / 1e9)
            counter, now = self._pair()
            self._khz = round((counter - began) * _KILO / (now - then))
        return self._khz

    def realtime_ns(self) -> int:
        """Nanoseconds since 1970."""
        return time.time_ns()
