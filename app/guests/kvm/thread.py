"""OS threads for ioctls that may take long: one per vCPU for KVM_RUN, one per VM for its slots.

A signal that is sent before KVM_RUN must not be lost. So it is blocked in the thread, and only KVM_RUN itself
unblocks it (KVM_SET_SIGNAL_MASK); afterwards it is taken without a handler (``sigtimedwait``). SIGURG is ignored
by default everywhere else, but not while it is blocked.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import signal
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeVar

from kickstand.guests.interpreter import hand_over_promptly
from kickstand.guests.kvm.device import ioctl, request, try_ioctl

T = TypeVar("T")
SIGNAL = signal.SIGURG
RUN = request("RUN")
SIGNALS = 64
SIGSET_BYTES = SIGNALS // 8


class Worker:
    """A thread that makes calls in order; each answers to the event loop that asked."""

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def call(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Make a call in the thread. A future that is cancelled does not stop it."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def answer(result: T | None, error: BaseException | None) -> None:
            if future.cancelled():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]

        def job() -> None:
            result, error = None, None
            try:
                result = work()
            except BaseException as failure:  # noqa: BLE001  whatever it is, the caller gets it
                error = failure
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(answer, result, error)

        self._jobs.put(job)
        return future

    def stop(self) -> None:
        """End the thread after the calls that are due; returns at once."""
        self._jobs.put(None)

    def join(self, timeout: float) -> bool:
        """Wait for the end; true if it came."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _work(self) -> None:
        hand_over_promptly()
        signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
        while (job := self._jobs.get()) is not None:
            job()


class VcpuThread(Worker):
    """The thread that is inside KVM_RUN of one vCPU."""

    def __init__(self, name: str, fd: int, signalled: Callable[[], bool]) -> None:
        self._fd = fd
        self._signalled = signalled
        unblocked = (1 << SIGNALS) - 1 & ~(1 << SIGNAL - 1)
        mask = SIGSET_BYTES.to_bytes(4, "little") + unblocked.to_bytes(SIGSET_BYTES, "little")
        ioctl(fd, "SET_SIGNAL_MASK", ctypes.create_string_buffer(mask, len(mask)))
        super().__init__(name)

    def run(self) -> int:
        """KVM_RUN: 0, or the errno as a negative number. Called in the thread.

        Whoever interrupts makes ``signalled`` true first and sends the signal then. So what is pending now is
        either stale or still to be seen in ``signalled``; what comes later ends KVM_RUN.
        """
        self._eat_signals()
        if self._signalled():
            self.interrupt()
        value, error = try_ioctl(self._fd, RUN)
        if error == errno.EINTR:
            self._eat_signals()
        return value if value >= 0 else -error

    def interrupt(self) -> None:
        """End KVM_RUN with EINTR, the current or the next; any thread."""
        ident = self._thread.ident
        if ident is not None and self._thread.is_alive():
            signal.pthread_kill(ident, SIGNAL)

    def _eat_signals(self) -> None:
        """QEMU's ``kvm_eat_signals``."""
        while signal.sigtimedwait({SIGNAL}, 0) is not None:
            pass
