"""Shared objects as the explorer sees them: proxies for the core's coroutines, tables for the search.

A proxy turns ``await object.method(...)`` into a *trap* that names the operation instead of performing it.
``Objects.apply`` performs a trap on interned states: load, run to the end, read back, remember.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator
from inspect import iscoroutinefunction
from types import MethodType
from typing import Any, NamedTuple

from app.core.atomics import Blocked, Shared


class Ref(NamedTuple):
    """A shared object as an argument of a trap."""

    object: int


class Trap(NamedTuple):
    """One atomic operation that a thread is about to perform; ``object`` is the index of its ``self``."""

    object: int
    method: str
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()

    @property
    def involved(self) -> tuple[int, ...]:
        """The objects it works on, its own first, each once."""
        refs = (arg.object for arg in self.args if type(arg) is Ref)
        return tuple(dict.fromkeys((self.object, *refs)))


class Outcome(NamedTuple):
    """What an operation returned, and the new states of ``Trap.involved``."""

    result: Any
    states: tuple[int, ...]


class Operation:
    """The awaitable that yields a trap to the driver and returns what the driver answers."""

    __slots__ = ("trap",)
    disposing = False  # while a coroutine is thrown away, the operations of its clean-up do nothing

    def __init__(self, trap: Trap) -> None:
        self.trap = trap

    def __await__(self) -> Generator[Trap, Any, Any]:
        if Operation.disposing:
            return None
        return (yield self.trap)


def dispose(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Throw a suspended core coroutine away; nothing it does on its way out has an effect."""
    Operation.disposing = True
    try:
        coroutine.close()
    finally:
        Operation.disposing = False


class Proxy:
    """Stands in for a shared object inside coroutines that the explorer runs."""

    __slots__ = ("_real", "index")
    _real: Shared
    index: int

    def __init__(self, real: Shared, index: int) -> None:
        object.__setattr__(self, "_real", real)
        object.__setattr__(self, "index", index)

    def __getattr__(self, name: str) -> Any:
        real: Shared = self._real
        method = getattr(type(real), name, None)
        if getattr(method, "atomic", False):
            return _Method(self.index, name)
        if iscoroutinefunction(method):
            return MethodType(method, self)
        return getattr(real, name)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self._real).__name__}.{name} is set outside an atomic operation")


class _Method:
    """A bound atomic method of a proxy."""

    __slots__ = ("index", "name")

    def __init__(self, index: int, name: str) -> None:
        self.index = index
        self.name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Awaitable[Any]:
        plain = tuple(Ref(arg.index) if type(arg) is Proxy else arg for arg in args)
        named = tuple(sorted(kwargs.items())) if kwargs else ()
        return Operation(Trap(self.index, self.name, plain, named))


class Objects:
    """All shared objects of one world: scratch copies, their known states by number, remembered transitions."""

    def __init__(self) -> None:
        self.real: list[Shared] = []
        self.names: list[str] = []
        self.states: list[list[tuple[Any, ...]]] = []
        self.ids: list[dict[tuple[Any, ...], int]] = []
        self._memo: dict[tuple[Trap, tuple[int, ...]], Outcome | None] = {}

    def share(self, real: Any) -> Any:
        """What ``Vm(share=...)`` is given: register ``real`` and return its proxy."""
        index = len(self.real)
        self.real.append(real)
        self.names.append(type(real).__name__)
        self.states.append([])
        self.ids.append({})
        return Proxy(real, index)

    def name(self, proxy: Proxy, name: str) -> None:
        """Give an object the name that counterexamples show."""
        self.names[proxy.index] = name

    def freeze(self) -> tuple[int, ...]:
        """Number the states all objects have now: the initial state."""
        return tuple(self.intern(index, real.state()) for index, real in enumerate(self.real))

    def intern(self, index: int, state: tuple[Any, ...]) -> int:
        """Return the number of ``state`` among the known states of object ``index``."""
        ids = self.ids[index]
        number = ids.get(state)
        if number is None:
            number = ids[state] = len(ids)
            self.states[index].append(state)
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
        self._memo[key] = outcome
        return outcome

    def _perform(self, trap: Trap, states: tuple[int, ...]) -> Outcome | None:
        involved = trap.involved
        for index, state in zip(involved, states, strict=True):
            self.real[index].load(self.states[index][state])
        real = self.real[trap.object]
        args = [self.real[arg.object] if type(arg) is Ref else arg for arg in trap.args]
        operation = getattr(real, trap.method)(*args, **dict(trap.kwargs))
        try:
            effect = operation.send(None)
        except StopIteration as stop:
            return Outcome(stop.value, tuple(self.intern(index, self.real[index].state()) for index in involved))
        operation.close()
        if type(effect) is not Blocked:
            raise TypeError(f"{self.names[trap.object]}.{trap.method} is atomic and yielded {effect!r}")
        return None


ShareFunction = Callable[[Any], Any]
