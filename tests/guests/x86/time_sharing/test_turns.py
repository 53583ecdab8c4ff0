"""Guests of mode fast on the thread of their VM: who is next, and who is stopped for others."""

import threading

import pytest

from kickstand.guests.x86.time_sharing.guest_thread import AHEAD_S, Turns
from kickstand.guests.x86.time_sharing.shares import Share, Shares

LONG = 10


class Clock:
    """Stands still until it is set."""

    now = 0.0

    def __call__(self):
        return self.now


class Spinning:
    """A guest that runs until it is stopped."""

    def __init__(self, order):
        self.order = order
        self.began = threading.Semaphore(0)
        self.stopped = threading.Event()

    def run(self, _budget):
        self.order.append(self)
        self.stopped.clear()
        self.began.release()
        assert self.stopped.wait(LONG)

    def stop(self):
        self.stopped.set()


class Leaving:
    """A guest that leaves at once."""

    def __init__(self, order):
        self.order = order

    def run(self, _budget):
        self.order.append(self)
        return "exit"


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def turns(clock):
    made = Turns(clock)
    yield made
    made.close()


def test_a_guest_that_has_had_much_is_stopped_as_soon_as_another_wants_to_run(turns, clock):
    spinning, leaving = Spinning(order := []), Leaving(order)
    mine = turns.take(spinning, Share())
    spinning.began.acquire()
    clock.now = 2 * AHEAD_S
    its = turns.take(leaving, Share())
    assert spinning.stopped.is_set()
    assert its.result(LONG)[0] == "exit"
    assert mine.result(LONG)[0] is None


def test_a_guest_that_has_just_begun_is_stopped_when_it_is_ahead(turns, clock):
    spinning, leaving = Spinning(order := []), Leaving(order)
    turns.take(spinning, Share())
    spinning.began.acquire()
    its = turns.take(leaving, Share())
    assert not spinning.stopped.is_set()
    clock.now = 2 * AHEAD_S
    assert its.result(LONG)[0] == "exit"


def test_a_guest_that_leaves_often_goes_before_those_that_have_had_more(turns):
    first, second, leaving = Spinning(order := []), Spinning(order), Leaving(order)
    turns.take(first, Share())
    first.began.acquire()
    share, waits = Share(), turns.take(second, Share(AHEAD_S / 2))
    its = turns.take(leaving, share)
    first.stop()
    its.result(LONG)
    second.began.acquire()
    second.stop()
    waits.result(LONG)
    assert order == [first, leaving, second]
    assert share.used > 0


def test_a_turn_that_was_given_up_is_nobodys(turns):
    spinning, leaving = Spinning(order := []), Leaving(order)
    mine = turns.take(spinning, Share())
    spinning.began.acquire()
    its = turns.take(leaving, Share())
    assert its.cancel()
    spinning.stop()
    mine.result(LONG)
    assert turns.idle
    assert order == [spinning]


def test_what_a_run_raises_is_raised_where_it_is_waited_for(turns):
    class Broken:
        def run(self, _budget):
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        turns.take(Broken(), Share()).result(LONG)
    assert turns.idle


def test_of_guests_that_have_had_the_same_the_first_is_next():
    assert Shares(1).choose([Share(2), Share(1), Share(1)]) == 1


def test_a_guest_that_comes_back_from_a_rest_is_behind_by_a_little_only():
    shares, rested = Shares(credit=3), Share()
    shares.choose([Share(100)])
    shares.join(rested)
    assert rested.used == 97
