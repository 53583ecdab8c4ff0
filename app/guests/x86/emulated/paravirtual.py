"""What a guest reads in pages that it has named to KVM: kvmclock, the wall clock, stolen time.

They are written before the guest is entered, when what they say has changed; where there is no memory, nothing is.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import TYPE_CHECKING

from kickstand.core.arch.cpu.msrs import Msr
from kickstand.core.guest import no_delay
from kickstand.guests.x86.memory.physical import PAGE, AccessStoppedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from kickstand.guests.x86.memory.physical import PhysicalMemory
    from kickstand.guests.x86.state.model import Model

_ENABLED = 1
_CLOCK_SIZE = 32
_STEAL = struct.Struct("<QIIB")  # steal, version, flags, preempted
_STEAL_ADDRESS = ~0x3F
_MASK32, _MASK64 = (1 << 32) - 1, (1 << 64) - 1
_STOPPED_AT, _STOPPED = 29, 2


_ABOUT_PAGES = frozenset((Msr.SYSTEM_TIME_NEW, Msr.STEAL_TIME, Msr.TSC, Msr.TSC_ADJUST))


class Paravirtual:
    """These pages of one CPU. ``paused``: userspace has stopped it for a while (KVM_KVMCLOCK_CTRL)."""

    def __init__(self, memory: PhysicalMemory, model: Model) -> None:
        self._memory = memory
        self._model = model
        self._shown: object = None
        self._stolen_ns = 0
        self._run_delay_ns: Callable[[], int] = no_delay
        self.paused = False

    def written(self, index: int, value: int) -> None:
        """An MSR has been written: a guest that goes on finds its pages as they are after an exit."""
        if index == Msr.WALL_CLOCK_NEW:
            self._write_wall_clock(value)
        elif index in _ABOUT_PAGES:
            if index == Msr.SYSTEM_TIME_NEW:
                self._shown = None
            self.entering(self._run_delay_ns)

    @property
    def tells_time(self) -> bool:
        """The guest has a clock's page."""
        return bool(self._model.values.get(Msr.SYSTEM_TIME_NEW, 0) & _ENABLED)

    def entering(self, run_delay_ns: Callable[[], int]) -> None:
        """The guest is about to be entered; ``run_delay_ns``: how long its thread has waited for a CPU in all."""
        values = self._model.values
        self._run_delay_ns = run_delay_ns
        if (address := values.get(Msr.SYSTEM_TIME_NEW, 0)) & _ENABLED:
            self._show_clock(address & ~_ENABLED)
        if (address := values.get(Msr.STEAL_TIME, 0)) & _ENABLED:
            self._show_steal(address & _STEAL_ADDRESS, run_delay_ns())

    def _show_clock(self, gpa: int) -> None:
        clock, tsc = self._model.arch.clock, self._model.tsc
        state = gpa, clock.changes, tsc.khz, tsc.offset, self.paused
        if state == self._shown:
            return
        old = self._read(gpa, _CLOCK_SIZE)
        if old is None:
            return
        stopped = self.paused or bool(old[_STOPPED_AT] & _STOPPED)
        version = (int.from_bytes(old[:4], "little") + 1 | 1) + 1
        if self._write(gpa, clock.page(version, tsc.khz, tsc.at(clock.master), stopped=stopped)):
            self.paused = False
            self._shown = gpa, clock.changes, tsc.khz, tsc.offset, False

    def _show_steal(self, gpa: int, run_delay_ns: int) -> None:
        old = self._read(gpa, _STEAL.size)
        if old is None:
            return
        steal, version, flags, _preempted = _STEAL.unpack(old)
        version += version & 1  # the first time there may be anything
        steal += run_delay_ns - self._stolen_ns
        if self._write(gpa, _STEAL.pack(steal & _MASK64, version + 2 & _MASK32, flags, 0)):
            self._stolen_ns = run_delay_ns

    def _write_wall_clock(self, gpa: int) -> None:
        old = self._read(gpa, 4) if gpa else None
        if old is not None:
            version = (int.from_bytes(old, "little") + 1 | 1) + 1
            self._write(gpa, self._model.arch.clock.wall_clock(version))

    def _read(self, gpa: int, length: int) -> bytes | None:
        if gpa % PAGE + length > PAGE:
            return None
        with suppress(AccessStoppedError):
            return self._memory.read(gpa, length)
        return None

    def _write(self, gpa: int, data: bytes) -> bool:
        with suppress(AccessStoppedError):
            return self._memory.write(gpa, data)
        return False
