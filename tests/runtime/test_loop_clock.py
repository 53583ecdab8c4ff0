"""The clock of timers that go by the event loop: one alarm for all of them, and nothing that piles up."""

import asyncio

import pytest

from kickstand.runtime.driver.clock import LoopClock
from kickstand.runtime.driver.tasks import perform_now
from tests.api.live import until


@pytest.fixture
async def fired():
    return []


@pytest.fixture
async def clock(fired):
    clock = LoopClock(fired.append)
    yield clock
    clock.close()


def start(clock, *timers):
    for number, due in timers:
        perform_now(clock.set_timer(number, due))


async def test_timers_fire_in_the_order_in_which_they_are_due(clock, fired):
    start(clock, (3, 300), (1, 100), (2, 200), (-1, 150))
    await until(lambda: len(fired) == 4)
    assert fired == [1, -1, 2, 3]


async def test_a_timer_that_is_set_anew_or_stopped_does_not_fire_as_it_was(clock, fired):
    soon = clock.time_now() + 2_000_000
    start(clock, (1, soon), (2, soon), (3, soon + 1), (1, soon + 2), (2, None))
    await until(lambda: len(fired) == 2)
    assert fired == [3, 1]


async def test_one_that_fires_may_start_itself_again(fired):
    def fire(number):
        fired.append(number)
        start(clock, (number, 100 * len(fired)))

    clock = LoopClock(fire)
    start(clock, (7, 1))
    await until(lambda: len(fired) >= 200)
    clock.close()
    done = len(fired)
    await asyncio.sleep(0.001)
    assert len(fired) == done


async def test_a_guest_that_puts_its_deadline_off_all_the_time_takes_no_memory(clock):
    for number in range(10_000):
        start(clock, (0, 10**15 + number), (1, 10**15 - number))
    assert len(clock._queue) < 100
