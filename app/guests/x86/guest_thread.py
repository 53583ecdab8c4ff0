"""Whose turn it is on a VM's guest thread.

Two translators that share memory do not keep LOCK atomic, so the guests of one VM take turns on one thread.
A guest that others wait for is stopped after ``QUANTUM_S`` and goes to the end of the queue.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from kickstand.guests.interpreter import hand_over_promptly

if TYPE_CHECKING:
    from kickstand.core.run.exits import Exit
    from kickstand.guests.x86.cpu import X86Cpu

QUANTUM_S = 0.002


class Turns:
    """One VM's guest thread, started with the first turn."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._waiting = 0
        self._running: X86Cpu | None = None
        self._timer: threading.Timer | None = None

    @property
    def idle(self) -> bool:
        """No guest of the VM runs, and none waits to."""
        return self._running is None and not self._waiting

    def take(self, cpu: X86Cpu) -> Future[tuple[Exit | None, float]]:
        """Run ``cpu`` until an exit or a stop, when its turn comes; says also how many seconds of a CPU that took."""
        with self._lock:
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, "guest", hand_over_promptly)
            self._waiting += 1
            self._limit_turn()
            turn = self._thread.submit(self._run, cpu)
        turn.add_done_callback(self._given_up)
        return turn

    def _run(self, cpu: X86Cpu) -> tuple[Exit | None, float]:
        with self._lock:
            self._waiting -= 1
            self._running = cpu
            self._limit_turn()
        since = time.thread_time()
        try:
            return cpu.run(0), time.thread_time() - since
        finally:
            with self._lock:
                self._running = None
                if self._timer is not None:
                    self._timer.cancel()
                    self._timer = None

    def _limit_turn(self) -> None:
        """Somebody waits for the guest that runs: its time is limited from now on."""
        if self._running is None or not self._waiting or self._timer is not None:
            return
        self._timer = threading.Timer(QUANTUM_S, self._running.stop)
        self._timer.daemon = True
        self._timer.start()

    def _given_up(self, turn: Future[tuple[Exit | None, float]]) -> None:
        if turn.cancelled():
            with self._lock:
                self._waiting -= 1

    def close(self) -> None:
        """End the thread; no guest may be running."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
