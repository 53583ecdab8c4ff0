"""What was asked of a machine and what it answered, in order: the raw material of the trace export as a script.

Only what came from outside is kept: an ioctl that another one issues (a transaction's kick) and what a guest
writes are not. The history is bounded; once something had to go, the rest cannot be replayed and says so.
"""

from __future__ import annotations

import functools
import inspect
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from kickstand.core.errors import KvmError

if TYPE_CHECKING:
    import asyncio

    from kickstand.core.kvm_main import AnyVcpu
    from kickstand.core.run.run_page import Cause, RunResult

CALLS = 20_000
PAYLOAD = 64 << 20  # bytes written to host memory that are kept
LIGHT = 1 << 16  # bytes that a machine's history may go on to keep when the machine is gone
READ = 4_096  # longer reads of host memory are not kept

_part: ContextVar[bool] = ContextVar("recorded_part", default=False)
"""True while the calls of this task are parts of one that is recorded."""


@dataclass(slots=True)
class Call:
    """One call of a method. ``begun`` and ``ended`` number all beginnings and ends; ``result`` is what it returned."""

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    signature: inspect.Signature | None  # of the method; None: all arguments have their names
    begun: int
    ended: int | None = None
    result: Any = None
    error: KvmError | None = None
    vcpu: int | None = None  # of a KVM_RUN that was begun
    sent: Cause | None = None  # why it was asked to leave, if it was
    given_up: bool = False  # before it was inside

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The arguments by the names of the method's parameters."""
        if self.signature is None:
            return self.kwargs
        return self.signature.bind(*self.args, **self.kwargs).arguments


class Begun(Protocol):
    """A KVM_RUN under way."""

    @property
    def vcpu(self) -> AnyVcpu:
        """Whose."""
        ...

    @property
    def task(self) -> asyncio.Future[RunResult]:
        """Done when it has left."""
        ...

    @property
    def sent(self) -> Cause | None:
        """Why it was asked to leave, if it was."""
        ...


class History:
    """The newest calls of one machine; ``dropped`` counts those that are lost."""

    def __init__(self, calls: int = CALLS, payload: int = PAYLOAD) -> None:
        self._calls: deque[Call] = deque()
        # A kick ends a thousand KVM_RUNs at once: each is noted here, and numbered before anything else is.
        self._ended: list[tuple[Begun, RunResult | None, Exception | None]] = []
        self._running: dict[Begun, Call] = {}
        self.dropped = 0
        self.open = 0
        self._limit = calls
        self._most = payload
        self._payload = payload  # what is left of it
        self._clock = 0

    def begin(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        signature: inspect.Signature | None = None,
        size: int = 0,
        *,
        alone: bool = False,
    ) -> Call | None:
        """Note the beginning of a call; None for one that is part of another, or that counts ``alone`` and is not."""
        if _part.get():
            return None
        self._number_ended()
        if alone and self.open:
            return None
        self._payload -= size
        self._clock += 1
        self.open += 1
        call = Call(name, args, kwargs, signature, self._clock)
        self._calls.append(call)
        if len(self._calls) > self._limit or self._payload < 0:
            self.forget()
        return call

    def end(self, call: Call, result: object = None, error: KvmError | None = None) -> None:
        """Note what a call came to."""
        self._number_ended()
        self._end(call, result, error)

    @property
    def calls(self) -> deque[Call]:
        """The calls that are kept, in the order in which they began."""
        self._number_ended()
        return self._calls

    def shed(self) -> None:
        """The machine is gone: what takes much memory goes with it."""
        if PAYLOAD - self._payload > LIGHT:
            self.forget()

    def forget(self) -> None:
        """Drop everything: there is more than is kept, or the machine changed in a way that no call describes."""
        self.dropped += len(self._calls)
        self._calls.clear()
        self._payload = self._most

    def follow(self, call: Call, run: Begun) -> None:
        """``call`` began KVM_RUN and ends with it."""
        call.vcpu = run.vcpu.id
        if run.task.done():
            error = run.task.exception()
            self.end(call, None if error else run.task.result(), error if isinstance(error, KvmError) else None)
            return
        self._running[run] = call

    def note_end(self, run: Begun, result: RunResult | None, error: Exception | None) -> None:
        """A KVM_RUN is over; whatever is noted next comes after it."""
        self._ended.append((run, result, error))

    def note_given_up(self, run: Begun) -> None:
        """A KVM_RUN left a queue without having been inside."""
        call = self._running.pop(run, None)
        if call is not None:
            call.given_up = True
            self.open -= 1

    def _number_ended(self) -> None:
        for run, result, error in self._ended:
            call = self._running.pop(run, None)
            if call is None:
                continue  # another ioctl began it, or it never waited
            call.sent = run.sent
            self._end(call, result, error if isinstance(error, KvmError) else None)
        self._ended.clear()

    def _end(self, call: Call, result: object, error: KvmError | None) -> None:
        self._clock += 1
        self.open -= 1
        call.ended, call.result, call.error = self._clock, result, error


def noted(method: Callable[..., Any], *, alone: bool = False) -> Callable[..., Any]:
    """Make a method of a machine note its calls: a coroutine's with its result, else a KVM_RUN that it begins.

    ``alone``: not while any other is under way. It does not wait for these, so that it has no place among them.
    """
    name = method.__name__
    signature = inspect.signature(method)
    signature = signature.replace(parameters=list(signature.parameters.values())[1:])

    def begin(self: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
        history: History = self.history
        return history.begin(name, args, kwargs, signature, alone=alone)

    note = _performed if inspect.iscoroutinefunction(method) else _begun
    return functools.wraps(method)(note(method, begin))


def _performed(method: Callable[..., Any], begin: Callable[..., Call | None]) -> Callable[..., Any]:
    async def performed(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = begin(self, args, kwargs)
        if call is None:
            return await method(self, *args, **kwargs)
        token = _part.set(True)
        error: KvmError | None = None
        result: Any = None
        try:
            result = await method(self, *args, **kwargs)
        except KvmError as refused:
            error = refused
            raise
        finally:
            _part.reset(token)
            self.history.end(call, result, error)
        return result

    return performed


def _begun(method: Callable[..., Any], begin: Callable[..., Call | None]) -> Callable[..., Any]:
    def begun(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = begin(self, args, kwargs)
        if call is None:
            return method(self, *args, **kwargs)
        token = _part.set(True)  # what it starts inherits this, so that a guest's writes are not the VMM's
        try:
            result = method(self, *args, **kwargs)
        except KvmError as refused:
            self.history.end(call, error=refused)
            raise
        finally:
            _part.reset(token)
        self.history.follow(call, result)
        return result

    return begun
