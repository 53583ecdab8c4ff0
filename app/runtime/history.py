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
from typing import TYPE_CHECKING, Any, TypeVar

from app.core.errors import KvmError
from app.guests.host_memory import Arena, HostMemory

if TYPE_CHECKING:
    import asyncio

    from app.core.run_page import Cause, RunResult
    from app.runtime.runs import Run
    from app.runtime.threads import Outcome

C = TypeVar("C")
CALLS = 20_000
PAYLOAD = 64 << 20  # bytes written to host memory that are kept
READ = 4_096  # longer reads of host memory are not kept
READS = frozenset({"get_regs", "get_sregs", "get_mp_state", "read"})

_signatures: dict[str, inspect.Signature] = {}
_inside: ContextVar[bool] = ContextVar("inside", default=False)


@dataclass(slots=True)
class Call:
    """One call of a method. ``begun`` and ``ended`` number all beginnings and ends; ``result`` is what it returned."""

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
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
        signature = _signatures.get(self.name)
        return self.kwargs if signature is None else signature.bind(*self.args, **self.kwargs).arguments


class History:
    """The newest calls of one machine; ``dropped`` counts those that are lost."""

    def __init__(self, calls: int = CALLS, payload: int = PAYLOAD) -> None:
        self._calls: deque[Call] = deque()
        # A kick ends a thousand KVM_RUNs at once: each is noted here, and numbered before anything else is.
        self._ended: list[Outcome] = []
        self.note_end: Callable[[Outcome], None] = self._ended.append
        self._running: dict[asyncio.Future[RunResult], tuple[Call, Run]] = {}
        self.dropped = 0
        self.open = 0
        self._limit = calls
        self._payload = payload
        self._clock = 0

    def begin(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], size: int = 0) -> Call | None:
        """Note the beginning of a call; None for one that is part of another, or a read beside running calls."""
        if _inside.get():
            return None
        self._number_ended()
        if name in READS and self.open:
            return None
        self._payload -= size
        self._clock += 1
        self.open += 1
        call = Call(name, args, kwargs, self._clock)
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

    def forget(self) -> None:
        """Drop everything: there is more than is kept, or the machine changed in a way that no call describes."""
        self.dropped += len(self._calls)
        self._calls.clear()
        self._payload = PAYLOAD

    def follow(self, call: Call, run: Run) -> None:
        """``call`` began KVM_RUN and ends with it."""
        call.vcpu = run.vcpu.id
        if run.task.done():
            error = run.task.exception()
            self.end(call, None if error else run.task.result(), error if isinstance(error, KvmError) else None)
            return
        self._running[run.task] = call, run
        run.task.add_done_callback(self._given_up)

    def _given_up(self, task: asyncio.Future[RunResult]) -> None:
        if task.cancelled():
            call, _run = self._running.pop(task)
            call.given_up = True
            self.open -= 1

    def _number_ended(self) -> None:
        for thread, result, error in self._ended:
            followed = self._running.pop(thread, None)
            if followed is None:
                continue  # another ioctl began it
            call, run = followed
            call.sent = run.sent
            self._end(call, result, error if isinstance(error, KvmError) else None)
        self._ended.clear()

    def _end(self, call: Call, result: object, error: KvmError | None) -> None:
        self._clock += 1
        self.open -= 1
        call.ended, call.result, call.error = self._clock, result, error


class RecordedMemory(HostMemory):
    """Host memory whose use by the VMM is kept in ``history``."""

    def __init__(self, limit: int, history: History) -> None:
        super().__init__(limit)
        self._history = history

    def allocate(self, size: int, name: str = "") -> Arena:
        call = self._history.begin("allocate", (), {"size": size, "name": name})
        return self._finish(call, lambda: super(RecordedMemory, self).allocate(size, name))

    def read(self, hva: int, length: int) -> bytes:
        call = self._history.begin("read", (), {"hva": hva, "length": length}) if length <= READ else None
        return self._finish(call, lambda: super(RecordedMemory, self).read(hva, length))

    def write(self, hva: int, data: bytes) -> None:
        # A fill is one byte many times; it is kept as such.
        fill = len(data) > READ and data.count(data[:1]) == len(data)
        kept: Mapping[str, Any] = (
            {"hva": hva, "byte": data[0], "length": len(data)} if fill else {"hva": hva, "data": bytes(data)}
        )
        call = self._history.begin("fill" if fill else "write", (), kept, 0 if fill else len(data))
        self._finish(call, lambda: super(RecordedMemory, self).write(hva, data))

    def _finish(self, call: Call | None, work: Callable[[], C]) -> C:
        if call is None:
            return work()
        try:
            result = work()
        except KvmError as error:
            self._history.end(call, error=error)
            raise
        self._history.end(call, result)
        return result


def keeps_history(*names: str) -> Callable[[type[C]], type[C]]:
    """Make the methods so named of a class that has ``history`` note their calls there."""

    def decorate(machine: type[C]) -> type[C]:
        for name in names:
            if name in vars(machine):
                setattr(machine, name, _noted(vars(machine)[name]))
        return machine

    return decorate


def _noted(method: Callable[..., Any]) -> Callable[..., Any]:
    name = method.__name__
    signature = inspect.signature(method)
    _signatures[name] = signature.replace(parameters=list(signature.parameters.values())[1:])

    @functools.wraps(method)
    async def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = self.history.begin(name, args, kwargs)
        if call is None:
            return await method(self, *args, **kwargs)
        token = _inside.set(True)
        error: KvmError | None = None
        result: Any = None
        try:
            result = await method(self, *args, **kwargs)
        except KvmError as refused:
            error = refused
            raise
        finally:
            _inside.reset(token)
            self.history.end(call, result, error)
        return result

    @functools.wraps(method)
    def noted_at_once(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = self.history.begin(name, args, kwargs)
        if call is None:
            return method(self, *args, **kwargs)
        token = _inside.set(True)  # what it starts inherits this, so that a guest's writes are not the VMM's
        try:
            result = method(self, *args, **kwargs)
        except KvmError as refused:
            self.history.end(call, error=refused)
            raise
        finally:
            _inside.reset(token)
        if name == "start_run":
            self.history.follow(call, result)
        else:
            self.history.end(call, result)
        return result

    return noted if inspect.iscoroutinefunction(method) else noted_at_once
