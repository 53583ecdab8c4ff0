"""The CPU state of a Unicorn instance where Unicorn itself has it.

There is no call for its address. It is looked for once, by what was written through the public calls, and checked at
every instance: a state that is not found is an error, never a guess. Reading goes through the kernel, which refuses
what is not mapped.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator

from kickstand.guests.x86.state.registers import STATE_SIZE, CpuState

_INSTANCE_SIZE, _CPU_SIZE = 0x800, 0x10000
_POINTER = 8


class _Known:
    """Where it was found before: the pointer in the instance, and the state in what that points to."""

    offsets: tuple[int, int] | None = None


def live_state(instance: int, registers: bytes, is_it: Callable[[CpuState], bool]) -> CpuState:
    """The state of the instance at this address, whose general registers are these.

    ``is_it`` looks at the rest: there may be copies of the registers. ``RuntimeError``: not found.
    """
    memory = os.open("/proc/self/mem", os.O_RDONLY)
    try:
        for pointer, offset, state in _candidates(memory, instance, registers):
            if is_it(state):
                _Known.offsets = pointer, offset
                return state
    finally:
        os.close(memory)
    raise RuntimeError("this Unicorn keeps its CPU state at a place that is not known here")


def _candidates(memory: int, instance: int, registers: bytes) -> Iterator[tuple[int, int, CpuState]]:
    if _Known.offsets is not None:
        pointer, offset = _Known.offsets
        address = ctypes.c_uint64.from_address(instance + pointer).value + offset
        if _read(memory, address, STATE_SIZE)[: len(registers)] == registers:
            yield pointer, offset, CpuState.from_address(address)
    for pointer in range(0, _INSTANCE_SIZE, _POINTER):
        address = ctypes.c_uint64.from_address(instance + pointer).value
        content = _read(memory, address, _CPU_SIZE)
        offset = content.find(registers)
        while 0 <= offset <= len(content) - STATE_SIZE:
            yield pointer, offset, CpuState.from_address(address + offset)
            offset = content.find(registers, offset + 1)


def _read(memory: int, address: int, size: int) -> bytes:
    try:
        return os.pread(memory, size, address)
    except (OSError, OverflowError):
        return b""
