"""Where Unicorn does otherwise than a CPU: what is put right once it has executed an instruction."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from kickstand.core.arch.cpu.msrs import is_canonical
from kickstand.guests.x86.emulated.decoding.decode import FAR_RETURNS, Shape, shape
from kickstand.guests.x86.state.faults import GP, GuestFaultError
from kickstand.guests.x86.state.registers import CR0_PE, RSP, STATE_SIZE
from kickstand.guests.x86.state.segments import SS

if TYPE_CHECKING:
    from kickstand.guests.x86.emulated.instructions.stepper import Step
    from kickstand.guests.x86.memory.virtual import VirtualMemory
    from kickstand.guests.x86.state.registers import CpuState

_LONG, _RPL = 64, 3
_SHORT_INTERRUPTS = {3: 0xCC, 4: 0xCE}
_AVAILABLE_TASKS, _BUSY = (1, 9), 1 << 9


def after_load(state: CpuState, before: CpuState, seen: Shape) -> None:
    """LTR, LGDT, LIDT: the engine takes a base that is no address of 64-bit code; MOV to SS, LSS."""
    if seen.is_load_task:
        _after_ltr(state, before)
    elif seen.loads_stack:
        _after_ss(state, before)
    elif state.bits == _LONG and not (is_canonical(state.gdt.base) and is_canonical(state.idt.base)):
        state.gdt, state.idt, state.rip = before.gdt, before.idt, before.rip
        raise GuestFaultError(GP)


def _after_ltr(state: CpuState, before: CpuState) -> None:
    """The engine takes a null selector, which is #GP, and does not remember that the segment is busy."""
    if before.tr.flags and not state.tr.flags:
        state.tr, state.rip = before.tr, before.rip
        raise GuestFaultError(GP)
    if state.tr.flags >> 8 & 0xF in _AVAILABLE_TASKS:
        state.tr.flags |= _BUSY


def _after_ss(state: CpuState, before: CpuState) -> None:
    """64-bit code may have a null selector there, but the engine takes one that asks for other privileges, too."""
    selector = state.segment[SS].selector
    if state.bits == _LONG and selector != before.segment[SS].selector and selector <= _RPL and selector != state.cpl:
        ctypes.memmove(ctypes.addressof(state), ctypes.addressof(before), STATE_SIZE)
        raise GuestFaultError(GP)


def after_iret(state: CpuState, rsp: int) -> None:
    """IRET in real mode: the engine clears what is above SP; ``rsp`` is that of before."""
    if not state.cr[0] & CR0_PE:
        state.gpr[RSP] = rsp & ~0xFFFF | state.gpr[RSP] & 0xFFFF


def after_far_return(state: CpuState, step: Step, code: bytes) -> None:
    """RETF outside of protected mode: the engine jumps before it reads CS, and back if that takes a look."""
    if step.vector is None and not state.protected and shape(code, state.bits).opcode in FAR_RETURNS:
        state.rip = int.from_bytes(step.reads[0], "little")


def interrupt_length(state: CpuState, virtual: VirtualMemory, vector: int) -> int:
    """Bytes of the software interrupt that the engine stopped behind: INT3 and INTO have one, INT n two."""
    short = _SHORT_INTERRUPTS.get(vector)
    if short is None:
        return 2
    return 1 if virtual.read_system(state.linear(1, state.next_rip - 1), 1)[0] == short else 2
