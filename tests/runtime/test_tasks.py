"""The asyncio driver: effects, errors from outside, and cancellation."""

from __future__ import annotations

import asyncio

import pytest

from app.core.atomics import Mutex, choose, outside, preempt
from app.runtime.tasks import perform, perform_now


async def test_an_error_from_outside_is_thrown_into_the_coroutine_which_gives_its_locks_back():
    mutex = Mutex()

    async def fails():
        raise ValueError("no")

    async def core():
        await mutex.lock("t")
        try:
            await outside(fails())
        finally:
            await mutex.unlock()

    with pytest.raises(ValueError, match="no"):
        await perform(core())
    assert mutex.owner is None


async def test_an_error_from_outside_that_the_coroutine_handles_is_no_error():
    async def fails():
        raise ValueError

    async def core():
        try:
            await outside(fails())
        except ValueError:
            await preempt()
            return await choose(3)

    assert await perform(core(), lambda alternatives: alternatives - 1) == 2


async def test_a_blocked_thread_that_is_cancelled_leaves_the_queue():
    mutex = Mutex()
    await mutex.lock("holder")
    waiting = asyncio.create_task(perform(mutex.lock("waiter")))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert mutex.queue == ()
    assert mutex.waiters == {}


def test_performing_now_what_blocks_is_an_error():
    mutex = Mutex()
    perform_now(mutex.lock("holder"))
    with pytest.raises(RuntimeError, match="blocked"):
        perform_now(mutex.wait_turn("waiter"))
