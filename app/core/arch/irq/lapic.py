"""The local APIC of one vCPU: what its registers hold, and what reading and writing them does.

Pure: time is an argument, and what a write sends or starts is returned or left in ``timer`` for whoever owns the clock.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from kickstand.core.arch.irq.lvt import LocalVectors
from kickstand.core.arch.irq.message import CLUSTER, FLAT, Message, Shorthand, Station, ipi
from kickstand.core.arch.irq.mode import RefusedError, x2apic_ldr
from kickstand.core.arch.irq.registers import (
    ASSERT,
    BITMAPS,
    BUSY,
    DFR,
    ENABLED,
    EXTINT_MODE,
    ICR,
    ICR2,
    ID,
    LDR,
    LVTCMCI,
    MASK32,
    MASKED,
    READABLE,
    SPIV,
    TASKPRI,
    TDCR,
    TIMER,
    TMCCT,
    TMICT,
    X2APIC_ICR_RESERVED,
    X2APIC_MSRS,
    XAPIC_ONLY,
    Reg,
    Timer,
)
from kickstand.core.arch.kvm_arch import KvmArch
from kickstand.core.uapi import Quirk


@dataclass(frozen=True, slots=True)
class Effect:
    """What a write asks for: a message to send, or the end of a vector's service."""

    message: Message | None = None
    ended: int | None = None  # EOI of this vector
    level_triggered: bool = False
    timed: bool = False  # the timer may be due at another time


NOTHING, TIMED = Effect(), Effect(timed=True)


class Lapic(LocalVectors):
    """``struct kvm_lapic``. ``vcpu_id`` is its first APIC id; ``expires`` is when its timer is due, in ns, or None."""

    def __init__(self, vcpu_id: int, *, boot: bool, arch: KvmArch | None = None) -> None:
        super().__init__(vcpu_id, boot=boot, arch=arch or KvmArch())
        self.arbitration = 0
        self.reports_tpr = False  # userspace wants to know who accesses the task priority
        self.vapic: int | None = None  # where in guest memory the task priority is kept, too
        self.reset()

    # -- the whole ---------------------------------------------------------------------------------------

    def reset(self) -> None:
        """``kvm_lapic_reset`` on INIT: id, base and mode stay."""
        self.stop_timer()
        words = self.words
        self.set_version(self.entries)
        for entry in self.entries:
            words[entry >> 2] = MASKED
        if self.boot and self.arch.has_quirk(Quirk.LINT0_REENABLED):
            words[Reg.LVT0 >> 2] = EXTINT_MODE
        words[SPIV >> 2] = 0xFF
        if not self.x2apic:
            words[DFR >> 2] = FLAT
            words[LDR >> 2] = 0
        for zero in (TASKPRI, Reg.ESR, ICR, ICR2, TDCR, TMICT):
            words[zero >> 2] = 0
        self.irr = self.isr = self.tmr = 0

    def state(self) -> tuple[Any, ...]:
        """All of it as one hashable value."""
        return (
            self.base, bytes(self.page), self.irr, self.isr, self.tmr, self.expires, self.period, self.tsc_deadline,
            self.arbitration, self.reports_tpr, self.vapic,
        )  # fmt: skip

    def load(self, state: tuple[Any, ...]) -> None:
        """Put a value of ``state`` back."""
        (
            self.base, page, self.irr, self.isr, self.tmr, self.expires, self.period, self.tsc_deadline,
            self.arbitration, self.reports_tpr, self.vapic,
        ) = state  # fmt: skip
        self.page[:] = page

    @property
    def registers_kept(self) -> bytes:
        """What ``page`` holds, for those who keep it."""
        return bytes(self.page)

    @registers_kept.setter
    def registers_kept(self, page: bytes) -> None:
        self.page[:] = page

    def registers(self, now: int) -> bytes:
        """KVM_GET_LAPIC: 1,024 bytes; in x2APIC mode the id is where xAPIC has it, unless it has 32 bits."""
        page = bytearray(self.page)
        for offset, (base, shift) in BITMAPS.items():
            struct.pack_into("<I", page, offset, self._bitmap(base) >> shift & MASK32)
        struct.pack_into("<I", page, Reg.PROCPRI, self.processor_priority)
        struct.pack_into("<I", page, TMCCT, self.current_count(now))
        if self.x2apic:
            if not self.arch.x2apic_format:
                struct.pack_into("<I", page, ID, self.words[ID >> 2] << 24 & MASK32)
            struct.pack_into("<I", page, ICR + 4, self.words[ICR2 >> 2])  # one register of 64 bits there
        return bytes(page)

    def set_registers(self, page: bytes, now: int) -> None:
        """KVM_SET_LAPIC: everything but base and version comes from ``page``; the timer goes on from its count.

        In x2APIC mode the id cannot be set: another one is ignored, or with 32-bit ids a ``RefusedError``.
        """
        if self.x2apic and self.arch.x2apic_format and int.from_bytes(page[ID : ID + 4], "little") != self.vcpu_id:
            raise RefusedError
        entries = self.entries
        self.page[:] = page
        for base in (Reg.ISR, Reg.TMR, Reg.IRR):
            values = [self.words[(base >> 2) + 4 * word] << 32 * word for word in range(8)]
            self._set_bitmap(base, sum(values))
        words = self.words
        self.set_version(entries)
        if self.x2apic:
            words[ID >> 2], words[LDR >> 2] = self.vcpu_id, x2apic_ldr(self.vcpu_id)
        self.stop_timer()
        if self.timer is not Timer.TSC_DEADLINE:
            self._start_timer(now, words[TMCCT >> 2] or words[TMICT >> 2])

    # -- accepting and serving ---------------------------------------------------------------------------

    def is_named(self, message: Message) -> bool:
        """``kvm_apic_match_dest``: the message's destination is, or includes, this APIC."""
        words = self.words
        number = self.vcpu_id if self.x2apic else words[ID >> 2] >> 24
        station = Station(self.vcpu_id, number, words[LDR >> 2], words[DFR >> 2], self.x2apic)
        return station.is_named(message, everybody=not self.arch.x2apic_broadcast_quirk_disabled)

    def ended(self) -> Effect:
        """EOI: the service of the highest vector ends; a broadcast to IOAPICs where it is level triggered."""
        if not self.isr:
            return NOTHING
        vector = self.isr.bit_length() - 1
        self.isr &= ~(1 << vector)
        return Effect(ended=vector, level_triggered=bool(self.tmr >> vector & 1))

    def enable(self) -> None:
        """As a guest's firmware does: by software, in the spurious vector register."""
        self.words[SPIV >> 2] |= ENABLED

    # -- registers ---------------------------------------------------------------------------------------

    def is_timed(self, gpa: int) -> bool:
        """An access there has to do with time."""
        return gpa & 0xFF0 in TIMER

    def read_page(self, gpa: int, length: int, now: int) -> bytes:
        """A load from the page: ones while it is disabled, zeros where there is nothing to read."""
        if not self.in_use:
            return b"\xff" * length
        offset = gpa - self.address
        try:
            value = self.read(offset & ~0xF, now) if offset & 0xF <= 4 - length else 0
        except RefusedError:
            value = 0
        return (value >> 8 * (offset & 3) & (1 << 8 * length) - 1).to_bytes(length, "little")

    def write_page(self, gpa: int, data: bytes, now: int) -> Effect:
        """A store to the page: 32 bits at a multiple of 16 bytes, anything else does nothing."""
        offset = gpa - self.address
        if not self.in_use or len(data) != 4 or offset & 0xF:
            return NOTHING
        try:
            return self.write(offset, int.from_bytes(data, "little"), now)
        except RefusedError:
            return NOTHING

    def read(self, offset: int, now: int) -> int:
        """One register of the page. ``RefusedError``: there is none to read."""
        absent = offset == LVTCMCI and offset not in self.entries
        if offset not in READABLE or absent or (self.x2apic and offset in XAPIC_ONLY):
            raise RefusedError
        if offset in BITMAPS:
            base, shift = BITMAPS[offset]
            return self._bitmap(base) >> shift & MASK32
        if offset == Reg.PROCPRI:
            return self.processor_priority
        if offset == TMCCT:
            return self.current_count(now)
        return self.words[offset >> 2]

    def write(self, offset: int, value: int, now: int) -> Effect:
        """``kvm_lapic_reg_write``. ``RefusedError``: the register cannot be written, or not with this value."""
        if offset == Reg.EOI:
            return self.ended()
        if offset == ICR:
            return self._write_icr(value)
        if offset == Reg.SELF_IPI and self.x2apic and not value >> 8:
            return Effect(message=ipi(Shorthand.SELF << 18 | ASSERT | value, 0, self.vcpu_id))
        if offset in TIMER:
            self._write_timer(offset, value, now)
            return TIMED
        if offset in self.entries:
            self._write_lvt(offset, value)
        elif offset == TASKPRI:
            self.set_task_priority(value)
        elif offset == SPIV:
            self._write_spurious(value)
        elif self.x2apic:
            if offset != Reg.ESR or value:
                raise RefusedError
        else:
            self._write_xapic(offset, value)
        return NOTHING

    def _write_icr(self, value: int) -> Effect:
        value &= ~BUSY
        self.words[ICR >> 2] = value
        high = self.words[ICR2 >> 2]
        return Effect(message=ipi(value, high if self.x2apic else high >> 24, self.vcpu_id))

    def _write_spurious(self, value: int) -> None:
        self.words[SPIV >> 2] = value & 0x3FF
        if not value & ENABLED:
            for entry in self.entries:
                self.words[entry >> 2] |= MASKED

    def _write_xapic(self, offset: int, value: int) -> None:
        if offset == ID:
            self.set_id(value >> 24)
        elif offset == LDR:
            self.words[LDR >> 2] = value & 0xFF00_0000
        elif offset == DFR:
            self.words[DFR >> 2] = value | CLUSTER
        elif offset == ICR2:
            self.words[ICR2 >> 2] = value & 0xFF00_0000
        elif offset != Reg.ESR:
            raise RefusedError

    def read_msr(self, index: int, now: int) -> int:
        """One of the x2APIC MSRs (0x800 to 0x8ff). ``RefusedError``: #GP."""
        if not self.x2apic:
            raise RefusedError
        offset = (index - X2APIC_MSRS) << 4
        value = self.read(offset, now)
        return value | self.words[ICR2 >> 2] << 32 if offset == ICR else value

    def write_msr(self, index: int, value: int, now: int) -> Effect:
        """One of the x2APIC MSRs; only the ICR has an upper half. ``RefusedError``: #GP."""
        offset = (index - X2APIC_MSRS) << 4
        if not self.x2apic or value & (X2APIC_ICR_RESERVED if offset == ICR else ~MASK32):
            raise RefusedError
        if offset == ICR:
            self.words[ICR2 >> 2] = value >> 32
        return self.write(offset, value & MASK32, now)

    def timer_fired(self, now: int) -> bool:
        """The time may have come: true if LVTT's interrupt has been requested."""
        vector = self.advance_timer(now)
        return vector is not None and self.accept(vector)
