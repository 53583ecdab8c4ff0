"""Host threads without tasks: each performs one core coroutine, in turns with the others of its event loop.

KVM_RUN is performed here. A kick lets a thousand vCPUs go on, and one callback of the loop resumes them all.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from typing import Any, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from app.core.atomics import Blocked, Choice, Effect, Outside
from app.runtime.tasks import first_choice, unwind

T = TypeVar("T")


class HostThread(asyncio.Future[T]):
    """A host thread that performs one core coroutine from ``begun`` on: a future of its result.

    ``begun`` is what ``tasks.begin`` came to, or ``PREEMPT`` for a coroutine that begins in the next turn.
    ``on_end`` is given the outcome before anybody else goes on; the future is done a turn of the loop later.
    ``cancel`` throws ``Killed`` into the coroutine and lets its clean-up run before it returns. An error of what it
    waits for outside the kernel is thrown into it; if somebody cancels that, the thread is cancelled.
    """

    __slots__ = (
        "turn", "since_ns", "_core", "_choose", "_on_end", "_runqueue", "_context", "_blocked", "_key", "_outside",
        "_over",
    )  # fmt: skip

    def __init__(
        self,
        core: Coroutine[Effect, Any, T],
        begun: Effect,
        choose: Callable[[int], int] = first_choice,
        on_end: Callable[[Outcome], object] | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(loop=loop)
        self.turn = 0  # in which it was resumed last
        self.since_ns = 0  # since when it waits for objects to change
        self._core = core
        self._choose = choose
        self._on_end = on_end
        self._runqueue = _runqueue(loop)
        # What it does is done on behalf of whoever began it, also when another thread lets it go on.
        self._context = copy_context()
        self._blocked: Blocked | None = None
        self._key: object = None
        self._outside: asyncio.Future[Any] | None = None
        self._over = False
        self._wait(begun)

    def __call__(self) -> None:
        """An object that it waits for has changed: it looks at its guard again when its turn comes."""
        blocked, self._blocked = self._blocked, None
        if blocked is not None:
            for shared in blocked.objects:
                shared.waiters.pop(self._key, None)
            self._runqueue.add(self)

    def resume(self, answer: Any = None, error: BaseException | None = None) -> None:
        """Go on until it has to wait, or to the end; nothing happens if that is past."""
        if self._over:
            return
        enter, core = self._context.run, self._core
        try:
            effect = enter(core.send, answer) if error is None else enter(core.throw, error)
            while type(effect) is Choice:
                effect = enter(core.send, self._choose(effect.alternatives))
        except StopIteration as stop:
            self._end(stop.value, None)
        except Exception as failed:  # noqa: BLE001  whoever waits for the result gets it
            self._end(None, failed)
        else:
            self._wait(effect)

    def cancel(self, msg: Any = None) -> bool:
        """Kill the thread. False if it is over already."""
        if self._over:
            return False
        self._over = True
        if self._blocked is not None:
            for shared in self._blocked.objects:
                shared.waiters.pop(self._key, None)
        if self._outside is not None:
            self._outside.remove_done_callback(self._arrived)
            self._outside.cancel()
        try:
            self._context.run(unwind, self._core)
        finally:
            super().cancel(msg)
        return True

    def _wait(self, effect: Effect) -> None:
        if type(effect) is Blocked:
            self._blocked = effect
            self._key = key = self if effect.key is None else effect.key
            for shared in effect.objects:
                shared.waiters[key] = self
            self.since_ns = time.monotonic_ns()
        elif type(effect) is Outside:
            self._outside = asyncio.ensure_future(effect.awaitable)
            self._outside.add_done_callback(self._arrived)
        else:
            self._runqueue.add(self)

    def _arrived(self, outside: asyncio.Future[Any]) -> None:
        self._outside = None
        if outside.cancelled():
            self.cancel()
            return
        error = outside.exception()
        self.resume(None if error else outside.result(), error)
        self._runqueue.settle()

    def _end(self, result: T | None, error: Exception | None) -> None:
        self._over = True
        outcome = self, result, error
        if self._on_end is not None:
            self._on_end(outcome)
        self._runqueue.over.append(outcome)


Outcome: TypeAlias = tuple[HostThread[Any], Any, Exception | None]
"""A thread that has ended, with its result or its error."""


class RunQueue:
    """The threads of one event loop that may go on: one callback resumes them all.

    A turn ends when nobody is left who may go on, and resumes nobody twice: who may go on again does so in the
    loop's next one, so that nothing else has to wait for longer than that.
    """

    def __init__(self) -> None:
        self.over: list[Outcome] = []
        """Threads that have ended. Control calls that they let go on do so before the outcome is told."""
        self._turn = 1
        self._ready: deque[HostThread[Any]] = deque()
        self._again: list[HostThread[Any]] = []
        self._due = False

    def add(self, thread: HostThread[Any]) -> None:
        """``thread`` may go on."""
        (self._again if thread.turn == self._turn else self._ready).append(thread)
        if not self._due:
            self._due = True
            thread.get_loop().call_soon(self._take)

    def settle(self) -> None:
        """Tell the outcome of the threads that have ended."""
        over, self.over = self.over, []
        for thread, result, error in over:
            if error is None:
                thread.set_result(result)
            else:
                thread.set_exception(error)

    def _take(self) -> None:
        ready = self._ready
        try:
            while ready:
                thread = ready.popleft()
                thread.turn = self._turn
                thread.resume()
        finally:
            self._turn += 1
            ready.extend(self._again)
            self._again.clear()
            self._due = bool(ready)
            loop = asyncio.get_running_loop()
            if self.over:
                loop.call_soon(self.settle)
            if self._due:
                loop.call_soon(self._take)


_runqueues: WeakKeyDictionary[asyncio.AbstractEventLoop, RunQueue] = WeakKeyDictionary()


def _runqueue(loop: asyncio.AbstractEventLoop) -> RunQueue:
    found = _runqueues.get(loop)
    if found is None:
        found = _runqueues[loop] = RunQueue()
    return found
