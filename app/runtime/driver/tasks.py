"""The asyncio driver: what makes the core's coroutines run on an event loop.

An operation whose guard holds never reaches the loop; one that has to wait parks the task on a future. ``perform`` is
the only driver: control calls use it in the task that makes them, KVM_RUN and server-side VMM threads in a task named
after the vCPU, the explorer's replay in a task for each of its threads. A cancelled task unwinds the core coroutine
with ``Killed``, so that every lock is given back and every queue left before the task ends.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import copy_context
from functools import partial
from typing import Any, Generic, TypeVar

from kickstand.core.atomics import Blocked, Choice, Effect, Killed, Outside, Preempt, Shared

T = TypeVar("T")


def first_choice(_alternatives: int) -> int:
    """Choose nothing at random."""
    return 0


async def perform(core: Coroutine[Effect, Any, T], choose: Callable[[int], int] = first_choice, who: str = "") -> T:
    """Run one core coroutine to its end in the current task and return its result; ``who`` is its thread, for watchers.

    Cancellation throws ``Killed`` into the coroutine, lets its clean-up run to its end, and then cancels. An error
    of what it waits for outside the kernel is thrown into it too.
    """
    return await Performance(core, choose, who).to_end()


class Performance(Generic[T]):
    """One core coroutine under way in whichever task awaits ``to_end``; others may make it ``give_up``."""

    __slots__ = ("_choose", "_core", "_error", "_objects", "_since_ns", "_waits_for", "_who")

    def __init__(
        self, core: Coroutine[Effect, Any, T], choose: Callable[[int], int] = first_choice, who: str = ""
    ) -> None:
        self._core = core
        self._choose = choose
        self._error: BaseException | None = None
        self._who = who
        self._waits_for: asyncio.Future[Any] | None = None
        self._objects: tuple[Shared, ...] = ()  # what it waited for last, without anything else since
        self._since_ns = 0

    def give_up(self, error: BaseException) -> None:
        """Throw ``Killed`` into the coroutine instead of letting it go on; ``to_end`` raises ``error`` then."""
        self._error = error
        if self._waits_for is not None:
            self._waits_for.cancel()

    async def to_end(self) -> T:  # noqa: C901  one frame: a kick finds a thousand vCPUs waiting here
        """``perform``. No task is needed until there is something to wait for."""
        core = self._core
        try:
            effect = core.send(None)
            while True:
                if type(effect) is Blocked:  # until an object changes: the coroutine looks at its guard again then
                    objects = effect.objects
                    self._waits_for = waiter = Waiter(loop=asyncio.get_running_loop())
                    if objects != self._objects:  # else it was woken, and its guard still does not hold
                        self._objects, self._since_ns = objects, time.monotonic_ns()
                    waiter.who, waiter.since_ns = self._who, self._since_ns
                    key = waiter if effect.key is None else effect.key
                    for shared in objects:
                        shared.waiters[key] = waiter
                    try:
                        await waiter
                    finally:
                        for shared in objects:
                            shared.waiters.pop(key, None)
                elif type(effect) is Preempt:
                    self._objects = ()
                    await _TURN
                else:
                    self._objects = ()
                    resume = await self._past(effect)
                    effect = resume()
                    continue
                if self._error is not None:
                    raise asyncio.CancelledError  # noqa: TRY301  one way out for whoever gives up
                effect = core.send(None)
        except StopIteration as stop:
            result: T = stop.value
            return result
        except asyncio.CancelledError:
            await _give_back(core)
            if self._error is None or _is_cancelled():
                raise
        raise self._error

    async def _past(self, effect: Effect) -> Callable[[], Effect]:
        """Get past what is rare; how the coroutine goes on."""
        if type(effect) is Choice:
            return partial(self._core.send, self._choose(effect.alternatives))
        assert type(effect) is Outside
        awaitable = effect.awaitable
        self._waits_for = awaitable if isinstance(awaitable, asyncio.Future) else None
        try:
            answer = await awaitable
        except Exception as error:  # noqa: BLE001  it is the coroutine's to handle
            return partial(self._core.throw, error)
        if self._error is not None:
            raise asyncio.CancelledError
        return partial(self._core.send, answer)


class _Turn:
    """``asyncio.sleep(0)`` without a frame: everybody else has a turn."""

    def __await__(self) -> Generator[None, None, None]:
        return iter((None,))  # type: ignore[return-value]  # it is sent nothing but None


_TURN = _Turn()


def _is_cancelled() -> bool:
    """The task itself is cancelled, not only what it waits for."""
    task = asyncio.current_task()
    return task is not None and bool(task.cancelling())


def start(call: Coroutine[Any, Any, T], name: str | None = None) -> asyncio.Future[T]:
    """Begin a call now, whether a task is there or not: a future that is done already unless the call has to wait.

    Else a task (``name``) goes on with it; what it waits for is registered before ``start`` returns, so that no
    wake-up is lost. Cancelling the future cancels the call. Until it has to wait, a call must not ask for the
    current task: before Python 3.12 that is the caller's, or none.
    """
    loop = asyncio.get_running_loop()
    if sys.version_info >= (3, 12):
        return asyncio.eager_task_factory(loop, call, name=name)
    context = copy_context()
    done: asyncio.Future[T] = loop.create_future()
    try:
        waits_for = context.run(call.send, None)
    except StopIteration as stop:
        done.set_result(stop.value)
    except Exception as error:  # noqa: BLE001  whoever asks for the result gets it
        done.set_exception(error)
    else:
        rest = _rest(call, waits_for)
        next(rest)
        return loop.create_task(rest, name=name, context=context)
    return done


def _rest(call: Coroutine[Any, Any, T], waits_for: Any) -> Generator[Any, Any, T]:
    """Go on with a call that has begun and waits: the task is told for what as if it had begun the call itself.

    A plain generator, which asyncio takes for a coroutine up to Python 3.11; later ones begin tasks eagerly.
    """
    resume: Callable[[], Any] = partial(_same, waits_for)
    try:
        yield  # up to here before a task has it: one that is cancelled before its first turn is so inside the call
    except BaseException as error:  # noqa: BLE001  the call's to handle
        if isinstance(error, asyncio.CancelledError) and asyncio.isfuture(waits_for):
            waits_for.cancel()  # as the task does from then on
        resume = partial(call.throw, error)
    while True:
        try:
            waits_for = resume()
        except StopIteration as stop:
            result: T = stop.value
            return result
        try:
            sent = yield waits_for
        except BaseException as error:  # noqa: BLE001
            resume = partial(call.throw, error)
        else:
            resume = partial(call.send, sent)


def _same(value: T) -> T:
    return value


async def _give_back(core: Coroutine[Effect, Any, Any]) -> None:
    """Throw ``Killed`` and run the clean-up, which nobody interrupts: a real kernel's takes a while."""
    try:
        effect = core.throw(Killed())
        while True:
            if type(effect) is Outside:
                try:
                    answer = await to_the_end(effect.awaitable)
                except Exception as error:  # noqa: BLE001  it is the coroutine's to handle
                    effect = core.throw(error)
                else:
                    effect = core.send(answer)
            elif type(effect) is Preempt:
                effect = core.send(None)
            else:
                core.close()
                raise RuntimeError(f"the clean-up of {core!r} blocked: {effect!r}")
    except (StopIteration, Killed):
        pass


async def to_the_end(work: Awaitable[T]) -> T:
    """Wait for ``work`` to end and return its result, however often the caller is cancelled meanwhile: it is after it.

    For what must not be left half done. If it fails, its error counts.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None and (task.cancelled() or task.exception() is None):
        raise cancelled
    return task.result()


def perform_now(core: Coroutine[Effect, Any, T]) -> T:
    """Run a coroutine that never blocks, without an event loop. ``RuntimeError`` if it does block."""
    try:
        while True:
            effect = core.send(None)
            if type(effect) is not Preempt:
                core.close()
                raise RuntimeError(f"{core!r} blocked: {effect!r}")
    except StopIteration as stop:
        result: T = stop.value
        return result


class Waiter(asyncio.Future[None]):
    """What thread ``who`` waits for until objects change, since ``since_ns``: calling it wakes the thread."""

    __slots__ = ("since_ns", "who")
    who: str
    since_ns: int

    def __call__(self) -> None:
        if not self.done():
            self.set_result(None)
