"""A first look at what a guest does, on the event loop's own thread: an exit that is near need not cross threads twice.

A guest that goes on for longer than ``LIMIT_S`` is stopped, and goes to the guest thread of its VM.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kickstand.core.run.exits import Exit
    from kickstand.guests.x86.cpu import X86Cpu

LIMIT_S = 0.0005
_IDLE = 40  # looks at nothing after which the watch sleeps


class Watch:
    """A thread that looks whether the run that it saw last time is still the same."""

    def __init__(self) -> None:
        self._cpu: X86Cpu | None = None
        self._runs = 0
        self._wanted = threading.Event()
        self._thread: threading.Thread | None = None

    def run(self, cpu: X86Cpu) -> Exit | None:
        """Run ``cpu`` until an exit, or for about ``LIMIT_S``; from one thread at a time."""
        cpu.clear_stop()
        self._runs += 1
        self._cpu = cpu
        if not self._wanted.is_set():
            self._wake()
        try:
            return cpu.run(0)
        finally:
            self._cpu = None

    def _wake(self) -> None:
        self._wanted.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
            self._thread.start()

    def _look(self) -> None:
        idle = 0
        while True:
            seen = self._runs
            time.sleep(LIMIT_S)
            cpu = self._cpu
            idle = 0 if self._runs != seen or cpu is not None else idle + 1
            if cpu is not None and self._runs == seen:
                cpu.stop()  # at worst it has just left: its next run comes back once for nothing
            if idle == _IDLE:
                self._wanted.clear()
                if self._runs == seen:  # else a run has begun that took it for awake
                    self._wanted.wait()
                idle = 0


WATCH = Watch()
