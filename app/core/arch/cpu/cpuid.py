"""CPUID as a model: what an emulated CPU can offer, the table that userspace sets, and what follows from it.

A feature that is not in the table is not there for the guest: bits of CR4, EFER and MSRs that belong to it are
reserved (``kvm_vcpu_after_set_cpuid``). What the engine cannot do (AVX, XSAVE) is not offered.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum

from kickstand.core.errors import KvmError

SET_CPUID2 = "KVM_SET_CPUID2"
MAX_ENTRIES = 256  # KVM_MAX_CPUID_ENTRIES
SIGNIFICANT_INDEX = 1  # KVM_CPUID_FLAG_SIGNIFCANT_INDEX
_EXTENDED, _HYPERVISOR, _CENTAUR = 0x8000_0000, 0x4000_0000, 0xC000_0000
_MAXPHYADDR, _LEAST_MAXPHYADDR = 48, 36
_VENDOR = (0x6874_7541, 0x444D_4163, 0x6974_6E65)  # AuthenticAMD: EBX, ECX, EDX
_HYGON = (0x6F67_7948, 0x656E_6975, 0x6E65_476E)
_SIGNATURE = (0x4B4D_564B, 0x564B_4D56, 0x4D)  # KVMKVMKVM


@dataclass(frozen=True, slots=True)
class Entry:
    """``struct kvm_cpuid_entry2``."""

    function: int
    index: int = 0
    flags: int = 0
    eax: int = 0
    ebx: int = 0
    ecx: int = 0
    edx: int = 0

    def answers(self, function: int, index: int) -> bool:
        """True if it is what the instruction returns for this leaf."""
        return self.function == function and (not self.flags & SIGNIFICANT_INDEX or self.index == index)


class Feature(Enum):
    """A feature that registers or MSRs depend on: (leaf, register, bit)."""

    MWAIT = 1, "ecx", 3
    PCID = 1, "ecx", 17
    X2APIC = 1, "ecx", 21
    XSAVE = 1, "ecx", 26
    OSXSAVE = 1, "ecx", 27
    APIC = 1, "edx", 9
    MTRR = 1, "edx", 12
    FSGSBASE = 7, "ebx", 0
    TSC_ADJUST = 7, "ebx", 1
    SMEP = 7, "ebx", 7
    SMAP = 7, "ebx", 20
    UMIP = 7, "ecx", 2
    PKU = 7, "ecx", 3
    LA57 = 7, "ecx", 16
    SVM = 0x8000_0001, "ecx", 2
    NX = 0x8000_0001, "edx", 20
    FXSR_OPT = 0x8000_0001, "edx", 25
    GBPAGES = 0x8000_0001, "edx", 26
    RDTSCP = 0x8000_0001, "edx", 27
    LM = 0x8000_0001, "edx", 29
    KVM_CLOCKSOURCE = 0x4000_0001, "eax", 0
    KVM_CLOCKSOURCE2 = 0x4000_0001, "eax", 3
    KVM_STEAL_TIME = 0x4000_0001, "eax", 5
    KVM_PV_EOI = 0x4000_0001, "eax", 6
    KVM_PV_UNHALT = 0x4000_0001, "eax", 7
    KVM_POLL_CONTROL = 0x4000_0001, "eax", 12
    KVM_PV_SCHED_YIELD = 0x4000_0001, "eax", 13
    KVM_MAP_GPA_RANGE = 0x4000_0001, "eax", 16


def _bits(*numbers: int) -> int:
    return sum(1 << number for number in numbers)


# FPU DE PSE TSC MSR PAE MCE CX8 APIC, MTRR PGE MCA CMOV PAT PSE36, MMX FXSR: also in the extended leaf of this vendor
_COMMON = _bits(0, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14, 15, 16, 17, 23, 24)
SUPPORTED: tuple[Entry, ...] = (
    Entry(0, eax=7, ebx=_VENDOR[0], ecx=_VENDOR[1], edx=_VENDOR[2]),
    # SSE3 PCLMUL SSSE3 CX16 PCID SSE4.1 SSE4.2 x2APIC MOVBE POPCNT AES RDRAND hypervisor; SYSENTER CLFLUSH SSE SSE2
    Entry(
        1,
        eax=0xA0_0F11,
        ebx=8 << 8,
        ecx=_bits(0, 1, 9, 13, 17, 19, 20, 21, 22, 23, 25, 30, 31),
        edx=_COMMON | _bits(11, 19, 25, 26),
    ),
    Entry(7, flags=SIGNIFICANT_INDEX, ebx=_bits(0, 1, 3, 7, 8, 9)),  # FSGSBASE TSC_ADJUST BMI1 SMEP BMI2 ERMS
    Entry(_HYPERVISOR, eax=_HYPERVISOR + 1, ebx=_SIGNATURE[0], ecx=_SIGNATURE[1], edx=_SIGNATURE[2]),
    # kvmclock by both pairs of MSRs, no I/O delay, stolen time, a clock that is the same on all vCPUs
    Entry(_HYPERVISOR + 1, eax=_bits(0, 1, 3, 5, 24)),
    Entry(_EXTENDED, eax=_EXTENDED + 8, ebx=_VENDOR[0], ecx=_VENDOR[1], edx=_VENDOR[2]),
    # LAHF ABM prefetch; SYSCALL NX GBPAGES RDTSCP LM
    Entry(_EXTENDED + 1, eax=0xA0_0F11, ecx=_bits(0, 5, 8), edx=_COMMON | _bits(11, 20, 26, 27, 29)),
    Entry(_EXTENDED + 7, edx=_bits(8)),  # invariant TSC
    Entry(_EXTENDED + 8, eax=_MAXPHYADDR << 8 | _MAXPHYADDR),
)


class Cpuid:
    """The table of one vCPU."""

    def __init__(self, entries: Iterable[Entry] = SUPPORTED) -> None:
        self.entries = list(entries)
        self.maxphyaddr = self._maxphyaddr()
        """``cpuid_query_maxphyaddr``: how many bits a guest-physical address has."""
        self.reserved_gpa_bits = (1 << 64) - (1 << min(self.maxphyaddr, 63))
        """The bits that no guest-physical address has."""

    def find(self, function: int, index: int = 0) -> Entry | None:
        """``kvm_find_cpuid_entry_index``."""
        return next((entry for entry in self.entries if entry.answers(function, index)), None)

    def has(self, feature: Feature) -> bool:
        """``guest_cpuid_has``."""
        leaf, register, bit = feature.value
        entry = self.find(leaf)
        return entry is not None and bool(getattr(entry, register) >> bit & 1)

    def _maxphyaddr(self) -> int:
        highest, entry = self.find(_EXTENDED), self.find(_EXTENDED + 8)
        if highest is None or highest.eax < _EXTENDED + 8 or entry is None:
            return _LEAST_MAXPHYADDR
        return entry.eax & 0xFF

    @property
    def is_amd_compatible(self) -> bool:
        """``guest_cpuid_is_amd_compatible``: AMD or Hygon."""
        basic = self.find(0)
        return basic is not None and (basic.ebx, basic.ecx, basic.edx) in (_VENDOR, _HYGON)

    def answer(self, function: int, index: int) -> tuple[int, int, int, int]:
        """EAX to EDX of the instruction (``kvm_cpuid``): zeros for a leaf that is not there."""
        entry = self.find(function, index) or self._out_of_range(function, index)
        return (0, 0, 0, 0) if entry is None else (entry.eax, entry.ebx, entry.ecx, entry.edx)

    def _out_of_range(self, function: int, index: int) -> Entry | None:
        """``get_out_of_range_cpuid_entry``: but with these two vendors a leaf beyond the last is the last basic one."""
        basic = self.find(0)
        if basic is None or self.is_amd_compatible:
            return None
        if _HYPERVISOR <= function < _HYPERVISOR + 0x1000_0000:
            kind = self.find(function & 0xFFFF_FF00)
        else:
            kind = self.find(_CENTAUR if function >= _CENTAUR else function & _EXTENDED)
        return None if kind is not None and function <= kind.eax else self.find(basic.eax, index)

    def without(self, feature: Feature) -> None:
        """The feature cannot be had by this VM: it is not told, where the leaves are KVM's own."""
        leaf, register, bit = feature.value
        signature = self.find(_HYPERVISOR)
        if signature is None or (signature.ebx, signature.ecx, signature.edx) != _SIGNATURE:
            return
        for at, entry in enumerate(self.entries):
            if entry.function == leaf:
                self.entries[at] = replace(entry, **{register: getattr(entry, register) & ~(1 << bit)})

    def follow(self, *, osxsave: bool, apic: bool) -> None:
        """``kvm_update_cpuid_runtime``: two features are told as they are enabled now."""
        for at, entry in enumerate(self.entries):
            if entry.function == 1:
                ecx = entry.ecx & ~_bits(27) | (_bits(27) if osxsave else 0)
                edx = entry.edx & ~_bits(9) | (_bits(9) if apic else 0)
                self.entries[at] = replace(entry, ecx=ecx, edx=edx)


def check_entries(entries: Iterable[Entry]) -> list[Entry]:
    """What KVM_SET_CPUID2 takes. E2BIG: more than 256; EINVAL: a linear address of neither 48 nor 57 bits."""
    table = list(entries)
    if len(table) > MAX_ENTRIES:
        raise KvmError(errno.E2BIG, SET_CPUID2, f"{len(table)} entries are more than {MAX_ENTRIES}", field="nent")
    sizes = Cpuid(table).find(_EXTENDED + 8)
    if sizes is not None and sizes.eax >> 8 & 0xFF not in (0, 48, 57):
        raise KvmError(errno.EINVAL, SET_CPUID2, "linear addresses have 48 or 57 bits, or 0", field="entries")
    return table
