"""The semaphore's rules: order, batches, stealing, killable waits, and who is let in when a waiter leaves."""

from __future__ import annotations

import asyncio
import random

import pytest

from kickstand.core.atomics import Mutex, Task
from kickstand.core.shared.rwsem import RwSemaphore, Srcu
from kickstand.runtime.driver.tasks import perform, perform_now
from tests.stepper import Announced, Thread


def semaphore(**options):
    return Announced(RwSemaphore(**options))


def reader(sem, name, *, killable=False):
    return Thread(sem.down_read(Announced(Task(name)), killable=killable)).run()


def writer(sem, name, *, killable=False):
    return Thread(sem.down_write(Announced(Task(name)), killable=killable)).run()


def release(sem, side):
    Thread(getattr(sem, f"up_{side}")()).run()


def test_readers_share_and_a_writer_waits_for_all_of_them():
    sem = semaphore()
    assert reader(sem, "r1").done
    assert reader(sem, "r2").done
    waiting = writer(sem, "w")
    release(sem, "read")
    assert not waiting.run().done
    release(sem, "read")
    assert waiting.run().done


def test_a_queued_writer_stops_new_readers():
    sem = semaphore()
    reader(sem, "r1")
    writer(sem, "w")
    assert not reader(sem, "r2").done


def test_when_a_writer_leaves_all_queued_readers_enter_whatever_their_place():
    sem = semaphore()
    writer(sem, "w0")
    r1, w1, r2, w2, r3 = (reader(sem, "r1"), writer(sem, "w1"), reader(sem, "r2"), writer(sem, "w2"), reader(sem, "r3"))
    release(sem, "write")
    assert [thread.run().done for thread in (r1, w1, r2, w2, r3)] == [True, False, True, False, True]
    for _ in range(3):
        release(sem, "read")
    assert [w1.run().done, w2.run().done] == [True, False]


def test_without_stealing_a_newcomer_queues_behind_a_writer_that_was_woken():
    sem = semaphore()
    reader(sem, "r1")
    waiting = writer(sem, "w")
    release(sem, "read")  # the writer may go, but has not run yet
    assert not reader(sem, "r2").done
    assert waiting.run().done


def test_with_stealing_a_newcomer_overtakes_a_writer_that_was_woken():
    sem = semaphore(steal=True)
    reader(sem, "r1")
    waiting = writer(sem, "w")
    release(sem, "read")
    assert reader(sem, "r2").done
    assert not waiting.run().done


@pytest.mark.parametrize("side", [reader, writer])
def test_a_killable_wait_ends_with_a_signal_and_holds_nothing(side):
    sem = semaphore()
    writer(sem, "w0")
    task = Announced(Task("t"))
    method = sem.down_read if side is reader else sem.down_write
    waiting = Thread(method(task, killable=True)).run()
    Thread(task.send_signal()).run()
    assert waiting.run().result is False
    release(sem, "write")
    assert sem.real.state() == (0, None, (), ())


def test_a_plain_wait_ignores_signals():
    sem = semaphore()
    writer(sem, "w0")
    task = Announced(Task("t"))
    waiting = Thread(sem.down_read(task)).run()
    Thread(task.send_signal()).run()
    assert not waiting.run().done


def test_readers_behind_a_writer_that_is_killed_are_let_in_at_once():
    sem = semaphore()
    reader(sem, "r1")
    waiting = writer(sem, "w")
    behind = reader(sem, "r2")
    waiting.kill()
    assert behind.run().done
    assert sem.real.readers == 2


def test_a_reader_killed_after_it_was_granted_gives_the_lock_back():
    sem = semaphore()
    writer(sem, "w0")
    granted, next_writer = reader(sem, "r1"), writer(sem, "w1")
    release(sem, "write")
    granted.kill()
    assert next_writer.run().done


async def test_random_programs_with_cancellation_keep_exclusion_and_wedge_nobody():
    for seed in range(20):
        rng, sem, inside = random.Random(seed), RwSemaphore(steal=bool(seed % 2)), {"read": 0, "write": 0}

        async def use(name, side, sem=sem, inside=inside, rng=rng):
            for turn in range(5):
                down = sem.down_read if side == "read" else sem.down_write
                await perform(down(Task(f"{name}.{turn}")))
                inside[side] += 1
                assert inside["write"] <= 1
                assert not (inside["write"] and inside["read"])
                try:
                    for _ in range(rng.randrange(4)):
                        await asyncio.sleep(0)
                finally:
                    inside[side] -= 1
                    perform_now(sem.up_read() if side == "read" else sem.up_write())

        users = [asyncio.create_task(use(f"t{n}", rng.choice(["read", "read", "write"]))) for n in range(12)]
        for _ in range(60):
            await asyncio.sleep(0)
            if rng.random() < 0.2:
                rng.choice(users).cancel()
        async with asyncio.timeout(10):
            await asyncio.gather(*users, return_exceptions=True)
        assert [user.exception() for user in users if not user.cancelled()].count(None) == sum(
            not user.cancelled() for user in users
        )
        assert sem.state() == (0, None, (), ())
        assert not sem.waiters


def test_srcu_waits_for_readers_that_were_inside_and_not_for_later_ones():
    srcu = Announced(Srcu())
    before = perform_now(srcu.real.read_lock())
    grace = Thread(srcu.synchronize()).run()
    later = perform_now(srcu.real.read_lock())
    assert not grace.run().done
    perform_now(srcu.real.read_unlock(before))
    assert grace.run().done
    assert later != before


def test_srcu_grace_period_ends_although_new_readers_keep_coming():
    srcu = Announced(Srcu())
    old = perform_now(srcu.real.read_lock())
    first = Thread(srcu.synchronize()).run()
    perform_now(srcu.real.read_unlock(old))
    perform_now(srcu.real.read_lock())
    second = Thread(srcu.synchronize()).run()
    perform_now(srcu.real.read_lock())
    assert first.run().done
    assert not second.run().done


def test_mutex_is_first_come_first_served_and_survives_a_killed_waiter():
    mutex = Announced(Mutex())
    first, second, third = (Thread(mutex.lock(name)).run() for name in ("a", "b", "c"))
    second.kill()
    assert [first.done, third.done] == [True, False]
    Thread(mutex.unlock()).run()
    assert third.run().done
    Thread(mutex.unlock()).run()
    assert mutex.real.owner is None
