"""What is used of Unicorn that its public calls do not give: fields by their place, which is checked.

A Unicorn that keeps something elsewhere is an error when an engine is made, never a guess.
"""

from __future__ import annotations

import ctypes
import struct
from importlib import import_module
from typing import Any

from unicorn import unicorn_const as uc_const
from unicorn import x86_const

from kickstand.guests.x86.state.registers import GPR_NAMES, STATE_SIZE, CpuState
from kickstand.guests.x86.translated.host_window import host_address
from kickstand.guests.x86.translated.live_state import live_state

_translate: Any = import_module("unicorn.unicorn_py3.unicorn").uclib.uc_vmem_translate  # has no Python method
_translate.argtypes = (ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int, ctypes.c_void_p)

_COUNT, _IN_PIECES, _NO_EXIT_REQUEST, _RIP_WRITTEN = 0x560, 0x568, 0x7F2, 0x3A32  # of ``struct uc_struct``
_CONTEXT_HEADER = 40  # bytes of Unicorn's own before the CPU structure


class Internals:
    """Those of one instance."""

    def __init__(self, uc: Any) -> None:
        self._uc = uc
        self._instance: int = uc._uch.value  # noqa: SLF001 - no call
        self.state = self._find_state()
        """Where the engine itself has it."""
        self.in_pieces = ctypes.c_int.from_address(self._instance + _IN_PIECES)
        """Not zero: an instruction is in the middle of its stores."""
        self.rip_written = ctypes.c_bool.from_address(self._instance + _RIP_WRITTEN)
        self.unstoppable = ctypes.c_bool.from_address(self._instance + _NO_EXIT_REQUEST)
        """Nobody looks for stops but between blocks."""

    def _find_state(self) -> CpuState:
        """Write through the public calls and look through the structure."""
        original = self._uc.context_save()
        values = [0x1234 << 48 ^ self._instance + index for index in range(len(GPR_NAMES))]  # no other's
        for name, value in zip(GPR_NAMES, values, strict=True):
            self._uc.reg_write(getattr(x86_const, f"UC_X86_REG_{name.upper()}"), value)
        self._uc.reg_write(x86_const.UC_X86_REG_FS_BASE, 0xABCD0001)
        self._uc.reg_write(x86_const.UC_X86_REG_TR, (0x28, 0xABCD0002, 0x67, 0x8B00))
        self._uc.reg_write(x86_const.UC_X86_REG_CR2, 0xABCD0003)
        expected = [0xABCD0001, 0xABCD0002, 0xABCD0003, 0x500, -1]

        def is_it(state: CpuState) -> bool:
            return [state.segment[4].base, state.tr.base, state.cr[2], state.efer, state.old_exception] == expected

        state = live_state(self._instance, struct.pack("<16Q", *values), is_it)
        if original.size != _CONTEXT_HEADER + STATE_SIZE:
            raise RuntimeError("this Unicorn keeps its CPU state in a form that is not known here")
        self._uc.context_restore(original)
        return state

    def check(self, count: int) -> None:
        """After a run of so many instructions."""
        if ctypes.c_uint64.from_address(self._instance + _COUNT).value != count:
            raise RuntimeError("this Unicorn keeps what it knows of a store at a place that is not known here")
        self._uc.reg_write(x86_const.UC_X86_REG_RIP, 0)
        if not self.rip_written.value:
            raise RuntimeError("this Unicorn keeps what it knows of RIP at a place that is not known here")

    def executed_page(self, page: int) -> int:
        """The host page that the TLB has for a fetch from this linear page."""
        found = ctypes.c_uint64()
        if _translate(self._uc._uch, page, uc_const.UC_PROT_EXEC, ctypes.byref(found)):  # noqa: SLF001 - its handle
            raise RuntimeError("code was translated from a page that the TLB does not have")
        return host_address(found.value)
