"""The local vector table of a local APIC, and the timer that is one of its sources."""

from __future__ import annotations

from collections.abc import Mapping

from kickstand.core.arch.irq.priorities import Priorities
from kickstand.core.arch.irq.registers import (
    ENABLED,
    LVR,
    LVT_BITS,
    LVT_BITS_WITH_CMCI,
    LVTCMCI,
    LVTT,
    MASK32,
    MASKED,
    MIN_PERIOD_NS,
    SPIV,
    TDCR,
    TMICT,
    VERSION,
    Timer,
)
from kickstand.core.arch.kvm_arch import KvmArch

TIMERS = Timer.ONE_SHOT, Timer.PERIODIC, Timer.TSC_DEADLINE, Timer.ONE_SHOT  # by bits 17 and 18 of LVTT


class LocalVectors(Priorities):
    """The part of an APIC's registers that they are in. ``expires``: when the timer is due, in ns, or None."""

    def __init__(self, vcpu_id: int, *, boot: bool, arch: KvmArch) -> None:
        super().__init__(vcpu_id, boot=boot, arch=arch)
        self.expires: int | None = None
        self.period = 0
        self.tsc_deadline = 0

    @property
    def entries(self) -> Mapping[int, int]:
        """The bits of each entry there is; how many is in the version register (``set_cmci``)."""
        return LVT_BITS_WITH_CMCI if self.words[LVR >> 2] >> 16 & 0xFF == len(LVT_BITS) else LVT_BITS

    def set_cmci(self, *, present: bool) -> None:
        """Corrected machine checks have an entry, masked at first, or none (``kvm_apic_after_set_mcg_cap``)."""
        if present is (len(self.entries) > len(LVT_BITS)):
            return
        self.set_version(LVT_BITS_WITH_CMCI if present else LVT_BITS)
        self.words[LVTCMCI >> 2] = MASKED if present else 0

    def set_version(self, entries: Mapping[int, int]) -> None:
        """The version register, with the number of entries."""
        self.words[LVR >> 2] = (len(entries) - 1) << 16 | VERSION

    @property
    def timer(self) -> Timer:
        """The mode that LVTT selects."""
        return TIMERS[self.words[LVTT >> 2] >> 17 & 3]

    @property
    def divider(self) -> int:
        """Bus cycles a tick, from TDCR: 2, 4, 8 ... 128, 1."""
        bits = self.words[TDCR >> 2]
        return 1 << ((bits & 3 | bits >> 1 & 4) + 1 & 7)

    @property
    def tick_ns(self) -> int:
        """How long a tick takes."""
        return self.arch.apic_bus_cycle_ns * self.divider

    def current_count(self, now: int) -> int:
        """TMCCT."""
        expires = self.expires_after(now)
        if expires is None or not self.period:
            return 0
        return min(max(0, expires - now) // self.tick_ns, MASK32)

    @property
    def alarm(self) -> int | None:
        """When the timer has to be told the time: never while it is periodic and masked, since nobody sees it tick."""
        unseen = self.timer is Timer.PERIODIC and self.words[LVTT >> 2] & MASKED
        return None if unseen else self.expires

    def expires_after(self, now: int) -> int | None:
        """``expires``, and of a periodic timer that has not been told of its ticks the first one after ``now``."""
        if self.expires is None or now < self.expires or self.timer is not Timer.PERIODIC or not self.period:
            return self.expires
        missed = (now - self.expires) // self.period
        return self.expires + (missed + 1) * self.period

    def stop_timer(self) -> None:
        """Nothing is due any more."""
        self.expires, self.period, self.tsc_deadline = None, 0, 0

    def _start_timer(self, now: int, count: int) -> None:
        """Count ``count`` ticks down from ``now``; 0 stops it."""
        self.period = self.words[TMICT >> 2] * self.tick_ns
        if self.timer is Timer.PERIODIC and self.period:
            self.period = max(self.period, MIN_PERIOD_NS)
        if not count or not self.period:
            self.expires = None
            return
        whole = count == self.words[TMICT >> 2]  # else it goes on in the middle
        self.expires = now + (self.period if whole else min(count * self.tick_ns, self.period))

    def _write_timer(self, offset: int, value: int, now: int) -> None:
        if offset == LVTT:
            if self.words[LVTT >> 2] & MASKED:
                self.advance_timer(now)
            self._write_lvt(LVTT, value)
        elif offset == TDCR:
            self._write_divider(value, now)
        elif offset == TMICT and self.timer is not Timer.TSC_DEADLINE:
            self.words[TMICT >> 2] = value
            self._start_timer(now, value)

    def _write_divider(self, value: int, now: int) -> None:
        left = self.current_count(now)
        before = self.divider
        self.words[TDCR >> 2] = value & 0xB
        if self.divider != before and self.expires is not None and self.timer is not Timer.TSC_DEADLINE:
            self._start_timer(now, left)

    def set_tsc_deadline(self, deadline: int, expires: int) -> None:
        """WRMSR of TSC_DEADLINE; ``expires``: when the guest's TSC gets there. A deadline of 0 stops the timer."""
        if self.enabled and self.timer is Timer.TSC_DEADLINE:
            self.tsc_deadline, self.expires = deadline, expires if deadline else None

    def advance_timer(self, now: int) -> int | None:
        """The time may have come: a periodic timer goes on. The vector of LVTT if it is due and not masked."""
        if self.expires is None or now < self.expires:
            return None
        if self.timer is Timer.PERIODIC and self.period:
            self.expires = self.expires_after(now)
        else:
            self.expires, self.tsc_deadline = None, 0
        entry = self.words[LVTT >> 2]
        return None if entry & MASKED else entry & 0xFF

    def _write_lvt(self, entry: int, value: int) -> None:
        if not self.words[SPIV >> 2] & ENABLED:
            value |= MASKED
        before = self.timer
        self.words[entry >> 2] = value & self.entries[entry]
        if entry != LVTT or (timer := self.timer) is before:
            return
        if Timer.TSC_DEADLINE in (before, timer):
            self.stop_timer()
            self.words[TMICT >> 2] = 0
