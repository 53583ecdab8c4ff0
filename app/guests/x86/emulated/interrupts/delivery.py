"""Interrupts and exceptions: through the vector table in real mode, through gates otherwise.

The translator reports exceptions instead of delivering them, so it is done here, with the rules for faults on the
way: two in a row make a double fault, a third one shuts the CPU down (``kvm_multiple_exception``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kickstand.core.run.exits import Exit, InternalErrorExit, ShutdownExit
from kickstand.core.uapi import InternalError
from kickstand.guests.x86.emulated.interrupts.events import Event, combine
from kickstand.guests.x86.emulated.interrupts.gates import enter_gate
from kickstand.guests.x86.memory.physical import AccessStoppedError
from kickstand.guests.x86.state.faults import (
    GP,
    DeviceAccessError,
    GuestFaultError,
)
from kickstand.guests.x86.state.registers import CR0_PE, FLAG_AC, FLAG_IF, FLAG_RF, FLAG_TF, RSP
from kickstand.guests.x86.state.segments import CS, SS

if TYPE_CHECKING:
    from kickstand.guests.x86.memory.virtual import VirtualMemory
    from kickstand.guests.x86.state.registers import CpuState


class Delivery:
    """Delivers events to one CPU."""

    def __init__(self, state: CpuState, memory: VirtualMemory) -> None:
        self._state = state
        self._memory = memory

    def deliver(self, event: Event) -> Exit | None:
        """Make the CPU continue in the handler; an exit if that is not possible.

        The state is unchanged if a Fault or Retry exit comes back: deliver again later.
        """
        current: Event | None = event
        while current is not None:
            if current.address is not None:
                self._state.cr[2] = current.address
            try:
                self._enter(current)
            except GuestFaultError as fault:
                current = combine(current, Event.from_fault(fault))
            except DeviceAccessError as error:
                return InternalErrorExit(InternalError.DELIVERY_EV, gpa=error.gpa)
            except AccessStoppedError as stopped:
                return stopped.exit
            else:
                return None
        return ShutdownExit()

    def _enter(self, event: Event) -> None:
        state = self._state
        return_rip = state.rip if event.return_rip is None else event.return_rip
        if state.cr[0] & CR0_PE:
            enter_gate(state, self._memory, event, return_rip)
        else:
            self._enter_real(event, return_rip)
        state.clear_shadow()

    def _enter_real(self, event: Event, return_rip: int) -> None:
        """``emulate_int_real``. INT keeps what is above SP; an injected event does not, where KVM has to deliver it."""
        state, memory, vector = self._state, self._memory, event.vector
        if vector * 4 + 3 > state.idt.limit:
            raise GuestFaultError(GP)
        entry = memory.read_system(state.idt.base + vector * 4, 4)
        pointer = state.gpr[RSP] & 0xFFFF
        for value in (state.flags, state.segment[CS].selector, return_rip):
            pointer = pointer - 2 & 0xFFFF
            memory.write_system(state.linear(SS, pointer), (value & 0xFFFF).to_bytes(2, "little"))
        state.gpr[RSP] = (state.gpr[RSP] & ~0xFFFF if event.software else 0) | pointer
        state.flags &= ~(FLAG_IF | FLAG_TF | FLAG_RF | FLAG_AC)
        selector = int.from_bytes(entry[2:], "little")
        state.segment[CS].selector, state.segment[CS].base = selector, selector << 4
        state.rip = int.from_bytes(entry[:2], "little")
