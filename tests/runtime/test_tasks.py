"""The asyncio driver: effects, errors from outside, cancellation, turns, and what begins before there is a task."""

from __future__ import annotations

import asyncio
import contextvars

import pytest

from kickstand.core.atomics import Mutex, Task, choose, outside, preempt
from kickstand.runtime.driver.tasks import Performance, first_choice, perform, perform_now, start


async def in_a_task(core, choose=first_choice):
    return await asyncio.create_task(perform(core, choose))


async def begun_at_once(core, choose=first_choice):
    return await start(perform(core, choose))


DRIVERS = pytest.mark.parametrize("drive", [perform, in_a_task, begun_at_once])


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
    while not mutex.queue:
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
        perform_now(mutex.lock("waiter"))


async def sleeps(task, log, name):
    await task.set_interruptible()
    await task.schedule()
    log.append(name)


async def test_all_tasks_that_were_let_go_on_do_so_in_one_turn_of_the_loop_in_that_order():
    tasks, log = [Task(str(number)) for number in range(3)], []
    threads = [start(perform(sleeps(task, log, task.tid))) for task in tasks]
    await asyncio.sleep(0)
    for task in (tasks[1], tasks[0], tasks[2]):
        await task.wake_up()
    assert log == []
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert log == ["1", "0", "2"]
    await asyncio.wait(threads)


async def test_threads_that_never_wait_leave_the_loop_to_others_once_a_turn():
    steps = []

    async def busy(name):
        while len(steps) < 40:
            steps.append(name)
            await preempt()

    threads = [start(perform(busy(name))) for name in "ab"]
    turns = 0
    while not all(thread.done() for thread in threads):
        await asyncio.sleep(0)
        turns += 1
    assert turns == pytest.approx(20, abs=2)
    assert steps[2:8] == ["a", "b", "a", "b", "a", "b"]


async def test_what_is_over_at_once_has_made_no_task_wait():
    before = asyncio.all_tasks()
    mutex = Mutex()
    done = start(perform(mutex.lock("t")))
    assert done.done()
    assert mutex.owner == "t"
    assert asyncio.all_tasks() == before


async def test_what_waits_is_a_task_with_its_name():
    task = Task("t")
    thread = start(perform(sleeps(task, [], "")), "vm/cpu0")
    assert thread in asyncio.all_tasks()
    assert thread.get_name() == "vm/cpu0"
    thread.cancel()
    with pytest.raises(asyncio.CancelledError):
        await thread


async def test_a_wake_up_between_the_beginning_and_the_tasks_first_turn_is_not_lost():
    task, log = Task("t"), []
    thread = start(perform(sleeps(task, log, "woken")))
    perform_now(task.wake_up())
    await asyncio.wait_for(thread, 1)
    assert log == ["woken"]


@pytest.mark.parametrize("turns", range(3))
async def test_a_call_that_is_cancelled_gives_back_what_it_was_handed_however_early(turns):
    mutex = Mutex()
    await mutex.lock("holder")
    thread = start(perform(mutex.lock("waiter")))
    for _ in range(turns):
        await asyncio.sleep(0)
    await mutex.unlock()
    assert mutex.owner == "waiter"
    thread.cancel()
    await asyncio.wait({thread})
    if thread.cancelled():
        assert mutex.owner is None
    assert mutex.queue == ()
    assert mutex.waiters == {}


async def test_a_task_whose_outside_work_somebody_cancels_is_cancelled():
    work = asyncio.get_running_loop().create_future()
    mutex = Mutex()

    async def core():
        await mutex.lock("t")
        try:
            await outside(work)
        finally:
            await mutex.unlock()

    thread = start(perform(core()))
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await thread
    assert mutex.owner is None


async def test_cancelling_a_task_cancels_what_it_waits_for_outside():
    work = asyncio.get_running_loop().create_future()
    thread = start(perform(outside(work)))
    thread.cancel()
    await asyncio.wait({thread})
    assert work.cancelled()


async def test_a_task_acts_in_the_context_in_which_it_was_begun_and_may_change_it_for_itself():
    who = contextvars.ContextVar("who", default="nobody")
    task, seen = Task("t"), []

    async def core():
        token = who.set(f"{who.get()}'s")
        await sleeps(task, seen, "woken")
        seen.append(who.get())
        who.reset(token)

    who.set("beginner")
    thread = start(perform(core()))
    assert who.get() == "beginner"
    who.set("waker")
    await task.wake_up()
    await thread
    assert seen == ["woken", "beginner's"]


async def test_an_error_of_the_coroutine_is_the_tasks_before_it_waits_and_after():
    task = Task("t")

    async def core(*, waits):
        if waits:
            await sleeps(task, [], "")
        raise ValueError("no")

    early, late = start(perform(core(waits=False))), start(perform(core(waits=True)))
    assert early.done()
    await task.wake_up()
    for thread in (early, late):
        with pytest.raises(ValueError, match="no"):
            await thread


async def test_who_is_made_to_give_up_gives_back_what_it_holds_and_gets_the_error():
    first, second = Mutex(), Mutex()
    await second.lock("holder")

    async def core():
        await first.lock("t")
        try:
            await second.lock("t")
        finally:
            await first.unlock()

    performance = Performance(core())
    thread = start(performance.to_end())
    performance.give_up(LookupError("the VM is gone"))
    with pytest.raises(LookupError, match="gone"):
        await thread
    assert first.owner is None
    assert second.queue == ()


async def test_who_is_cancelled_and_made_to_give_up_at_once_is_cancelled():
    task = Task("t")
    performance = Performance(sleeps(task, [], ""))
    thread = start(performance.to_end())
    performance.give_up(LookupError())
    thread.cancel()
    with pytest.raises(asyncio.CancelledError):
        await thread


async def test_a_failing_task_group_gets_its_threads_out():
    mutex = Mutex()
    await mutex.lock("holder")

    async def fails():
        await asyncio.sleep(0)
        raise ValueError

    async def together():
        async with asyncio.TaskGroup() as group:
            group.create_task(perform(mutex.lock("waiter")))
            group.create_task(fails())

    with pytest.raises(ExceptionGroup):
        await together()
    assert mutex.queue == ()
