"""What KVM_EXIT_INTERNAL_ERROR tells of an instruction that could not be emulated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kickstand.guests.x86.memory.physical import AccessStoppedError
from kickstand.guests.x86.memory.virtual import MAX_INSTRUCTION
from kickstand.guests.x86.state.faults import DeviceAccessError, GuestFaultError

if TYPE_CHECKING:
    from kickstand.guests.x86.memory.virtual import VirtualMemory

_INSTRUCTION_BYTES, _FILLER = 1, b"\x90"
_NO_EXIT_INFO = (0,) * 5  # exit reason and details of hardware that there is not


def emulation_failure(memory: VirtualMemory) -> tuple[int, ...]:
    """``prepare_emulation_failure_exit``: flags, the bytes at RIP if there are any, hardware's reason."""
    try:
        code = memory.fetch()
    except (GuestFaultError, AccessStoppedError, DeviceAccessError):
        return (0, *_NO_EXIT_INFO)
    known = bytes([len(code)]) + code.ljust(MAX_INSTRUCTION, _FILLER)
    words = (int.from_bytes(known[at : at + 8], "little") for at in (0, 8))
    return (_INSTRUCTION_BYTES, *words, *_NO_EXIT_INFO)
