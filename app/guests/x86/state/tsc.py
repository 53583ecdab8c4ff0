"""One CPU's time-stamp counter: the host's, at a rate and with an offset of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kickstand.core.arch.cpu.msrs import MASK64

if TYPE_CHECKING:
    from kickstand.core.arch.kvm_arch import KvmArch


class Tsc:
    """``khz``: ticks in a millisecond; ``offset``: what is added to the host's counter at that rate."""

    def __init__(self, arch: KvmArch) -> None:
        self._arch = arch
        self.khz: int = arch.clock.default_khz
        self.offset = 0
        self.synchronize(0, by_user=False)

    def _scaled(self, counter: int) -> int:
        khz = self._arch.clock.source.khz
        return counter if khz == self.khz else counter * self.khz // khz

    def at(self, counter: int) -> int:
        """What it counts when the host's counter is ``counter``."""
        return self._scaled(counter) + self.offset & MASK64

    @property
    def is_hosts(self) -> bool:
        """It is what RDTSC reads on the host, and ``offset``."""
        return self._arch.clock.source.is_tsc and self._arch.clock.source.khz == self.khz

    @property
    def now(self) -> int:
        """What it counts now."""
        return self.at(self._arch.clock.source.counter())

    @now.setter
    def now(self, value: int) -> None:
        self.offset = value - self._scaled(self._arch.clock.source.counter())

    def synchronize(self, value: int, *, by_user: bool = True) -> None:
        """Userspace sets it (``kvm_synchronize_tsc``)."""
        ticks = self._scaled(self._arch.clock.source.counter())
        self.offset = self._arch.tsc.offset(value, ticks, self.khz, by_user=by_user)

    def set_khz(self, khz: int) -> None:
        """KVM_SET_TSC_KHZ: it goes on from where it is, at another rate."""
        now = self.now
        self.khz = khz
        self.now = now

    def set_offset(self, offset: int) -> None:
        """KVM_VCPU_TSC_OFFSET: later vCPUs follow it."""
        self.offset = offset & MASK64
        ticks = self._scaled(self._arch.clock.source.counter())
        self._arch.tsc.follow(ticks, self.khz, self.offset)

    def ns_until(self, value: int) -> int:
        """How many nanoseconds it takes to get there; 0 if it has been there."""
        return max(0, value - self.now) * 1_000_000 // self.khz
