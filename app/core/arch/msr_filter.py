"""Which MSRs a guest may reach, and which accesses userspace answers (KVM_X86_SET_MSR_FILTER, USER_SPACE_MSR)."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass

from kickstand.core.errors import KvmError

SET_FILTER = "KVM_X86_SET_MSR_FILTER"
MAX_RANGES, MAX_BITMAP = 16, 0x600  # ranges of one filter, bytes of one range's bitmap
READ, WRITE = 1, 2
DEFAULT_DENY = 1
INVALID, UNKNOWN, FILTERED = 1, 2, 4  # KVM_MSR_EXIT_REASON_INVAL, _UNKNOWN, _FILTER
ALL_REASONS = INVALID | UNKNOWN | FILTERED
_X2APIC = range(0x800, 0x900)  # what is accelerated by hardware is never filtered


@dataclass(frozen=True, slots=True)
class Range:
    """``kvm_msr_filter_range``: a bit of ``bitmap`` that is set lets through what ``flags`` (READ, WRITE) name."""

    flags: int
    base: int
    nmsrs: int
    bitmap: bytes

    def allows(self, index: int, kind: int) -> bool | None:
        """None if this range says nothing about the access."""
        if not self.flags & kind or not self.base <= index < self.base + self.nmsrs:
            return None
        bit = index - self.base
        return bool(self.bitmap[bit // 8] >> bit % 8 & 1)


@dataclass(frozen=True, slots=True)
class MsrFilter:
    """``kvm_x86_msr_filter``."""

    default_allow: bool = True
    ranges: tuple[Range, ...] = ()

    def allows(self, index: int, *, write: bool) -> bool:
        """``kvm_msr_allowed``: the first range that has the register decides."""
        if index in _X2APIC or (self.default_allow and not self.ranges):
            return True
        answers = (range_.allows(index, WRITE if write else READ) for range_ in self.ranges)
        return next((answer for answer in answers if answer is not None), self.default_allow)


NO_FILTER = MsrFilter()


def bitmap_bytes(nmsrs: int) -> int:
    """How many bytes a range's bitmap has: whole longs."""
    return -(-nmsrs // 64) * 8


def make_filter(flags: int, ranges: Iterable[Range]) -> MsrFilter:
    """KVM_X86_SET_MSR_FILTER. EINVAL: unknown flags, too many ranges, a bitmap that is too long, a denial of all."""
    if flags & ~DEFAULT_DENY:
        raise KvmError(errno.EINVAL, SET_FILTER, f"flags {flags:#x} are not 0 or {DEFAULT_DENY}", field="flags")
    given = [range_ for range_ in ranges if range_.nmsrs]
    if len(given) > MAX_RANGES:
        raise KvmError(errno.EINVAL, SET_FILTER, f"more than {MAX_RANGES} ranges", field="ranges")
    for range_ in given:
        _check(range_)
    if flags & DEFAULT_DENY and not given:
        raise KvmError(errno.EINVAL, SET_FILTER, "nothing would be left to the guest", field="ranges")
    return MsrFilter(not flags & DEFAULT_DENY, tuple(given))


def _check(given: Range) -> None:
    if not given.flags or given.flags & ~(READ | WRITE):
        raise KvmError(errno.EINVAL, SET_FILTER, f"a range's flags are 1 to 3, not {given.flags:#x}", field="flags")
    size = bitmap_bytes(given.nmsrs)
    if size > MAX_BITMAP:
        raise KvmError(errno.EINVAL, SET_FILTER, f"a bitmap of {size} bytes; {MAX_BITMAP} is the most", field="nmsrs")
    if len(given.bitmap) * 8 < given.nmsrs:
        raise KvmError(errno.EINVAL, SET_FILTER, f"a bitmap too short for {given.nmsrs} registers", field="bitmap")
