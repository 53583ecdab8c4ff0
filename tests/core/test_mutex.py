"""A mutex is handed over in order of arrival, and nobody who is killed keeps it or a place in the queue."""

import pytest

from kickstand.core.atomics import Mutex
from tests.stepper import Thread


@pytest.fixture
def mutex():
    return Mutex()


def waiting(mutex, *tids):
    """Threads that want the mutex, in this order."""
    return [Thread(mutex.lock(tid)) for tid in tids]


def unlock(mutex):
    Thread(mutex.unlock())


def test_the_longest_waiter_gets_it(mutex):
    first, second, third = waiting(mutex, "first", "second", "third")
    assert [thread.at for thread in (first, second, third)] == ["done", "blocked", "blocked"]
    unlock(mutex)
    assert (third.step().at, second.step().at) == ("blocked", "done")
    unlock(mutex)
    assert third.step().done
    unlock(mutex)
    assert mutex.state() == Mutex().state()


def test_who_is_killed_while_it_waits_is_passed_over(mutex):
    _, second, third = waiting(mutex, "first", "second", "third")
    second.kill()
    unlock(mutex)
    assert third.step().done


@pytest.mark.parametrize("others", [[], ["third"], ["third", "fourth"]])
def test_who_is_killed_when_it_was_handed_over_gives_it_to_the_next(mutex, others):
    _, second, *rest = waiting(mutex, "first", "second", *others)
    unlock(mutex)
    second.kill()
    for thread in rest:
        assert thread.step().done
        unlock(mutex)
    assert mutex.state() == Mutex().state()
