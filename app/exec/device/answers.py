"""Answers to ioctls: at once, or when what they wait for is done."""

from __future__ import annotations

import asyncio
import errno
import traceback
from functools import partial
from typing import Any

from kickstand.core.errors import KvmError
from kickstand.exec.device.signals import Signals, Waiting
from kickstand.exec.host.notify import Listener, Notification


class Answers:
    """Answers what ``runtime.driver.tasks.start`` has begun."""

    def __init__(self, listener: Listener, signals: Signals) -> None:
        self._listener = listener
        self._signals = signals

    def when_done(self, call: Notification, future: asyncio.Future[int]) -> None:
        """Let a call return what a future gives; a thread that ends meanwhile cancels it."""
        if future.done():
            self._answer(call, future)
        else:
            self._signals.add(Waiting(call.tid, None, _ignore, partial(_cancel, future)))
            future.add_done_callback(lambda done: self._performed(call, done))

    def _performed(self, call: Notification, done: asyncio.Future[int]) -> None:
        self._signals.remove(call.tid)
        self._answer(call, done)

    def _answer(self, call: Notification, done: asyncio.Future[int]) -> None:
        if done.cancelled():
            self._listener.answer(call, -1, errno.EINTR)
            return
        error = done.exception()
        if error is None:
            self._listener.answer(call, done.result())
        else:
            self._listener.answer(call, -1, errno_of(error))


def errno_of(error: BaseException) -> int:
    """What the program is told; a fault of ours is EIO, and told to the person too."""
    if isinstance(error, KvmError):
        return error.errno
    traceback.print_exception(error)
    return errno.EIO


def _ignore() -> None:
    """A signal does not end an ioctl other than KVM_RUN: it is short."""


def _cancel(future: asyncio.Future[Any]) -> None:
    future.cancel()
