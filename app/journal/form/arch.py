"""``core.arch.kvm_arch``: what userspace has set up of a VM, in the part ``vm``; and the part ``clock``."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, TypeAdapter

from kickstand.core.arch.coalesced import ENTRIES, CoalescedIo, Entry, Zone
from kickstand.core.arch.kvmclock import KvmClock
from kickstand.core.arch.msr_filter import ALL_REASONS, MAX_BITMAP, MAX_RANGES, MsrFilter, Range, make_filter
from kickstand.core.memslots.dirty_ring import MAX_ENTRIES
from kickstand.core.uapi import MAX_IRQ_ROUTES, MAX_VCPU_ID, QUIRKS, X2ApicApi
from kickstand.journal.form.part import Part, Unsigned

Word = Annotated[int, Field(ge=0, lt=1 << 32)]
Pio = Annotated[int, Field(ge=0, le=1)]


class FilterRange(Part):
    """``kvm_msr_filter_range``."""

    flags: Annotated[int, Field(ge=1, le=3)]
    base: Word
    nmsrs: Annotated[int, Field(ge=1, le=MAX_BITMAP * 8)]
    bitmap: Annotated[bytes, Field(max_length=MAX_BITMAP)]


class Filter(Part):
    """``kvm_x86_msr_filter``."""

    default_allow: bool = True
    ranges: Annotated[tuple[FilterRange, ...], Field(max_length=MAX_RANGES)] = ()

    def living(self) -> MsrFilter:
        """``KvmError``: KVM_X86_SET_MSR_FILTER would not have taken it."""
        ranges = [Range(range_.flags, range_.base, range_.nmsrs, range_.bitmap) for range_ in self.ranges]
        return make_filter(int(not self.default_allow), ranges)


class Coalesced(Part):
    """``coalesced.CoalescedIo``: zones as (address, bytes, of ports), and what was noted and not taken yet."""

    zones: Annotated[tuple[tuple[Unsigned, Word, Pio], ...], Field(max_length=1 << 16)] = ()
    entries: Annotated[
        tuple[tuple[Unsigned, Pio, Annotated[bytes, Field(min_length=1, max_length=8)]], ...],
        Field(max_length=ENTRIES - 1),
    ] = ()

    @classmethod
    def of(cls, live: CoalescedIo) -> Self:
        return cls(
            zones=tuple((zone.addr, zone.size, zone.pio) for zone in live.zones),
            entries=tuple((entry.phys_addr, entry.pio, entry.data) for entry in live.entries),
        )

    def into(self, live: CoalescedIo) -> None:
        """Of a VM that no program has mapped."""
        live.zones = tuple(Zone(*zone) for zone in self.zones)
        live.entries = [Entry(*entry) for entry in self.entries]


class KvmArch(Part):
    """``core.arch.kvm_arch.KvmArch``: what userspace has set; what older files do not say is as in a new VM."""

    apic_bus_cycle_ns: Annotated[int, Field(ge=1, le=1 << 25)] = 1
    disabled_quirks: Annotated[int, Field(ge=0, le=QUIRKS)] = 0
    x2apic_api: Annotated[int, Field(ge=0, le=sum(X2ApicApi))] = 0
    nr_reserved_ioapic_pins: Annotated[int, Field(ge=0, le=MAX_IRQ_ROUTES)] = 0
    boot_vcpu_id: Annotated[int, Field(ge=0, le=MAX_VCPU_ID)] = 0
    max_vcpu_ids: Annotated[int, Field(ge=1, le=MAX_VCPU_ID)] = MAX_VCPU_ID
    max_vcpu_ids_set: bool = False
    user_space_msr: Annotated[int, Field(ge=0, le=ALL_REASONS)] = 0
    platform_info: bool = True
    exit_on_emulation_failure: bool = False
    hypercall_exits: Word = 0
    disabled_exits: Annotated[int, Field(ge=0, le=0xF)] = 0
    n_max_mmu_pages: Word = 0
    msr_filter: Filter = Filter()
    dirty_ring_entries: Annotated[int, Field(ge=0, le=MAX_ENTRIES)] = 0


class Clock(Part):
    """The part ``clock``: kvmclock, and the rate of vCPUs' counters to come."""

    ns: Unsigned
    default_khz: Annotated[int, Field(ge=1, lt=1 << 32)]

    @classmethod
    def of(cls, live: KvmClock) -> Self:
        return cls(ns=max(0, live.now_ns), default_khz=live.default_khz)

    def into(self, live: KvmClock) -> None:
        """It goes on from there."""
        live.go_on_from(self.ns)
        live.default_khz = self.default_khz


CLOCK, COALESCED = TypeAdapter(Clock), TypeAdapter(Coalesced)
