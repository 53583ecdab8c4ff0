"""What ``kickstand exec`` needs of a machine, one by one, for ``kickstand doctor``."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass

from kickstand.exec.host import linux
from kickstand.exec.host.launch import unusable
from kickstand.exec.host.maps import can_query, can_scan
from kickstand.exec.host.tracee import may_trace


@dataclass(frozen=True, slots=True)
class Check:
    """One thing: whether it is there, what that means, and whether ``exec`` does without it."""

    name: str
    there: bool
    meaning: str
    needed: bool = False


def checks() -> list[Check]:
    """Look at this machine; nothing of it is changed."""
    why_not = unusable()
    found = [Check("user notification", not why_not, why_not or "programs run with `kickstand exec`", needed=True)]
    if why_not:
        return found
    traced = _own_child_is_traced()
    return [
        *found,
        Check("ptrace", traced, "guest memory is shared" if traced else "guest memory is copied, which is slow"),
        Check("PROCMAP_QUERY", can_query(), "Linux 6.11: what a program has mapped is looked up, not parsed"),
        Check("PAGEMAP_SCAN", can_scan(), "Linux 6.7: large sparse memory is shared faster"),
    ]


def _own_child_is_traced() -> bool:
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
            time.sleep(60)
        os._exit(0)
    try:
        return may_trace(child)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
