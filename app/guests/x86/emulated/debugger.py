"""A CPU with breakpoints: one instruction at a time, KVM_EXIT_DEBUG for a debugger's, #DB for the guest's own.

A breakpoint before an instruction is a fault: RFLAGS.RF lets the guest past it. One on data is a trap behind it. What
string instructions of ports and the CPU itself (tables, frames) access is not watched, nor are ports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kickstand.core.run.exits import DebugExit, Exit
from kickstand.guests.x86.emulated.decoding.decode import shape
from kickstand.guests.x86.emulated.instructions.privileged import MOV_FROM_DR, MOV_TO_DR
from kickstand.guests.x86.emulated.interrupts.events import Event
from kickstand.guests.x86.memory.physical import AccessStoppedError
from kickstand.guests.x86.state.debug import DR6_BD, DR6_BS, DR6_FIXED, DR6_HITS, Breakpoints
from kickstand.guests.x86.state.faults import DB, DeviceAccessError, GuestFaultError
from kickstand.guests.x86.state.registers import FLAG_RF

if TYPE_CHECKING:
    from kickstand.guests.x86.emulated.emulator import Emulator
    from kickstand.guests.x86.state.model import Model
    from kickstand.guests.x86.state.registers import CpuState


class Debugger:
    """Steps one CPU."""

    def __init__(self, state: CpuState, emulator: Emulator, model: Model) -> None:
        self._state = state
        self._emulator = emulator
        self._debug = model.debug

    @property
    def _breakpoints(self) -> Breakpoints:
        return self._debug.breakpoints(self._state.dr)

    def step(self) -> Exit | None:
        """Execute one instruction, unless a breakpoint comes before it."""
        state, resumed = self._state, self._state.eflags & FLAG_RF
        bits = self._breakpoints.before(state.linear_rip)
        if bits and not self._debug.takes_debug_exceptions:
            if not resumed:
                state.eflags |= FLAG_RF
                return self._raise(bits)
            bits = 0
        if not bits and self._debug.guards_registers and self._moves_debug_register():
            bits = DR6_BD
        if bits:
            return self._exit(bits)
        self._emulator.accesses.clear()
        exit = self._emulator.step()
        if resumed:
            self._state.eflags &= ~FLAG_RF
        return exit or self.stepped()

    def stepped(self) -> Exit | None:
        """The instruction is done: whether somebody has to know."""
        bits = self._breakpoints.after(self._emulator.accesses)
        if bits and not self._debug.takes_debug_exceptions:
            return self._raise(bits)
        bits |= DR6_BS if self._debug.single_steps else 0
        return self._exit(bits) if bits else None

    def _raise(self, bits: int) -> Exit | None:
        self._state.dr[6] = self._state.dr[6] & ~DR6_HITS | bits
        return self._emulator.deliver(Event(DB, exception=True))

    def _exit(self, bits: int) -> DebugExit:
        return DebugExit(DB, self._state.linear_rip, DR6_FIXED | bits, self._breakpoints.dr7)

    def _moves_debug_register(self) -> bool:
        try:
            code = self._emulator.virtual.fetch()
        except (GuestFaultError, AccessStoppedError, DeviceAccessError):
            return False
        return shape(code, self._state.bits).opcode in (MOV_FROM_DR, MOV_TO_DR)
