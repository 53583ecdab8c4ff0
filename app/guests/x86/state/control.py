"""Which values control registers can have."""

from __future__ import annotations

from kickstand.core.arch.cpu.cpuid import Cpuid, Feature
from kickstand.guests.x86.state.registers import CR0_PE, CR0_PG

CR0_ET, CR0_NW, CR0_CD, CR0_WP = 1 << 4, 1 << 29, 1 << 30, 1 << 16
_CR4_ALWAYS = 0x7FF  # VME to OSXMMEXCPT
_CR4_FEATURES = {
    1 << 11: Feature.UMIP,
    1 << 12: Feature.LA57,
    1 << 16: Feature.FSGSBASE,
    1 << 17: Feature.PCID,
    1 << 18: Feature.XSAVE,
    1 << 20: Feature.SMEP,
    1 << 21: Feature.SMAP,
    1 << 22: Feature.PKU,
}
_CR4_NEVER = 1 << 12 | 1 << 18 | 1 << 22  # LA57, OSXSAVE, PKE: whatever the table says, the engine has them not


def is_valid_cr0(cr0: int) -> bool:
    """``kvm_is_valid_cr0``."""
    upper = cr0 >> 32
    return not (upper or (cr0 & CR0_NW and not cr0 & CR0_CD) or (cr0 & CR0_PG and not cr0 & CR0_PE))


def is_valid_cr4(cr4: int, cpuid: Cpuid) -> bool:
    """``kvm_is_valid_cr4``: a bit of a feature that the guest has not is reserved."""
    return not cr4 & ~_CR4_ALWAYS or not cr4 & ~allowed_cr4(cpuid)


def allowed_cr4(cpuid: Cpuid) -> int:
    """The bits of CR4 that may be set."""
    allowed = _CR4_ALWAYS | sum(bit for bit, feature in _CR4_FEATURES.items() if cpuid.has(feature))
    return allowed & ~_CR4_NEVER


def is_legal_cr3(cr3: int, cpuid: Cpuid) -> bool:
    """``kvm_vcpu_is_legal_cr3``."""
    return not cr3 & cpuid.reserved_gpa_bits
