"""Atomic operations on shared objects: the only way core code touches what another thread can see.

An operation is an ``async`` method marked ``@atomic``. It runs from its first line to its return without
giving way; the one thing it may await is its own guard (``await blocked(self)`` in a ``while``), and
before the guard holds it changes nothing. So the state of the objects before it determines the state
after it and the result, and the same method serves every driver:

* the server awaits it directly: when nothing blocks, an operation costs a method call, no loop turn;
* the explorer runs it on a scratch copy (``load``, run, ``state``) and remembers the transition;
* the replay loop decides which thread performs its next operation.

What a driver sees of a coroutine are *effects*: ``Blocked``, ``Choice``, ``Preempt`` and ``Outside``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator
from dataclasses import dataclass
from types import coroutine
from typing import Any, ClassVar, TypeVar

F = TypeVar("F", bound=Callable[..., Coroutine[Any, Any, Any]])
T = TypeVar("T")


def atomic(method: F) -> F:
    """Mark ``method`` as one indivisible step on ``self`` and on every ``Shared`` among its arguments."""
    method.atomic = True  # type: ignore[attr-defined]  # a mark on a function object
    return method


@dataclass(frozen=True, slots=True)
class Plain:
    """How an operation uses memory if it is no locked instruction: see ``plain``."""

    stores: tuple[str, ...] = ()
    barrier: str | None = None


def plain(*stores: str, barrier: str | None = None) -> Callable[[F], F]:
    """Declare that an operation is plain loads, and plain stores to the fields named: x86 buffers these.

    ``barrier`` is the full barrier that the kernel has there. An operation that is not declared is a locked instruction
    or has a full barrier; so is a declared one where it changes anything but the fields named. Only an explorer that
    models store buffers looks at this.
    """

    def mark(method: F) -> F:
        method.plain = Plain(stores, barrier)  # type: ignore[attr-defined]  # a mark on a function object
        return method

    return mark


class Shared:
    """An object that several threads use, and only through its atomic operations.

    ``FIELDS`` names what its state consists of; a class whose fields are not hashable values overrides
    ``state`` and ``load``.
    """

    __slots__ = ("waiters",)
    FIELDS: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        # Drivers park blocked threads here, first come first served: key -> wake-up, out when it goes on.
        self.waiters: dict[object, Callable[[], None]] = {}

    def state(self) -> tuple[Any, ...]:
        """Return the whole state as a hashable value."""
        return tuple(getattr(self, field) for field in self.FIELDS)

    def load(self, state: tuple[Any, ...]) -> None:
        """Put a value of ``state`` back."""
        for field, value in zip(self.FIELDS, state, strict=True):
            setattr(self, field, value)

    def changed(self) -> None:
        """Wake every thread whose guard reads this object; it looks again."""
        if self.waiters:
            for wake in tuple(self.waiters.values()):
                wake()

    def stored(self) -> None:
        """A plain store has reached memory, where that was not at once."""
        self.changed()

    def changed_for(self, key: object) -> None:
        """Wake the one thread that waits under ``key``, where an operation knows whom it lets go on."""
        if wake := self.waiters.pop(key, None):
            wake()


@dataclass(slots=True, eq=False)  # not frozen: made at every wait, and a frozen one costs twice as much
class Blocked:
    """The guard of an operation does not hold: perform it again after one of ``objects`` has changed."""

    objects: tuple[Shared, ...]
    key: object = None

    def __await__(self) -> Generator[Blocked, None, None]:
        # An iterator without a frame: a kick finds a thousand vCPUs waiting here, and each costs its memory.
        return iter((self,))  # type: ignore[return-value]  # it is sent nothing but None


@dataclass(frozen=True, slots=True)
class Choice:
    """One of ``alternatives`` outcomes, 0 to n-1: the explorer takes each, the server draws."""

    alternatives: int


@dataclass(frozen=True, slots=True)
class Preempt:
    """A point where the kernel would let others run (return to user mode, ``cond_resched``, a timer tick)."""


@dataclass(slots=True, eq=False)
class Outside:
    """Wait for something that is not part of the emulated kernel, such as a guest engine's own thread."""

    awaitable: Awaitable[object]


Effect = Blocked | Choice | Preempt | Outside

PREEMPT = Preempt()


def blocked(*objects: Shared, key: object = None) -> Blocked:
    """Awaited: wait until one of ``objects`` changed; the caller tests its guard again."""
    return Blocked(objects, key)


@coroutine
def choose(alternatives: int) -> Generator[Choice, int, int]:
    """Return one of ``range(alternatives)``."""
    return (yield Choice(alternatives))


@coroutine
def preempt() -> Generator[Preempt, None, None]:
    """Let other threads run."""
    yield PREEMPT


@coroutine
def outside(awaitable: Awaitable[T]) -> Generator[Outside, T, T]:
    """Wait for ``awaitable``, which only a driver with a real event loop can do."""
    return (yield Outside(awaitable))


class Killed(BaseException):
    """Thrown into a core coroutine whose thread is torn down (its VM is destroyed, the server stops).

    Not an ``Exception``: nothing in the core may swallow it, and every lock is given back on its way out.
    """


class Mutex(Shared):
    """``struct mutex``: first come, first served."""

    __slots__ = ("owner", "queue")
    FIELDS = ("owner", "queue")

    def __init__(self) -> None:
        super().__init__()
        self.owner: str | None = None
        self.queue: tuple[str, ...] = ()

    async def lock(self, tid: str) -> None:
        """``mutex_lock``. A thread that is killed while it waits leaves the queue."""
        if not await self.lock_or_queue(tid):
            await self.wait(tid)

    async def wait(self, tid: str) -> None:
        """The rest of ``lock`` for a thread that stands in the queue."""
        try:
            await self.wait_turn(tid)
        except Killed:
            await self.leave(tid)
            raise

    @atomic
    async def lock_or_queue(self, tid: str) -> bool:
        """Take a free mutex, else stand in the queue; says which."""
        if self.owner is None:
            self.owner = tid
            return True
        self.queue += (tid,)
        return False

    @atomic
    async def wait_turn(self, tid: str) -> None:
        """Wait until ``unlock`` handed the mutex to ``tid``; who takes it twice waits for itself."""
        while tid in self.queue:
            await blocked(self, key=tid)

    @atomic
    async def leave(self, tid: str) -> None:
        """Stop waiting, or give back what was handed over meanwhile."""
        if self.owner == tid:
            self.owner = None
            if self.queue:
                self._hand_over()
        else:
            self.queue = tuple(waiter for waiter in self.queue if waiter != tid)

    @atomic
    async def unlock(self) -> None:
        """``mutex_unlock``: hand the mutex to the longest waiter."""
        self.owner = None
        if self.queue:
            self._hand_over()

    def _hand_over(self) -> None:
        self.owner, *rest = self.queue
        self.queue = tuple(rest)
        self.changed_for(self.owner)


class Task(Shared):
    """What ``struct task_struct`` knows of a vCPU's or VMM's host thread that matters here.

    ``tid`` is unique; ``process`` is what threads that act for one owner have in common.
    """

    __slots__ = ("tid", "process", "sleeping", "signal")
    FIELDS = ("sleeping", "signal")

    def __init__(self, tid: str, process: str | None = None) -> None:
        super().__init__()
        self.tid = tid
        self.process = process or tid
        self.sleeping = False
        self.signal = False

    @atomic
    @plain("sleeping", barrier="set_current_state")
    async def set_interruptible(self) -> None:
        """``set_current_state(TASK_INTERRUPTIBLE)``: from now on a wake-up is not lost."""
        self.sleeping = True

    @atomic
    @plain("sleeping")
    async def set_running(self) -> None:
        """``__set_current_state(TASK_RUNNING)``."""
        self.sleeping = False

    @atomic
    async def schedule(self) -> None:
        """Sleep until somebody wakes this task."""
        while self.sleeping:
            await blocked(self)

    @atomic
    async def wake_up(self) -> bool:
        """``wake_up_process``: true only if the task was asleep."""
        woke, self.sleeping = self.sleeping, False
        if woke:
            self.changed()
        return woke

    @atomic
    async def send_signal(self) -> None:
        """Make a signal pending and wake the task if it sleeps or waits interruptibly."""
        self.signal = True
        self.sleeping = False
        self.changed()

    @atomic
    @plain()
    async def signal_pending(self) -> bool:
        """``signal_pending(current)``."""
        return self.signal

    @atomic
    async def take_signal(self) -> bool:
        """Userspace ran the handler: the signal is no longer pending."""
        taken, self.signal = self.signal, False
        return taken
