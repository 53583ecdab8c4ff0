"""Model-specific registers: which there are, what they hold after reset, and what may be written to them.

A write is checked here (``kvm_set_msr_common``), whoever makes it; where a register's value lives is the engine's
business. What may be written at all by a guest depends on its CPUID.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from kickstand.core.arch.cpu.cpuid import Cpuid, Feature

MASK64 = (1 << 64) - 1
MCE_BANKS = 32
APIC_ENABLE, X2APIC_ENABLE, APIC_BSP = 1 << 11, 1 << 10, 1 << 8
_APIC_RESERVED = 0x2FF
EFER_SCE, EFER_LME, EFER_LMA, EFER_NX = 1, 1 << 8, 1 << 10, 1 << 11
_CPUID_FAULT = 1 << 31
_PAT_TYPES, _MTRR_TYPES = frozenset((0, 1, 4, 5, 6, 7)), frozenset((0, 1, 4, 5, 6))
_HWCR_IGNORED, _HWCR_KEPT = 0x148, 1 << 18 | 1 << 24
_HWCR_STATUS_WRITABLE = 1 << 18


class Msr(IntEnum):
    """The registers that something depends on."""

    TSC = 0x10
    WALL_CLOCK = 0x11
    SYSTEM_TIME = 0x12
    APIC_BASE = 0x1B
    TSC_ADJUST = 0x3B
    UCODE_REV = 0x8B
    PLATFORM_INFO = 0xCE
    MTRR_CAP = 0xFE
    MISC_FEATURES_ENABLES = 0x140
    SYSENTER_CS = 0x174
    SYSENTER_ESP = 0x175
    SYSENTER_EIP = 0x176
    MCG_CAP = 0x179
    MCG_STATUS = 0x17A
    MCG_CTL = 0x17B
    MISC_ENABLE = 0x1A0
    POWER_CTL = 0x1FC
    DEBUGCTL = 0x1D9
    PAT = 0x277
    MTRR_DEF_TYPE = 0x2FF
    TSC_DEADLINE = 0x6E0
    WALL_CLOCK_NEW = 0x4B564D00
    SYSTEM_TIME_NEW = 0x4B564D01
    STEAL_TIME = 0x4B564D03
    PV_EOI = 0x4B564D04
    POLL_CONTROL = 0x4B564D05
    EFER = 0xC0000080
    STAR = 0xC0000081
    LSTAR = 0xC0000082
    CSTAR = 0xC0000083
    SYSCALL_MASK = 0xC0000084
    FS_BASE = 0xC0000100
    GS_BASE = 0xC0000101
    KERNEL_GS_BASE = 0xC0000102
    TSC_AUX = 0xC0000103
    HWCR = 0xC0010015


MC0_CTL, MC0_CTL2 = 0x400, 0x280
_CMCI_P = 1 << 10
_CTL2_BITS = 1 << 30 | 0x7FFF
_VARIABLE_MTRRS = range(0x200, 0x210)
_FIXED_MTRRS = frozenset((0x250, 0x258, 0x259, *range(0x268, 0x270)))
# read as zero, written without effect: chipset and counters that nobody looks at
_EMPTY = frozenset((
    0xC1, 0xC2, 0x186, 0x187, *range(0xC0010000, 0xC0010008), 0xC001001F, 0xC0010058, 0xC0010117, 0xC0011022,
    0xC0011023, 0xC001102A, 0xC001102C,
))  # fmt: skip
_ZERO_ONLY = frozenset((0xC0010058,))
_LOADERS = frozenset((0x79, 0xC0010020))  # of microcode: they can be written, without effect, and not be read
_BRANCHES = frozenset(range(0x1DB, 0x1DF))  # saved and restored, and nothing ever is in them
_SMI_COUNT = 0x34
_CANONICAL = frozenset((Msr.FS_BASE, Msr.GS_BASE, Msr.KERNEL_GS_BASE, Msr.LSTAR, Msr.CSTAR))
_MADE_CANONICAL = frozenset((Msr.SYSENTER_ESP, Msr.SYSENTER_EIP))
_READ_ONLY = {
    # the Pentium's machine checks, platform, power, energy, chipset: nothing to be told
    **dict.fromkeys((0, 1, 0x17, 0x2A, 0x199, 0x606, 0x611, 0x619, 0x639, 0x641), 0),
    **dict.fromkeys((0xC0010010, 0xC0010055, 0xC0010112, 0xC0010113), 0),
    0xCD: 3,
    0x2C: 1 << 24,
    0x198: 1000 | 4 << 40,
}
_FIXED = {0x11E: 0xBE702111, 0xC001001B: 0x20000000}  # of caches and clocks: written without effect
INITIAL = {
    **dict.fromkeys(Msr, 0),
    Msr.UCODE_REV: 0x1000065,
    Msr.PLATFORM_INFO: _CPUID_FAULT,
    Msr.MCG_CAP: MCE_BANKS,
    Msr.MISC_ENABLE: 1,
    Msr.PAT: 0x0007040600070406,
    Msr.POLL_CONTROL: 1,
    **dict.fromkeys((*_VARIABLE_MTRRS, *_FIXED_MTRRS, *_EMPTY, *_LOADERS, *_BRANCHES, _SMI_COUNT), 0),
    **_READ_ONLY,
    **_FIXED,
    Msr.MTRR_CAP: 0x508,
    **dict.fromkeys(range(MC0_CTL, MC0_CTL + 4 * MCE_BANKS), 0),
    **dict.fromkeys(range(MC0_CTL2, MC0_CTL2 + MCE_BANKS), 0),
}
"""Every register there is, and its value after KVM_CREATE_VCPU where it lives in no register of its own."""

SAVED: tuple[int, ...] = (
    0x174, 0x175, 0x176, 0xC0000081, 0xC0000083, 0xC0000102, 0xC0000084, 0xC0000082, 0x10, 0x277, 0xC0010117,
    0xC0000103, 0x1D9, 0x1DB, 0x1DC, 0x1DD, 0x1DE, *sorted(_FIXED_MTRRS), *_VARIABLE_MTRRS, 0x2FF,
)  # fmt: skip
EMULATED: tuple[int, ...] = (
    0x12, 0x11, 0x4B564D01, 0x4B564D00, 0x4B564D03, 0x4B564D04, 0x3B, 0x6E0, 0x1A0, 0x17A, 0x17B, 0xCE, 0x140, 0x8B,
    0xC0010015, 0x4B564D05, 0x1FC,
)  # fmt: skip
INDEX_LIST = SAVED + EMULATED
"""KVM_GET_MSR_INDEX_LIST."""
FEATURE_LIST: tuple[int, ...] = (0x8B, 0xCE)
"""KVM_GET_MSR_FEATURE_INDEX_LIST: what the system's own KVM_GET_MSRS answers."""
FEATURE_VALUES = {index: INITIAL[index] for index in FEATURE_LIST}
_KVM_FEATURES = {
    Msr.WALL_CLOCK: Feature.KVM_CLOCKSOURCE,
    Msr.SYSTEM_TIME: Feature.KVM_CLOCKSOURCE,
    Msr.WALL_CLOCK_NEW: Feature.KVM_CLOCKSOURCE2,
    Msr.SYSTEM_TIME_NEW: Feature.KVM_CLOCKSOURCE2,
    Msr.STEAL_TIME: Feature.KVM_STEAL_TIME,
    Msr.PV_EOI: Feature.KVM_PV_EOI,
    Msr.POLL_CONTROL: Feature.KVM_POLL_CONTROL,
}
_NEEDS = {Msr.TSC_ADJUST: Feature.TSC_ADJUST, Msr.TSC_AUX: Feature.RDTSCP}


class Refused(Exception):  # not an error of ours: #GP for a guest, the end of an ioctl's list
    """There is no such register, or it cannot be written so."""


@dataclass(frozen=True, slots=True)
class Situation:
    """What a check depends on besides the value. ``host``: the access is an ioctl's."""

    cpuid: Cpuid
    host: bool
    paging: bool = False
    hwcr: int = 0
    mcg_cap: int = MCE_BANKS
    enforce_pv: bool = False
    platform_info: bool = True


def check_read(index: int, of: Situation) -> None:
    """Raise ``Refused`` for a register that is not there, or can only be written."""
    check_there(index, of)
    if index in _LOADERS:
        raise Refused


def check_there(index: int, of: Situation) -> None:
    """Raise ``Refused`` for a register that is not there."""
    if index not in INITIAL or (MC0_CTL <= index < MC0_CTL + 4 * MCE_BANKS and not _is_bank(index, of)):
        raise Refused
    if MC0_CTL2 <= index < MC0_CTL2 + MCE_BANKS and not _is_second(index, of):
        raise Refused
    needed = _NEEDS.get(index)  # type: ignore[call-overload]  # an int is as good a key
    if not of.host and needed is not None and not of.cpuid.has(needed):
        raise Refused
    pv = _KVM_FEATURES.get(index)  # type: ignore[call-overload]
    if not of.host and of.enforce_pv and pv is not None and not of.cpuid.has(pv):
        raise Refused
    if index == Msr.PLATFORM_INFO and not (of.host or of.platform_info):
        raise Refused


def check_write(index: int, value: int, old: int, of: Situation) -> int:
    """Return what ``index`` holds after a write of ``value`` to it. Raises ``Refused``."""
    check_there(index, of)
    check = _CHECKS.get(index)
    if check is not None:
        return check(value, old, of)
    if index in _CANONICAL or index in _MADE_CANONICAL:
        return _check_canonical(index, value)
    if index in _READ_ONLY:
        raise Refused
    if index in _FIXED or index in _LOADERS:
        return old
    if index in _BRANCHES:
        return _must(of.host and not value, 0)
    if index in _EMPTY:
        return _must(index not in _ZERO_ONLY or not value, 0)
    if index in _VARIABLE_MTRRS or index in _FIXED_MTRRS:
        return _check_mtrr(index, value, of)
    if MC0_CTL2 <= index < MC0_CTL2 + MCE_BANKS:
        return _must(not value & ~_CTL2_BITS and (not value or bool(of.mcg_cap & _CMCI_P)), value)
    if index >= MC0_CTL and _is_bank(index, of):
        return _check_bank(index, value, of)
    return value


def is_canonical(address: int) -> bool:
    """Bits 47 to 63 are equal."""
    return address >> 47 in (0, (1 << 17) - 1)


def _must(holds: bool, value: int) -> int:
    if not holds:
        raise Refused
    return value


def _check_canonical(index: int, value: int) -> int:
    if index in _CANONICAL:
        return _must(is_canonical(value), value)
    low = value & (1 << 48) - 1
    return low | (MASK64 ^ (1 << 48) - 1 if low >> 47 else 0)


def _check_efer(value: int, old: int, of: Situation) -> int:
    """``set_efer``."""
    known = EFER_SCE | EFER_LME | EFER_LMA | EFER_NX
    if of.host:
        return _must(not value & ~known, value & ~EFER_LMA | old & EFER_LMA)
    allowed = EFER_SCE
    allowed |= EFER_LME | EFER_LMA if of.cpuid.has(Feature.LM) else 0
    allowed |= EFER_NX if of.cpuid.has(Feature.NX) else 0
    switches = of.paging and (value ^ old) & EFER_LME
    return _must(not value & ~allowed and not switches, value & ~EFER_LMA | old & EFER_LMA)


def check_apic_base(value: int, old: int, of: Situation) -> int:
    """``kvm_set_apic_base``."""
    reserved = of.cpuid.reserved_gpa_bits | _APIC_RESERVED
    reserved |= 0 if of.cpuid.has(Feature.X2APIC) else X2APIC_ENABLE
    modes = [base & (APIC_ENABLE | X2APIC_ENABLE) for base in (old, value)]
    x2apic = APIC_ENABLE | X2APIC_ENABLE
    forbidden = modes in ([x2apic, APIC_ENABLE], [0, x2apic]) and not of.host
    return _must(not value & reserved and modes[1] != X2APIC_ENABLE and not forbidden, value)


def _check_pat(value: int, _old: int, _of: Situation) -> int:
    return _must(all(part in _PAT_TYPES for part in value.to_bytes(8, "little")), value)


def _check_mtrr(index: int, value: int, of: Situation) -> int:
    """``mtrr_valid``."""
    if index in _FIXED_MTRRS:
        return _must(all(part in _MTRR_TYPES for part in value.to_bytes(8, "little")), value)
    reserved = of.cpuid.reserved_gpa_bits | (0x7FF if index & 1 else 0xF00)
    return _must(not value & reserved and (bool(index & 1) or value & 0xFF in _MTRR_TYPES), value)


def _check_mtrr_default(value: int, _old: int, _of: Situation) -> int:
    return _must(not value & ~0xCFF and value & 0xFF in _MTRR_TYPES, value)


def _is_bank(index: int, of: Situation) -> bool:
    return MC0_CTL <= index < MC0_CTL + 4 * (of.mcg_cap & 0xFF)


def _is_second(index: int, of: Situation) -> bool:
    """A bank's CTL2 is there for the guest if it can be interrupted by corrected errors."""
    return index < MC0_CTL2 + (of.mcg_cap & 0xFF) and (of.host or bool(of.mcg_cap & _CMCI_P))


def _check_bank(index: int, value: int, of: Situation) -> int:
    """``set_msr_mce``: CTL is all or nothing but for two bits, STATUS is cleared unless HWCR allows more."""
    part = index & 3
    if part == 0:
        return _must(value == 0 or value | 1 << 10 | 1 == MASK64, value)
    writable = of.host or part != 1 or bool(of.hwcr & _HWCR_STATUS_WRITABLE)
    return _must(value == 0 or writable, value)


def _check_hwcr(value: int, _old: int, _of: Situation) -> int:
    value &= ~_HWCR_IGNORED
    return _must(not value & ~_HWCR_KEPT, value)


def _check_mcg_ctl(value: int, _old: int, of: Situation) -> int:
    present = bool(of.mcg_cap >> 8 & 1)
    return _must((present or (value == 0 and of.host)) and value in (0, MASK64), value)


def _check_microcode(value: int, old: int, of: Situation) -> int:
    return value if of.host else old


def _check_aux(value: int, _old: int, of: Situation) -> int:
    """AMD's CPUs drop the upper half, all others take it for reserved."""
    return _must(of.cpuid.is_amd_compatible or value < 1 << 32, value & 0xFFFFFFFF)


_CHECKS: dict[int, Callable[[int, int, Situation], int]] = {
    Msr.EFER: _check_efer,
    Msr.APIC_BASE: check_apic_base,
    Msr.PAT: _check_pat,
    Msr.MTRR_DEF_TYPE: _check_mtrr_default,
    Msr.MCG_CTL: _check_mcg_ctl,
    Msr.MCG_CAP: lambda value, old, of: _must(of.host and value == old, value),
    Msr.HWCR: _check_hwcr,
    Msr.UCODE_REV: _check_microcode,
    Msr.PLATFORM_INFO: lambda value, _old, of: _must(of.host, value),
    Msr.MISC_FEATURES_ENABLES: lambda value, _old, _of: _must(not value & ~1, value),
    Msr.POLL_CONTROL: lambda value, _old, _of: _must(not value & ~1, value),
    Msr.STEAL_TIME: lambda value, _old, _of: _must(not value & 0x3E, value),
    Msr.PV_EOI: lambda value, _old, _of: _must(not value & 2, value),  # but for its enable bit a multiple of four
    Msr.DEBUGCTL: lambda value, _old, _of: _must(not value & ~0x3F, value),
    Msr.TSC_AUX: _check_aux,
    Msr.MTRR_CAP: lambda value, old, of: _must(value == old and of.host, old),
    _SMI_COUNT: lambda value, _old, of: _must(of.host, value),
    Msr.SYSENTER_CS: lambda value, _old, _of: value & 0xFFFFFFFF,
}
