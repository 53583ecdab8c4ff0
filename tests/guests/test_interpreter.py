"""A thread that comes back from outside the interpreter does not starve beside a loop that never rests."""

import asyncio
import sys
import threading
import time

import pytest

from kickstand.guests.interpreter import hand_over_promptly

RETURNS = 100
TURNS = 100  # a return, far more than it takes and far less than a thread that starves waits for


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can be asked for precise timers")
async def test_a_thread_that_asks_for_it_gets_the_interpreter_within_a_few_turns_of_a_busy_loop():
    returns = 0

    def come_and_go():
        nonlocal returns
        hand_over_promptly()
        for _ in range(RETURNS):
            time.sleep(0)  # leaves the interpreter
            returns += 1

    thread = threading.Thread(target=come_and_go)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.005)
    try:
        thread.start()
        for _ in range(TURNS * RETURNS):
            if returns == RETURNS:
                break
            sum(range(5_000))
            await asyncio.sleep(0)
        assert returns == RETURNS
    finally:
        thread.join()
        sys.setswitchinterval(interval)
