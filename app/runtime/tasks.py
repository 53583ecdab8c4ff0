"""The asyncio driver: what makes the core's coroutines run on an event loop.

An operation whose guard holds never reaches the loop. A control call is performed in the task that makes it; KVM_RUN
has a thread of its own (``threads``). A cancelled task unwinds the core coroutine with ``Killed``, so that every lock
is given back and every queue left before the task ends.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from app.core.atomics import Blocked, Choice, Effect, Killed, Outside, Preempt

T = TypeVar("T")


def first_choice(_alternatives: int) -> int:
    """Choose nothing at random."""
    return 0


def begin(core: Coroutine[Effect, Any, T], choose: Callable[[int], int] = first_choice) -> Effect:
    """Run a core coroutine up to the first effect that takes a thread to go on from.

    ``StopIteration`` with the result if there is none: most calls never wait.
    """
    effect = core.send(None)
    while type(effect) is Choice:
        effect = core.send(choose(effect.alternatives))
    return effect


async def perform(core: Coroutine[Effect, Any, T], choose: Callable[[int], int] = first_choice) -> T:
    """Run one core coroutine to its end in the current task and return its result.

    Cancellation throws ``Killed`` into the coroutine, lets its clean-up run, and then cancels. An error of
    what it waits for outside the kernel is thrown into it too.
    """
    try:
        begun = begin(core, choose)
    except StopIteration as stop:
        result: T = stop.value
        return result
    return await go_on(core, begun, choose)


async def go_on(core: Coroutine[Effect, Any, T], begun: Effect, choose: Callable[[int], int] = first_choice) -> T:
    """``perform`` a coroutine that has come to the effect ``begun``."""
    answer: Any = None
    effect = begun
    loop = asyncio.get_running_loop()
    try:
        while True:
            answer = None
            if type(effect) is Blocked:
                await _changed(effect, Waiter(loop))
            elif type(effect) is Preempt:
                await asyncio.sleep(0)
            elif type(effect) is Choice:
                answer = choose(effect.alternatives)
            elif type(effect) is Outside:
                try:
                    answer = await effect.awaitable
                except Exception as error:  # noqa: BLE001  it is the coroutine's to handle
                    effect = core.throw(error)
                    continue
            effect = core.send(answer)
    except StopIteration as stop:
        result: T = stop.value
        return result
    except asyncio.CancelledError:
        unwind(core)
        raise


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


async def _changed(effect: Blocked, waiter: Waiter) -> None:
    """Return once one of the objects has changed; the coroutine looks at its guard again then."""
    key = waiter if effect.key is None else effect.key
    for shared in effect.objects:
        shared.waiters[key] = waiter
    try:
        await waiter.woken
    finally:
        for shared in effect.objects:
            shared.waiters.pop(key, None)


class Waiter:
    """A task that waits for objects to change: calling it wakes the task; ``since_ns``: since when it waits."""

    __slots__ = ("since_ns", "woken")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.woken = asyncio.Future[None](loop=loop)
        self.since_ns = time.monotonic_ns()

    def __call__(self) -> None:
        if not self.woken.done():
            self.woken.set_result(None)


def unwind(core: Coroutine[Effect, Any, Any]) -> None:
    """Throw ``Killed`` and run the clean-up, which gives locks back and therefore never blocks."""
    try:
        effect = core.throw(Killed())
        while type(effect) is Preempt:
            effect = core.send(None)
        core.close()
        raise RuntimeError(f"the clean-up of {core!r} blocked: {effect!r}")
    except (StopIteration, Killed):
        pass
