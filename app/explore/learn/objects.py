"""Shared objects as the explorer sees them: proxies for the core's coroutines, tables for the search.

A proxy turns ``await object.method(...)`` into a *trap* that names the operation instead of performing it.
``Objects.apply`` performs a trap on interned states: load, run to the end, read back, remember.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable
from functools import partial
from inspect import iscoroutinefunction
from traceback import extract_tb
from types import MethodType
from typing import Any, ClassVar, NamedTuple

from kickstand.core.atomics import Blocked, Killed, Shared
from kickstand.explore.learn.plain import PlainStateError

Perform = Callable[[Callable[..., Any], tuple[Any, ...], list[Shared]], Coroutine[Any, Any, Any]]


class Ref(NamedTuple):
    """A shared object as an argument of a trap."""

    object: int


class Way(NamedTuple):
    """How an operation is performed if not plainly: by ``perform``, which is given further ``objects`` as well."""

    perform: Perform
    objects: tuple[int, ...]


class Trap(NamedTuple):
    """One atomic operation that a thread is about to perform; ``object`` is the index of its ``self``.

    ``method`` is the function itself: whoever watches for an operation names it by reference, so that one that is
    renamed is an error of the type checker and never a property that sees nothing.
    """

    object: int
    method: Callable[..., Coroutine[Any, Any, Any]]
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()
    way: Way | None = None

    @property
    def name(self) -> str:
        """The operation's name."""
        return self.method.__name__

    @property
    def involved(self) -> tuple[int, ...]:
        """The objects it works on, its own first, each once."""
        refs = (arg.object for arg in self.args if type(arg) is Ref)
        return tuple(dict.fromkeys((self.object, *refs, *(self.way.objects if self.way else ()))))


class Outcome(NamedTuple):
    """What an operation returned, and the new states of ``Trap.involved``."""

    result: Any
    states: tuple[int, ...]


class Raised:
    """What an operation returns that raises: the exception, equal to another that came about in the same way."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self._key = type(error), str(error), _line_of(error)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Raised) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __str__(self) -> str:
        return f"raises {type(self.error).__name__}"


def _line_of(error: BaseException) -> tuple[str, int] | None:
    frames = extract_tb(error.__traceback__)
    return (frames[-1].filename, frames[-1].lineno or 0) if frames else None


class Waits(NamedTuple):
    """What a blocked thread is parked on: objects, and the key under which it waits (None: one of its own)."""

    objects: tuple[int, ...]
    key: object


class Trapping:
    """The awaitable that yields a trap to the driver and returns what the driver answers."""

    __slots__ = ("trap",)
    disposing = False  # while a coroutine is thrown away, the operations of its clean-up do nothing

    def __init__(self, trap: Trap) -> None:
        self.trap = trap

    def __await__(self) -> Generator[Trap, Any, Any]:
        if Trapping.disposing:
            return None
        return (yield self.trap)


def dispose(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Throw a suspended core coroutine away; nothing it does on its way out has an effect."""
    Trapping.disposing = True
    try:
        coroutine.close()
    finally:
        Trapping.disposing = False


class Proxy:
    """Stands in for a shared object inside coroutines that the explorer runs."""

    __slots__ = ("_real", "index", "strict")
    readable: ClassVar[bool] = False  # statements may look at the state of a strict one, and nobody else
    _real: Shared
    index: int
    strict: bool

    def __init__(self, real: Shared, index: int, *, strict: bool = False) -> None:
        object.__setattr__(self, "_real", real)
        object.__setattr__(self, "index", index)
        object.__setattr__(self, "strict", strict)

    def __getattr__(self, name: str) -> Any:
        real: Shared = self._real
        method: Any = getattr(type(real), name, None)
        if getattr(method, "atomic", False):
            return _Method(self.index, method)
        if iscoroutinefunction(method):
            return MethodType(method, self)
        if self.strict and not Proxy.readable and (name in real.FIELDS or method is not None):
            raise PlainStateError(
                f"{type(real).__name__}.{name} is read outside an operation of its own: make it an @atomic method, or "
                "give the object to the operation as an argument"
            )
        return getattr(real, name)

    def __setattr__(self, name: str, value: object) -> None:
        raise PlainStateError(f"{type(self._real).__name__}.{name} is set outside an atomic operation")


class _Method:
    """A bound atomic method of a proxy."""

    __slots__ = ("index", "method")

    def __init__(self, index: int, method: Callable[..., Coroutine[Any, Any, Any]]) -> None:
        self.index = index
        self.method = method

    def __call__(self, *args: Any, **kwargs: Any) -> Awaitable[Any]:
        plain = tuple(Ref(arg.index) if type(arg) is Proxy else arg for arg in args)
        named = tuple(sorted(kwargs.items())) if kwargs else ()
        return Trapping(Trap(self.index, self.method, plain, named))


def below_zero(state: tuple[Any, ...]) -> bool:
    """Some count in an object's state is negative."""
    return any((type(part) is int and part < 0) or (type(part) is tuple and below_zero(part)) for part in state)


class Objects:
    """All shared objects of one world: scratch copies, their known states by number, remembered transitions."""

    def __init__(self, *, strict: bool = False) -> None:
        self.strict = strict
        self.frozen = False
        self.real: list[Shared] = []
        self.names: list[str] = []
        self.states: list[list[tuple[Any, ...]]] = []
        self.ids: list[dict[tuple[Any, ...], int]] = []
        self.negative: list[set[int]] = []  # states in which some count is below zero
        self._memo: dict[tuple[Trap, tuple[int, ...]], Outcome | None] = {}

    def share(self, real: Any) -> Any:
        """What ``Vm(share=...)`` is given: register ``real`` and return its proxy."""
        if self.frozen:
            raise PlainStateError(
                f"vm.share({type(real).__name__}()) while threads run: share in __init__, or for each vCPU in init_vcpu"
            )
        index = len(self.real)
        self.real.append(real)
        self.names.append(type(real).__name__)
        self.states.append([])
        self.ids.append({})
        self.negative.append(set())
        return Proxy(real, index, strict=self.strict)

    def name(self, proxy: Proxy, name: str) -> None:
        """Give an object the name that counterexamples show."""
        self.names[proxy.index] = name

    def freeze(self) -> tuple[int, ...]:
        """Number the states all objects have now: the initial state. From now on there are no more objects."""
        self.frozen = True
        return tuple(self.intern(index, real.state()) for index, real in enumerate(self.real))

    def intern(self, index: int, state: tuple[Any, ...]) -> int:
        """Return the number of ``state`` among the known states of object ``index``."""
        ids = self.ids[index]
        number = ids.get(state)
        if number is None:
            number = ids[state] = len(ids)
            self.states[index].append(state)
            if below_zero(state):
                self.negative[index].add(number)
        return number

    def apply(self, trap: Trap, states: tuple[int, ...]) -> Outcome | None:
        """Perform ``trap`` where ``trap.involved`` are in ``states``; None if it is not enabled."""
        key = (trap, states)
        try:
            return self._memo[key]
        except KeyError:
            outcome = self._memo[key] = self._perform(trap, states)
            return outcome

    def apply_anywhere(self, trap: Trap, states: tuple[int, ...]) -> Outcome | None:
        """As ``apply``, for combinations of states that may be impossible: an error counts as not enabled."""
        key = (trap, states)
        if key in self._memo:
            return self._memo[key]
        try:
            outcome = self._perform(trap, states)
        except Exception:  # noqa: BLE001  # what an operation does in a state it is never in says nothing
            return None
        if outcome is not None and type(outcome.result) is Raised and type(outcome.result.error) is not Killed:
            return None
        self._memo[key] = outcome
        return outcome

    def transitions(self) -> Iterable[tuple[tuple[Trap, tuple[int, ...]], Outcome | None]]:
        """Everything that has been performed: operation and states before, and what came of it."""
        return self._memo.items()

    def waits(self, trap: Trap, states: tuple[int, ...]) -> Waits | None:
        """What a thread that performs ``trap`` there is parked on; None if it is not blocked."""
        operation = self._begin(trap, states)
        try:
            effect = operation.send(None)
        except (Exception, Killed):  # noqa: BLE001  # it is not blocked, whatever else
            return None
        operation.close()
        numbers = {id(real): index for index, real in enumerate(self.real)}
        return Waits(tuple(numbers[id(real)] for real in effect.objects), effect.key)

    def wakes(self, trap: Trap, states: tuple[int, ...], waits: Waits) -> bool:
        """Performing ``trap`` there wakes a thread that is parked so."""
        operation = self._begin(trap, states)
        woken: list[int] = []
        for index in waits.objects:
            key = id(woken) if waits.key is None else waits.key
            self.real[index].waiters = {key: partial(woken.append, index)}
        try:
            operation.send(None)
        except (StopIteration, Killed):
            pass
        finally:
            operation.close()
            for index in waits.objects:
                self.real[index].waiters = {}
        return bool(woken)

    def _begin(self, trap: Trap, states: tuple[int, ...]) -> Coroutine[Any, Any, Any]:
        """The operation on scratch copies in ``states``, not yet run."""
        for index, state in zip(trap.involved, states, strict=True):
            self.real[index].load(self.states[index][state])
        args = [self.real[arg.object] if type(arg) is Ref else arg for arg in trap.args]
        operate = partial(trap.method, **dict(trap.kwargs))
        if trap.way is None:
            return operate(self.real[trap.object], *args)
        return trap.way.perform(operate, (self.real[trap.object], *args), [self.real[at] for at in trap.way.objects])

    def runs_away(self, trap: Trap, outcome: Outcome) -> bool:
        """A count fell below zero: nothing is learnt from where that leads, and it may have no end."""
        return any(state in self.negative[index] for index, state in zip(trap.involved, outcome.states, strict=True))

    def _perform(self, trap: Trap, states: tuple[int, ...]) -> Outcome | None:
        involved = trap.involved
        operation = self._begin(trap, states)
        try:
            effect = operation.send(None)
        except (PlainStateError, RuntimeError):
            raise
        except StopIteration as stop:
            return Outcome(stop.value, tuple(self.intern(index, self.real[index].state()) for index in involved))
        except Killed as error:
            return Outcome(Raised(error), tuple(self.intern(index, self.real[index].state()) for index in involved))
        except Exception as error:  # noqa: BLE001  # the thread gets it, as it does on the server
            return Outcome(Raised(error), states)
        operation.close()
        name = f"{self.names[trap.object]}.{trap.name}"
        if type(effect) is not Blocked:
            raise PlainStateError(f"{name} is @atomic and awaits something: it may await blocked(...) and nothing else")
        for index, state in zip(involved, states, strict=True):
            if self.real[index].state() != self.states[index][state]:
                raise PlainStateError(
                    f"{name} waits after it has changed {self.names[index]}: an operation waits before it changes "
                    "anything; make it two"
                )
        return None
