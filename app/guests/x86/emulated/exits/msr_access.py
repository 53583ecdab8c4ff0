"""RDMSR and WRMSR: by the CPU itself, by the kernel (an in-kernel local APIC's), or by userspace.

Userspace is asked for what it has filtered, and for what there is not or cannot be written so, if it wants to be
(``kvm_msr_user_space``); else the guest gets #GP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kickstand.core.arch.cpu.msrs import INITIAL, Msr, Refused
from kickstand.core.arch.msr_filter import FILTERED, INVALID, UNKNOWN
from kickstand.core.run.exits import MsrExit
from kickstand.guests.x86.emulated.exits.pending import PendingMsr
from kickstand.guests.x86.state.faults import GP, GuestFaultError
from kickstand.guests.x86.state.registers import RAX, RCX, RDX

if TYPE_CHECKING:
    from collections.abc import Callable

    from kickstand.guests.x86.emulated.exits.pio import Ports
    from kickstand.guests.x86.state.model import Model, Msrs
    from kickstand.guests.x86.state.registers import CpuState

_MASK32 = 0xFFFF_FFFF
Begun = tuple[MsrExit, PendingMsr]


class MsrAccess:
    """Both instructions of one CPU. ``changed`` is called after a write: it may have been EFER."""

    def __init__(self, state: CpuState, ports: Ports, msrs: Msrs, model: Model, changed: Callable[[], None]) -> None:
        self._state = state
        self._ports = ports
        self._msrs = msrs
        self._model = model
        self._changed = changed

    @property
    def _index(self) -> int:
        return self._state.gpr[RCX] & _MASK32

    @property
    def _value(self) -> int:
        gpr = self._state.gpr
        return (gpr[RDX] & _MASK32) << 32 | gpr[RAX] & _MASK32

    def begin(self, length: int, *, write: bool) -> Begun | None:
        """Do the instruction, which has ``length`` bytes, but for moving RIP; None: it is done. Raises #GP."""
        if self._state.cpl:
            raise GuestFaultError(GP)
        index, pending = self._index, PendingMsr(length, write)
        if not self._model.arch.msr_filter.allows(index, write=write):
            return self._refused(FILTERED, pending)
        if index in self._model.answered:
            return self._ask_kernel(index, pending)
        try:
            self._perform(index, write=write)
        except Refused:
            return self._refused(INVALID if index in INITIAL else UNKNOWN, pending)
        return None

    def _perform(self, index: int, *, write: bool) -> None:
        if write:
            self._msrs.write(index, self._value)
            self._changed()
        else:
            self._give(self._msrs.read(index))

    def _give(self, value: int) -> None:
        self._state.gpr[RAX], self._state.gpr[RDX] = value & _MASK32, value >> 32

    def _ask_kernel(self, index: int, pending: PendingMsr) -> Begun:
        if not pending.write:
            return MsrExit(index, is_write=False), pending
        ahead = self._model.tsc.ns_until(self._value) if index == Msr.TSC_DEADLINE else 0
        return MsrExit(index, is_write=True, value=self._value, ns_ahead=ahead), pending

    def _refused(self, reason: int, pending: PendingMsr) -> Begun:
        if not self._model.arch.user_space_msr & reason:
            raise GuestFaultError(GP)
        value = self._value if pending.write else 0
        exit = MsrExit(self._index, is_write=pending.write, value=value, msr_reason=reason)
        return exit, PendingMsr(pending.length, pending.write, user=True)

    def complete(self, pending: PendingMsr, reply: bytes) -> Begun | None:
        """Finish it: one byte that is not 0 for an error, and eight of the value that was read."""
        if reply[0]:
            if pending.user:
                raise GuestFaultError(GP)
            return self._refused(INVALID, pending)
        if not pending.write:
            self._give(int.from_bytes(reply[1:9], "little"))
        self._ports.advance(pending.length)
        return None
