"""Structures of ``linux/kvm.h`` about time, debugging, machine checks, coalesced writes and MSR exits."""

from __future__ import annotations

from kickstand.core.uapi.layout import ADDR, PADDING, U8, U32, U64, Array, Bytes, struct

KVM_CLOCK_DATA = struct(
    "kvm_clock_data", ("clock", U64), ("flags", U32), (PADDING, U32), ("realtime host_tsc", U64), (PADDING, Bytes(16))
)
KVM_GUEST_DEBUG = struct("kvm_guest_debug", ("control", U32), (PADDING, U32), ("debugreg", Array(ADDR, 8)))
KVM_X86_MCE = struct("kvm_x86_mce", ("status addr misc mcg_status", ADDR), ("bank", U8), (PADDING, Bytes(31)))
KVM_DEVICE_ATTR = struct("kvm_device_attr", ("flags group", U32), ("attr", U64), ("addr", ADDR))
KVM_COALESCED_MMIO_ZONE = struct("kvm_coalesced_mmio_zone", ("addr", ADDR), ("size pio", U32))
KVM_MSR_FILTER_RANGE = struct("kvm_msr_filter_range", ("flags nmsrs base", U32), (PADDING, U32), ("bitmap", ADDR))
KVM_MSR_FILTER = struct(
    "kvm_msr_filter", ("flags", U32), (PADDING, U32), ("ranges", Array(KVM_MSR_FILTER_RANGE, 16))
)  # fmt: skip
MSR_EXIT = struct("msr", ("error", U8), (PADDING, Bytes(7)), ("reason index", U32), ("data", ADDR))
DEBUG_EXIT = struct("debug.arch", ("exception", U32), (PADDING, U32), ("pc dr6 dr7", ADDR))
HYPERCALL_EXIT = struct(
    "hypercall", ("nr", U64), ("args", Array(ADDR, 6)), ("ret", U64), ("longmode", U32), (PADDING, U32)
)
KVM_TPR_ACCESS_CTL = struct("kvm_tpr_access_ctl", ("enabled flags", U32), (PADDING, Bytes(32)))
KVM_VAPIC_ADDR = struct("kvm_vapic_addr", ("vapic_addr", ADDR))
TPR_ACCESS_EXIT = struct("tpr_access", ("rip", ADDR), ("is_write", U32), (PADDING, U32))
EOI_EXIT = struct("eoi", ("vector", U8))
