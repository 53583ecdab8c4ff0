"""SYSCALL and SYSENTER, which the translator leaves to its user."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kickstand.guests.x86.state.faults import GP, UD, GuestFaultError
from kickstand.guests.x86.state.registers import EFER_SCE, FLAG_IF, FLAG_RF, FLAG_VM, RCX, RSP
from kickstand.guests.x86.state.segments import CS, SS

if TYPE_CHECKING:
    from collections.abc import Callable

    from kickstand.guests.x86.state.registers import CpuState

_STAR, _LSTAR, _CSTAR, _FMASK = 0xC0000081, 0xC0000082, 0xC0000083, 0xC0000084
_SYSENTER_CS, _SYSENTER_ESP, _SYSENTER_EIP = 0x174, 0x175, 0x176
_FLAT = 0xFFFFFFFF
_CODE32, _CODE64, _DATA = 0xC09B00, 0xA09B00, 0xC09300
_R11 = 11


def syscall(state: CpuState, next_rip: int, read_msr: Callable[[int], int]) -> None:
    """``em_syscall``."""
    if not state.efer & EFER_SCE or not state.protected:
        raise GuestFaultError(UD)
    star = read_msr(_STAR)
    state.gpr[RCX] = next_rip
    if state.long_mode:
        state.gpr[_R11] = state.flags & ~FLAG_RF
        target = read_msr(_LSTAR if state.bits == 64 else _CSTAR)  # noqa: PLR2004 - 64-bit code
        state.flags &= ~(read_msr(_FMASK) | FLAG_RF)
    else:
        target = star & 0xFFFFFFFF
        state.flags &= ~(FLAG_VM | FLAG_IF | FLAG_RF)
    _enter_kernel(state, star >> 32 & 0xFFFC, target)


def sysenter(state: CpuState, read_msr: Callable[[int], int]) -> None:
    """``em_sysenter``."""
    selector = read_msr(_SYSENTER_CS) & 0xFFFC
    if not state.protected or selector == 0:
        raise GuestFaultError(GP)
    state.flags &= ~(FLAG_VM | FLAG_IF | FLAG_RF)
    state.gpr[RSP] = read_msr(_SYSENTER_ESP)
    _enter_kernel(state, selector, read_msr(_SYSENTER_EIP))


def _enter_kernel(state: CpuState, selector: int, target: int) -> None:
    state.segment[CS].load(selector, 0, _FLAT, _CODE64 if state.long_mode else _CODE32)
    state.segment[SS].load(selector + 8, 0, _FLAT, _DATA)
    state.rip = target
    state.update_hidden_flags()
    state.clear_shadow()
