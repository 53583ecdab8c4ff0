"""``struct kvm_arch``: what a VM's userspace has set up of it, as far as a guest notices it. Not what is explored."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

from kickstand.core.arch.coalesced import CoalescedIo
from kickstand.core.arch.kvmclock import KvmClock
from kickstand.core.arch.msr_filter import NO_FILTER, MsrFilter
from kickstand.core.arch.tsc import TscSync
from kickstand.core.errors import KvmError
from kickstand.core.uapi import MAX_VCPU_ID, QUIRKS, Quirk, X2ApicApi

ENABLE_CAP = "KVM_ENABLE_CAP"
DISABLE_MWAIT, DISABLE_HLT, DISABLE_PAUSE, DISABLE_CSTATE = 1, 2, 4, 8
HC_MAP_GPA_RANGE = 12  # the hypercall that can be made an exit
_LONGEST_COUNT_CYCLES = 0xFFFF_FFFF * 128  # the largest count of an APIC timer with the largest divisor
_MASK64 = (1 << 64) - 1


@dataclass(slots=True)
class KvmArch:
    """The part of a VM that its vCPUs, their APICs and engines look at, each when it needs it."""

    apic_bus_cycle_ns: int = 1
    disabled_quirks: int = 0
    x2apic_api: int = 0
    nr_reserved_ioapic_pins: int = 0
    """KVM_CAP_SPLIT_IRQCHIP: so many lines are pins of userspace's IOAPIC."""
    boot_vcpu_id: int = 0
    """KVM_SET_BOOT_CPU_ID: the vCPU that starts by itself."""
    max_vcpu_ids: int = MAX_VCPU_ID
    """KVM_CAP_MAX_VCPU_ID: vCPU ids are below it."""
    max_vcpu_ids_set: bool = False
    user_space_msr: int = 0
    """KVM_CAP_X86_USER_SPACE_MSR: for which reasons a refused access becomes an exit (``msr_filter``)."""
    msr_filter: MsrFilter = NO_FILTER
    platform_info: bool = True
    """KVM_CAP_MSR_PLATFORM_INFO: the guest may read that MSR."""
    exit_on_emulation_failure: bool = False
    hypercall_exits: int = 0
    """KVM_CAP_EXIT_HYPERCALL: bits by hypercall number."""
    disabled_exits: int = 0
    """KVM_CAP_X86_DISABLE_EXITS."""
    n_max_mmu_pages: int = 0
    """KVM_SET_NR_MMU_PAGES: of shadow pages, of which there are none here."""
    dirty_ring_entries: int = 0
    """KVM_CAP_DIRTY_LOG_RING: of each vCPU's ring; 0: pages are logged in bitmaps."""
    clock: KvmClock = field(default_factory=KvmClock, compare=False)
    coalesced: CoalescedIo = field(default_factory=CoalescedIo, compare=False)
    tsc: TscSync = field(default_factory=TscSync, compare=False)

    def has_quirk(self, quirk: Quirk) -> bool:
        """``kvm_check_has_quirk``."""
        return not self.disabled_quirks & quirk

    @property
    def x2apic_format(self) -> bool:
        """APIC ids and destinations have 32 bits in KVM_GET_LAPIC, KVM_SET_LAPIC, MSIs and routes."""
        return bool(self.x2apic_api & X2ApicApi.USE_32BIT_IDS)

    @property
    def x2apic_broadcast_quirk_disabled(self) -> bool:
        """A message to 0xff from an MSI or an IOAPIC names one APIC in x2APIC mode, not all."""
        return bool(self.x2apic_api & X2ApicApi.DISABLE_BROADCAST_QUIRK)

    def disable_quirks(self, quirks: int) -> None:
        """KVM_CAP_DISABLE_QUIRKS: these and those from before; what is none here is ignored."""
        self.disabled_quirks |= quirks & QUIRKS

    def check_quirks(self, quirks: int) -> None:
        """KVM_CAP_DISABLE_QUIRKS2. EINVAL: there is no such quirk here."""
        if quirks & ~QUIRKS:
            raise KvmError(errno.EINVAL, ENABLE_CAP, f"quirks {quirks & ~QUIRKS:#x} are none", field="args")

    def enable_x2apic_api(self, flags: int) -> None:
        """KVM_CAP_X2APIC_API. EINVAL: unknown flags."""
        if flags & ~sum(X2ApicApi):
            raise KvmError(errno.EINVAL, ENABLE_CAP, f"flags {flags:#x} are not known", field="args")
        self.x2apic_api |= flags

    def check_bus_cycle(self, cycle_ns: int) -> None:
        """KVM_CAP_X86_APIC_BUS_CYCLES_NS. EINVAL: 0, or the longest count would not fit into 64 bits of ns."""
        if not 0 < cycle_ns <= _MASK64 // _LONGEST_COUNT_CYCLES:
            raise KvmError(errno.EINVAL, ENABLE_CAP, f"a bus cycle of {cycle_ns} ns cannot be counted", field="args")
