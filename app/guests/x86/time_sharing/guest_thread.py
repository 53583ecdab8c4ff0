"""Whose turn it is on a VM's guest thread.

Two translators that share memory do not keep LOCK atomic, so the guests of one VM take turns on one thread.
A guest is stopped when it has had ``AHEAD_S`` more than one that waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING

from kickstand.guests.interpreter import hand_over_promptly
from kickstand.guests.x86.time_sharing.shares import Share, Shares

if TYPE_CHECKING:
    from kickstand.core.run.exits import Exit
    from kickstand.guests.x86.cpu import X86Cpu

AHEAD_S = 0.001
_CREDIT_S = AHEAD_S / 2  # less, so that whoever has begun gets somewhere
_LOOK_S = 0.0005


@dataclass(slots=True, eq=False)
class _Turn:
    cpu: X86Cpu
    share: Share
    since: float = 0
    done: Future[tuple[Exit | None, float]] = field(default_factory=Future)


class Turns:
    """One VM's guest thread, started with the first turn; a second one looks whose time is over."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._thread: threading.Thread | None = None
        self._asked: SimpleQueue[bool] = SimpleQueue()  # for each turn that was taken; False: there will be none
        self._lock = threading.Lock()
        self._shares = Shares(_CREDIT_S)
        self._waiting: list[_Turn] = []
        self._running: _Turn | None = None
        self._watch: threading.Thread | None = None
        self._contended = threading.Event()
        self._closed = False

    @property
    def idle(self) -> bool:
        """No guest of the VM runs, and none waits to."""
        return self._running is None and not self._waiting

    def take(self, cpu: X86Cpu, share: Share) -> Future[tuple[Exit | None, float]]:
        """Run ``cpu`` until an exit or a stop, when its turn comes; says also how many seconds of a CPU that took."""
        turn = _Turn(cpu, share)
        with self._lock:
            if self._closed:
                raise RuntimeError("the VM's guest thread has ended")
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="guest", daemon=True)
                self._thread.start()
            self._shares.join(share)
            self._waiting.append(turn)
            over = self._over()
            if self._running is not None:
                self._watch_turns()
        turn.done.add_done_callback(lambda _: self._given_up(turn))
        self._asked.put(True)
        if over is not None:
            over.stop()
        return turn.done

    def _serve(self) -> None:
        hand_over_promptly()
        while self._asked.get():
            self._run_next()

    def _run_next(self) -> None:
        turn = self._begin()
        if turn is None:
            return
        since = time.thread_time()
        try:
            exit = turn.cpu.run(0)
        except BaseException as error:  # noqa: BLE001 - whoever waits for the turn gets it
            self._end(turn, time.thread_time() - since)
            turn.done.set_exception(error)
        else:
            seconds = time.thread_time() - since
            self._end(turn, seconds)
            turn.done.set_result((exit, seconds))

    def _begin(self) -> _Turn | None:
        """Whose turn it is; None if whoever asked has given up."""
        with self._lock:
            while self._waiting:
                turn = self._waiting.pop(self._shares.choose([turn.share for turn in self._waiting]))
                if turn.done.set_running_or_notify_cancel():
                    turn.since = self._clock()
                    self._running = turn
                    if self._waiting:
                        self._watch_turns()
                    return turn
        return None

    def _end(self, turn: _Turn, seconds: float) -> None:
        with self._lock:
            turn.share.used += seconds
            self._running = None

    def _given_up(self, turn: _Turn) -> None:
        if turn.done.cancelled():
            with self._lock:
                if turn in self._waiting:
                    self._waiting.remove(turn)

    # -- whose time is over ----------------------------------------------------------------------------------

    def _over(self) -> X86Cpu | None:
        """The guest that runs, if one that waits is too far behind."""
        turn = self._running
        if turn is None or not self._waiting:
            return None
        ahead = turn.share.used + self._clock() - turn.since - min(other.share.used for other in self._waiting)
        return turn.cpu if ahead >= AHEAD_S else None

    def _watch_turns(self) -> None:
        self._contended.set()
        if self._watch is None:
            self._watch = threading.Thread(target=self._look, name="turns", daemon=True)
            self._watch.start()

    def _look(self) -> None:
        while self._contended.wait() and not self._closed:
            time.sleep(_LOOK_S)
            with self._lock:
                over = self._over()
                if not self._waiting and not self._closed:
                    self._contended.clear()
            if over is not None:
                over.stop()  # at worst it has just left: its next run comes back once for nothing

    def close(self) -> None:
        """End the threads; no guest may be running."""
        with self._lock:
            self._closed = True
            self._contended.set()
        if self._thread is not None:
            self._asked.put(False)
            self._thread.join()
