"""The one interpreter that the event loop shares with the threads of guests and of the journal.

A loop that never rests gives the interpreter up in each of its turns, too briefly for a thread that has to be woken
first. CPython insists on a change of hands only when a thread has waited for the switch interval without one, and
Linux lets it wait 50 us longer than it asked for: together that must be shorter than a turn, or the thread starves.
"""

from __future__ import annotations

import ctypes
import sys

SWITCH_INTERVAL_S = 0.00001
TIMER_SLACK_NS = 1_000
PR_SET_TIMERSLACK = 29


def hand_over_promptly() -> None:
    """Let the calling thread have the interpreter soon whenever it comes back from outside."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, TIMER_SLACK_NS, 0, 0, 0)
