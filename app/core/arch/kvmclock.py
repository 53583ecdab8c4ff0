"""The time that a guest can read without an exit: time stamp counters, kvmclock, the wall clock.

Pure: what time it is, is told by a ``TimeSource``. All vCPUs' pages follow one pair (nanoseconds, counter) that was
read at once, as the kernel's master clock does, so that no two of them ever disagree.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Protocol

from kickstand.core.uapi import TSC_KHZ

MASK32, MASK64 = (1 << 32) - 1, (1 << 64) - 1
NS_PER_S = 1_000_000_000
TSC_STABLE, REALTIME, HOST_TSC = 2, 4, 8  # KVM_CLOCK_*: flags of ``kvm_clock_data``
CLOCK_FLAGS = TSC_STABLE | REALTIME | HOST_TSC
_PVCLOCK = struct.Struct("<IIQQIbBxx")  # pvclock_vcpu_time_info
_WALL = struct.Struct("<3I")  # pvclock_wall_clock
_STABLE_BIT, _STOPPED_BIT = 1, 2


class TimeSource(Protocol):
    """The host's time."""

    @property
    def is_tsc(self) -> bool:
        """The counter is what RDTSC reads here."""
        ...

    @property
    def khz(self) -> int:
        """How many times the counter counts in a millisecond."""
        ...

    def counter(self) -> int:
        """The host's time stamp counter."""
        ...

    def realtime_ns(self) -> int:
        """Nanoseconds since 1970."""
        ...


class _Stopped:
    """Where nobody told what time it is, it stands."""

    is_tsc = False
    khz = TSC_KHZ

    def counter(self) -> int:
        return 0

    def realtime_ns(self) -> int:
        return 0


STOPPED: TimeSource = _Stopped()


@dataclass(frozen=True, slots=True)
class ClockData:
    """``kvm_clock_data``: ``clock`` and ``realtime`` in nanoseconds; the other two as ``flags`` say."""

    clock: int
    flags: int = 0
    realtime: int = 0
    host_tsc: int = 0


class KvmClock:
    """One VM's clock: nanoseconds since it was made, or since what KVM_SET_CLOCK said."""

    def __init__(self, source: TimeSource = STOPPED) -> None:
        self.source = source
        self.default_khz = source.khz
        """KVM_SET_TSC_KHZ of the VM: the rate of vCPUs to come."""
        self.created = source.counter()
        """The counter when the VM was made."""
        self._master = self.created
        self._base_ns = 0
        self.changes = 0
        """Counts the settings: every vCPU's page is written again after one."""

    def _ns_at(self, counter: int) -> int:
        return self._base_ns + (counter - self._master) * 1_000_000 // self.source.khz

    @property
    def now_ns(self) -> int:
        """``get_kvmclock_ns``."""
        return self._ns_at(self.source.counter())

    def get(self) -> ClockData:
        """KVM_GET_CLOCK: all of it at one moment."""
        counter = self.source.counter()
        real = self.source.realtime_ns()
        return ClockData(self._ns_at(counter) & MASK64, TSC_STABLE | REALTIME | HOST_TSC, real, counter & MASK64)

    def set(self, data: ClockData) -> None:
        """KVM_SET_CLOCK; with REALTIME the clock goes on by what has passed since then, and never back."""
        passed = self.source.realtime_ns() - data.realtime if data.flags & REALTIME else 0
        self._master = self.source.counter()
        self._base_ns = data.clock + max(0, passed)
        self.changes += 1

    def go_on_from(self, ns: int) -> None:
        """A VM that was kept: its clock stood meanwhile."""
        self.set(ClockData(ns))

    def page(self, version: int, khz: int, guest_tsc_at: int, *, stopped: bool) -> bytes:
        """``pvclock_vcpu_time_info``; ``guest_tsc_at``: the vCPU's counter at host counter ``master``."""
        multiplier, shift = scale(khz)
        flags = _STABLE_BIT | (_STOPPED_BIT if stopped else 0)
        base = self._base_ns & MASK64
        return _PVCLOCK.pack(version & MASK32, 0, guest_tsc_at & MASK64, base, multiplier, shift, flags)

    @property
    def master(self) -> int:
        """The host counter that the pages are about."""
        return self._master

    def wall_clock(self, version: int) -> bytes:
        """``pvclock_wall_clock``: what time it was when kvmclock was 0."""
        then = max(0, self.source.realtime_ns() - self.now_ns)
        return _WALL.pack(version & MASK32, then // NS_PER_S & MASK32, then % NS_PER_S)


def scale(khz: int) -> tuple[int, int]:
    """(multiplier, shift) such that ticks << shift, times multiplier, >> 32 are nanoseconds; the multiplier is full."""
    hz, shift = khz * 1_000, 0
    while hz > 2 * NS_PER_S:
        hz, shift = hz >> 1, shift - 1
    while hz <= NS_PER_S:
        hz, shift = hz << 1, shift + 1
    return (NS_PER_S << 32) // hz, shift
