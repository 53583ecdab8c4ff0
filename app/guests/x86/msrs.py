"""The model-specific registers a guest may touch; any other raises #GP, as with KVM's ``ignore_msrs`` off."""

from __future__ import annotations

RDMSR, WRMSR = 0x0F32, 0x0F30

KNOWN = frozenset(
    (
        0x10,  # TSC
        0x1B,  # APIC_BASE
        0x8B,  # microcode revision
        0xFE,  # MTRRcap
        *range(0x174, 0x177),  # SYSENTER
        *range(0x179, 0x17C),  # MCG_CAP, MCG_STATUS, MCG_CTL
        0x1A0,  # MISC_ENABLE
        0x1D9,  # DEBUGCTL
        *range(0x200, 0x210),  # variable MTRRs
        *(0x250, 0x258, 0x259, *range(0x268, 0x270), 0x2FF),  # fixed MTRRs and their default
        0x277,  # PAT
        *range(0x400, 0x480),  # machine check banks
        *range(0xC0000080, 0xC0000085),  # EFER, STAR, LSTAR, CSTAR, FMASK
        *range(0xC0000100, 0xC0000104),  # FS, GS and kernel GS bases, TSC_AUX
    )
)
