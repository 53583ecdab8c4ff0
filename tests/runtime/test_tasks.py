"""The asyncio driver and its threads: effects, errors from outside, cancellation, turns."""

from __future__ import annotations

import asyncio
import contextvars

import pytest

from app.core.atomics import PREEMPT, Mutex, Task, choose, outside, preempt
from app.runtime.tasks import begin, first_choice, perform, perform_now
from app.runtime.threads import HostThread


async def on_a_thread(core, choose=first_choice):
    return await HostThread(core, PREEMPT, choose)


DRIVERS = pytest.mark.parametrize("drive", [perform, on_a_thread])


@DRIVERS
async def test_an_error_from_outside_is_thrown_into_the_coroutine_which_gives_its_locks_back(drive):
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
        await drive(core())
    assert mutex.owner is None


@DRIVERS
async def test_an_error_from_outside_that_the_coroutine_handles_is_no_error(drive):
    async def fails():
        raise ValueError

    async def core():
        try:
            await outside(fails())
        except ValueError:
            await preempt()
            return await choose(3)

    assert await drive(core(), lambda alternatives: alternatives - 1) == 2


@DRIVERS
async def test_a_blocked_thread_that_is_cancelled_leaves_the_queue(drive):
    mutex = Mutex()
    await mutex.lock("holder")
    waiting = asyncio.create_task(drive(mutex.lock("waiter")))
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


def started(core, **options):
    return HostThread(core, begin(core), **options)


async def sleeps(task, log, name):
    await task.set_interruptible()
    await task.schedule()
    log.append(name)


async def test_all_threads_that_were_let_go_on_do_so_in_one_turn_of_the_loop_in_that_order():
    tasks, log = [Task(str(number)) for number in range(3)], []
    threads = [started(sleeps(task, log, task.tid)) for task in tasks]
    for task in (tasks[1], tasks[0], tasks[2]):
        await task.wake_up()
    assert log == []
    await asyncio.sleep(0)
    assert log == ["1", "0", "2"]
    await asyncio.sleep(0)
    assert all(thread.done() for thread in threads)


async def test_who_is_let_go_on_by_a_thread_does_so_in_the_same_turn():
    first, second, log = Task("first"), Task("second"), []

    async def wakes():
        await sleeps(first, log, "first")
        await second.wake_up()

    started(wakes())
    started(sleeps(second, log, "second"))
    await first.wake_up()
    await asyncio.sleep(0)
    assert log == ["first", "second"]


async def test_threads_that_never_wait_leave_the_loop_to_others_once_a_turn():
    steps = []

    async def busy(name):
        while len(steps) < 40:
            steps.append(name)
            await preempt()

    threads = [started(busy(name)) for name in "ab"]
    turns = 0
    while not all(thread.done() for thread in threads):
        await asyncio.sleep(0)
        turns += 1
    assert turns == pytest.approx(20, abs=2)
    assert steps[:6] == ["a", "b", "a", "b", "a", "b"]


async def test_the_outcome_is_told_before_the_next_thread_goes_on_and_the_future_is_done_a_turn_later():
    tasks, log = [Task("0"), Task("1")], []
    threads = [
        started(sleeps(task, log, task.tid), on_end=lambda outcome, task=task: log.append(f"end {task.tid}"))
        for task in tasks
    ]
    threads[0].add_done_callback(lambda _thread: log.append("done"))
    for task in tasks:
        await task.wake_up()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert log == ["0", "end 0", "1", "end 1", "done"]


async def test_a_thread_that_is_killed_after_it_was_woken_gives_back_what_it_was_handed():
    mutex = Mutex()
    await mutex.lock("holder")
    thread = started(mutex.lock("waiter"))
    await mutex.unlock()
    assert mutex.owner == "waiter"
    assert thread.cancel()
    assert mutex.owner is None
    await asyncio.sleep(0)
    assert thread.cancelled()
    assert not thread.cancel()


async def test_a_thread_whose_outside_work_somebody_cancels_is_cancelled():
    work = asyncio.get_running_loop().create_future()
    mutex = Mutex()

    async def core():
        await mutex.lock("t")
        try:
            await outside(work)
        finally:
            await mutex.unlock()

    thread = started(core())
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await thread
    assert mutex.owner is None


async def test_cancelling_a_thread_cancels_what_it_waits_for_outside():
    work = asyncio.get_running_loop().create_future()
    thread = started(outside(work))
    thread.cancel()
    assert work.cancelled()


async def test_a_thread_acts_in_the_context_in_which_it_was_begun():
    who = contextvars.ContextVar("who", default="nobody")
    task, seen = Task("t"), []

    async def core():
        await sleeps(task, seen, "woken")
        seen.append(who.get())

    who.set("beginner")
    thread = started(core())
    who.set("waker")
    await task.wake_up()
    await thread
    assert seen == ["woken", "beginner"]


async def test_an_error_of_the_coroutine_is_the_threads():
    task = Task("t")

    async def core():
        await sleeps(task, [], "")
        raise ValueError("no")

    thread = started(core())
    await task.wake_up()
    with pytest.raises(ValueError, match="no"):
        await thread


async def test_a_control_call_goes_on_before_those_who_wait_for_the_threads_that_let_it():
    task, holder, log = Task("t"), Mutex(), []

    async def core():
        await sleeps(task, log, "thread")
        await holder.unlock()

    async def waits(thread):
        await thread
        log.append("waiter")

    async def call():
        await perform(holder.lock("call"))
        log.append("call")

    await holder.lock("thread")
    ending = asyncio.gather(waits(started(core())), call())
    await asyncio.sleep(0)
    await task.wake_up()
    await ending
    assert log == ["thread", "call", "waiter"]
