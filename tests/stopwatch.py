"""How long one turn of an event loop keeps everybody else waiting: what it computes, whoever else is on the CPU."""

import asyncio
import gc
import threading
import time
from contextlib import contextmanager

NOMINAL_S = 0.0022  # what ``slowness`` measures on an ordinary machine that has nothing else to do


class Stopwatch:
    """The longest turn of one thread's loop, in seconds of that thread's CPU time, and what it was."""

    def __init__(self, thread):
        self.thread = thread
        self.longest = 0.0
        self.what = ""

    def lap(self):
        """The longest turn since the last lap."""
        longest, what = self.longest, self.what
        self.longest, self.what = 0.0, ""
        return longest, what


@contextmanager
def stopwatch(thread):
    """Measure every callback of the loop that runs in ``thread``.

    What the heap has now is kept from the collector meanwhile: its turns would be as long as that heap is large, and
    a process that has run some thousand tests has a large one.
    """
    watch = Stopwatch(thread)
    run = asyncio.events.Handle._run

    def timed(handle):
        if threading.get_ident() != watch.thread:
            return run(handle)
        began = time.thread_time()
        try:
            return run(handle)
        finally:
            took = time.thread_time() - began
            if took > watch.longest:
                watch.longest, watch.what = took, repr(handle)[:300]

    gc.collect()
    gc.freeze()
    asyncio.events.Handle._run = timed
    try:
        yield watch
    finally:
        asyncio.events.Handle._run = run
        gc.unfreeze()


def slowness():
    """How many times longer than usual a piece of work takes now, at least one: beside others it does, whose it is."""
    began = time.thread_time()
    sum([number % 7 for number in range(60_000)])
    return max(1.0, (time.thread_time() - began) / NOMINAL_S)


def stretch():
    """How many seconds a second of CPU takes here and now, at least one: more where others are on the CPU, too."""
    began, used = time.monotonic(), time.thread_time()
    sum([number % 7 for number in range(1_500_000)])
    return max(1.0, (time.monotonic() - began) / (time.thread_time() - used))
