"""Interrupt and trap gates of protected and long mode, with stack switch and error code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kickstand.guests.x86.state.faults import BP, DB, DF, GP, NP, OF, SS_FAULT, TS, GuestFaultError
from kickstand.guests.x86.state.registers import FLAG_IF, FLAG_NT, FLAG_RF, FLAG_TF, FLAG_VM, RSP
from kickstand.guests.x86.state.segments import CS, DS, ES, FS, GS, SS, SegmentCache

if TYPE_CHECKING:
    from kickstand.guests.x86.emulated.interrupts.events import Event
    from kickstand.guests.x86.memory.virtual import VirtualMemory
    from kickstand.guests.x86.state.registers import CpuState

_PRESENT = 1 << 15
_GATE16 = (6, 7)
_GATE32 = (14, 15)
_TSS32 = (9, 11)
_NOT_FAULTS = frozenset((DB, BP, OF, DF))  # these do not set RF in the frame (kvm: exception_type)
_VM86_SEGMENTS = (GS, FS, DS, ES)


@dataclass(frozen=True, slots=True)
class _Gate:
    selector: int
    offset: int
    stack_table: int
    width: int
    masks_interrupts: bool


def enter_gate(state: CpuState, memory: VirtualMemory, event: Event, return_rip: int) -> None:
    """Switch to the handler; the state is unchanged if a fault is raised on the way."""
    external = 0 if event.software else 1
    gate = _read_gate(state, memory, event, external)
    code = _read_code(state, memory, gate, external)
    old_level, level = state.cpl, _new_level(state, code, gate.selector, external)
    stack, pointer = _find_stack(state, memory, gate, level)
    frame = _frame(state, event, return_rip, switched=level != old_level or state.long_mode)
    mask = _stack_mask(state, stack)
    pointer = pointer - len(frame) * gate.width & mask
    base = 0 if state.long_mode else stack.base
    data = b"".join(_word(value, gate.width) for value in reversed(frame))
    memory.write_system(base + pointer, data, user=level == 3)  # noqa: PLR2004 - ring 3
    _load(state, gate, code, level, stack, pointer, mask)


def _word(value: int, width: int) -> bytes:
    return (value & (1 << 8 * width) - 1).to_bytes(width, "little")


def _read_gate(state: CpuState, memory: VirtualMemory, event: Event, external: int) -> _Gate:
    size = 16 if state.long_mode else 8
    error = event.vector * 8 + 2 + external
    if (event.vector + 1) * size - 1 > state.idt.limit:
        raise GuestFaultError(GP, error)
    raw = int.from_bytes(memory.read_system(state.idt.base + event.vector * size, size), "little")
    low, high, upper = raw & 0xFFFFFFFF, raw >> 32 & 0xFFFFFFFF, raw >> 64 & 0xFFFFFFFF
    kind = high >> 8 & 0x1F
    if kind not in _GATE32 and (state.long_mode or kind not in _GATE16):
        raise GuestFaultError(GP, error)  # task gates too: they are not used by guests of this emulator
    if event.software and high >> 13 & 3 < state.cpl:
        raise GuestFaultError(GP, error)
    if not high & _PRESENT:
        raise GuestFaultError(NP, error)
    offset = low & 0xFFFF | (high & 0xFFFF0000 if kind in _GATE32 else 0) | upper << 32
    width = 8 if state.long_mode else (4 if kind in _GATE32 else 2)
    return _Gate(low >> 16, offset, high & 7, width, masks_interrupts=not kind & 1)


def _read_descriptor(
    state: CpuState, memory: VirtualMemory, selector: int, vector: int, external: int
) -> tuple[int, int]:
    """Return both halves of a descriptor; ``vector`` is the fault for a bad selector."""
    table = state.ldt if selector & 4 else state.gdt
    error = selector & ~3
    if error == 0 or (selector | 7) > table.limit:
        raise GuestFaultError(vector, error | external)
    raw = int.from_bytes(memory.read_system(table.base + (selector & ~7), 8), "little")
    return raw & 0xFFFFFFFF, raw >> 32


def _read_code(state: CpuState, memory: VirtualMemory, gate: _Gate, external: int) -> SegmentCache:
    low, high = _read_descriptor(state, memory, gate.selector, GP, external)
    error = gate.selector & ~3 | external
    if high >> 11 & 3 != 3 or high >> 13 & 3 > state.cpl:  # noqa: PLR2004 - S and the code bit
        raise GuestFaultError(GP, error)
    if not high & _PRESENT:
        raise GuestFaultError(NP, error)
    code = SegmentCache()
    code.load_descriptor(gate.selector, low, high)
    if state.long_mode and (not code.long or code.big):
        raise GuestFaultError(GP, error)
    return code


def _new_level(state: CpuState, code: SegmentCache, selector: int, external: int) -> int:
    conforming = bool(code.flags >> 10 & 1)
    level = state.cpl if conforming else code.dpl
    if state.eflags & FLAG_VM and level != 0:
        raise GuestFaultError(GP, selector & ~3 | external)
    return level


def _stack_mask(state: CpuState, stack: SegmentCache) -> int:
    if state.long_mode:
        return (1 << 64) - 1
    return 0xFFFFFFFF if stack.big else 0xFFFF


def _find_stack(state: CpuState, memory: VirtualMemory, gate: _Gate, level: int) -> tuple[SegmentCache, int]:
    same = SegmentCache.from_buffer_copy(state.segment[SS])
    if state.long_mode:
        if gate.stack_table or level != state.cpl:
            where = 0x1C + 8 * gate.stack_table if gate.stack_table else 4 + 8 * level
            pointer = int.from_bytes(_read_tss(state, memory, where, 8), "little")
        else:
            pointer = state.gpr[RSP]
        if level != state.cpl:
            same.load(level, 0, 0, level << 13)
        return same, pointer & ~15
    if level == state.cpl:
        return same, state.gpr[RSP]
    return _stack_from_tss(state, memory, level)


def _read_tss(state: CpuState, memory: VirtualMemory, offset: int, length: int) -> bytes:
    if offset + length - 1 > state.tr.limit:
        raise GuestFaultError(TS, state.tr.selector & ~3)
    return memory.read_system(state.tr.base + offset, length)


def _stack_from_tss(state: CpuState, memory: VirtualMemory, level: int) -> tuple[SegmentCache, int]:
    width = 4 if state.tr.flags >> 8 & 15 in _TSS32 else 2
    raw = _read_tss(state, memory, width + 2 * width * level, width + 2)
    pointer, selector = int.from_bytes(raw[:width], "little"), int.from_bytes(raw[width:], "little")
    low, high = _read_descriptor(state, memory, selector, TS, 0)
    stack = SegmentCache()
    stack.load_descriptor(selector, low, high)
    writable_data = high >> 9 & 0xD == 9  # noqa: PLR2004 - S, not code, writable
    if selector & 3 != level or stack.dpl != level or not writable_data:
        raise GuestFaultError(TS, selector & ~3)
    if not high & _PRESENT:
        raise GuestFaultError(SS_FAULT, selector & ~3)
    return stack, pointer


def _frame(state: CpuState, event: Event, return_rip: int, *, switched: bool) -> list[int]:
    """The words to push, in the order of the pushes."""
    words = [state.segment[index].selector for index in _VM86_SEGMENTS] if state.eflags & FLAG_VM else []
    if switched:
        words += [state.segment[SS].selector, state.gpr[RSP]]
    resume = FLAG_RF if event.exception and event.vector not in _NOT_FAULTS else 0
    words += [state.flags | resume, state.segment[CS].selector, return_rip]
    return words if event.error is None else [*words, event.error]


def _load(
    state: CpuState, gate: _Gate, code: SegmentCache, level: int, stack: SegmentCache, pointer: int, mask: int
) -> None:
    if state.eflags & FLAG_VM:
        for index in _VM86_SEGMENTS:
            state.segment[index].load(0, 0, 0, 0)
    state.segment[SS] = stack
    code.selector = gate.selector & ~3 | level
    state.segment[CS] = code
    state.gpr[RSP] = state.gpr[RSP] & ~mask | pointer
    state.rip = gate.offset
    cleared = FLAG_TF | FLAG_NT | FLAG_RF | FLAG_VM | (FLAG_IF if gate.masks_interrupts else 0)
    state.flags &= ~cleared
    state.update_hidden_flags()
