"""The registers of a local APIC: where they are, which bits they have, and what can be read."""

from __future__ import annotations

from enum import IntEnum

from kickstand.core.arch.irq.message import Delivery

PAGE = 0x1000  # of addresses that it answers
REGISTERS = 0x400  # ``kvm_lapic_state``
APIC_BASE_DEFAULT = 0xFEE00000
BASE_BSP, BASE_X2APIC, BASE_ENABLE = 1 << 8, 1 << 10, 1 << 11
BASE_ADDRESS = 0xF_FFFF << 12
BASE_RESERVED = 0x2FF
VERSION = 0x14
MASKED, SEND_PENDING, ENABLED = 1 << 16, 1 << 12, 1 << 8
BUSY, ASSERT = 1 << 12, 1 << 14
MIN_PERIOD_NS = 200_000  # of a periodic timer: ``min_timer_period_us``
X2APIC_MSRS = 0x800
X2APIC_ICR_RESERVED = 0xFFF << 20 | 3 << 16 | 1 << 13
MASK32 = 0xFFFF_FFFF


class Reg(IntEnum):
    """Offsets in the APIC page."""

    ID = 0x20
    LVR = 0x30
    TASKPRI = 0x80
    ARBPRI = 0x90
    PROCPRI = 0xA0
    EOI = 0xB0
    LDR = 0xD0
    DFR = 0xE0
    SPIV = 0xF0
    ISR = 0x100
    TMR = 0x180
    IRR = 0x200
    ESR = 0x280
    LVTCMCI = 0x2F0
    ICR = 0x300
    ICR2 = 0x310
    LVTT = 0x320
    LVTTHMR = 0x330
    LVTPC = 0x340
    LVT0 = 0x350
    LVT1 = 0x360
    LVTERR = 0x370
    TMICT = 0x380
    TMCCT = 0x390
    TDCR = 0x3E0
    SELF_IPI = 0x3F0


# Plain names: looking a member up through its class costs more than the work that is done with it.
ID, TASKPRI, LDR, DFR, SPIV, ICR, ICR2 = Reg.ID, Reg.TASKPRI, Reg.LDR, Reg.DFR, Reg.SPIV, Reg.ICR, Reg.ICR2
LVR, LVTCMCI = Reg.LVR, Reg.LVTCMCI
LVTT, TMICT, TMCCT, TDCR = Reg.LVTT, Reg.TMICT, Reg.TMCCT, Reg.TDCR
BITMAPS = {base + 0x10 * word: (base, 32 * word) for base in (Reg.ISR, Reg.TMR, Reg.IRR) for word in range(8)}
_LVT = MASKED | SEND_PENDING | 0xFF
_LVT_MODE = _LVT | 0x700
_LINT = _LVT_MODE | 1 << 13 | 1 << 14 | 1 << 15
LVT_BITS: dict[int, int] = {
    Reg.LVTT: _LVT | 3 << 17, Reg.LVTTHMR: _LVT_MODE, Reg.LVTPC: _LVT_MODE, Reg.LVT0: _LINT, Reg.LVT1: _LINT,
    Reg.LVTERR: _LVT,
}  # fmt: skip
"""The bits that each entry of the local vector table has."""
LVT_BITS_WITH_CMCI: dict[int, int] = LVT_BITS | {Reg.LVTCMCI: _LVT_MODE}
"""The same where corrected machine checks can interrupt."""
TIMER = frozenset({Reg.LVTT, Reg.TMICT, Reg.TMCCT, Reg.TDCR})  # what has to do with time
READABLE = frozenset({*Reg, *BITMAPS}) - {Reg.EOI, Reg.SELF_IPI}
XAPIC_ONLY = frozenset({Reg.ARBPRI, Reg.DFR, Reg.ICR2})
EXTINT_MODE = Delivery.EXTINT << 8


class Timer(IntEnum):
    """How the timer runs, as bits 17 and 18 of LVTT have it; 3 is reserved and runs as one shot."""

    ONE_SHOT = 0
    PERIODIC = 1
    TSC_DEADLINE = 2
