"""A protocol of one's own: a Python file with threads over ``Shared`` objects, and statements about them.

``load`` runs the file afresh for each world, so that every world has objects of its own. What the file's globals name
is what there is: each ``Shared`` among them, or in a list, tuple or dict of theirs, is shared; nothing else may change.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, TypeVar

from kickstand.core import atomics
from kickstand.core.atomics import Shared, atomic
from kickstand.core.variants import Variant
from kickstand.explore.world.parts import Role, Statement, Thread, World
from kickstand.explore.world.scenarios import Scenario, ScenarioError

F = TypeVar("F", bound=Callable[..., Any])
Share = Callable[[Any], Any]
NEVER, EVENTUALLY = "never.", "eventually."
CURE = "other threads see it, the explorer cannot; put it into a Shared object, whose @atomic methods are the steps"
PLAIN = (int, str, bytes, bool, float, type(None), list, dict, set, frozenset, tuple)


class Mutex(atomics.Mutex):
    """``await lock.lock("me")``, ``await lock.unlock()``: first come, first served. Threads are told apart by name."""

    __slots__ = ()

    @atomic
    async def lock_or_queue(self, tid: str) -> bool:
        """Take it, or stand in the queue. An assertion: nobody of this name has done so already."""
        assert tid not in (self.owner, *self.queue), (
            f"{tid!r} has this Mutex already, or waits for it: "
            "a thread that locks it twice waits for itself, and each thread wants a name of its own"
        )
        return await super().lock_or_queue(tid)


@dataclass(slots=True)
class Declared:
    """What a file declares while it runs."""

    threads: list[tuple[str, Callable[..., Coroutine[Any, Any, Any]], tuple[Any, ...]]] = field(default_factory=list)
    never: dict[str, Statement] = field(default_factory=dict)
    eventually: dict[str, Statement] = field(default_factory=dict)
    rest: list[Any] = field(default_factory=list)


_declared = Declared()  # of the file that is being run; of nobody where a file is imported


def thread(function: F, *args: Any, name: str | None = None) -> F:
    """A thread: ``@thread`` above an ``async def``, or ``thread(function, *args, name=...)`` for several alike."""
    _declared.threads.append((name or function.__name__, function, args))
    return function


def never(statement: F) -> F:
    """A statement about the objects that is true in no state that can be reached."""
    _declared.never[statement.__name__] = statement
    return statement


def eventually(statement: F) -> F:
    """A statement that becomes true in every run in which each thread is treated fairly."""
    _declared.eventually[statement.__name__] = statement
    return statement


def rest(what: F) -> F:
    """Above a thread: it may wait for ever. Above a statement: where it is true, everybody may."""
    _declared.rest.append(what)
    return what


class Own(Variant):
    """No variant: the protocol is the file's."""

    name = "own"


@dataclass(frozen=True, slots=True)
class Protocol:
    """A file as a cell: it has no scenario, variant, behaviour or size but itself."""

    name: str
    text: str
    path: str = "model.py"
    behaviour: str = "-"
    vcpus: int = 0
    vmms: int = 0
    memory: str = "sc"
    variant: type[Variant] = Own

    @property
    def scenario(self) -> Scenario:
        """Where a scenario's name is shown."""
        return Scenario(self.name, (), (), (inspect.cleandoc(self._docstring()).splitlines() or [""])[0])

    def _docstring(self) -> str:
        constants = self.code().co_consts
        return constants[0] if constants and isinstance(constants[0], str) else ""

    def code(self) -> CodeType:
        """The file, compiled. Raises ``ScenarioError``."""
        try:
            return compile(self.text, self.path, "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as error:
            raise ScenarioError(f"{self.path}: {error}") from None


def read(path: str) -> Protocol:
    """Read a file. Raises ``ScenarioError``."""
    file = Path(path)
    if not file.stem.replace("_", "").replace("-", "").isalnum():
        raise ScenarioError(f"{path}: the file's name may have letters, digits, - and _ only")
    try:
        return Protocol(file.stem, file.read_text(encoding="utf-8"), path)
    except OSError as error:
        raise ScenarioError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ScenarioError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from None


def load(protocol: Protocol, share: Share = lambda shared: shared) -> World:
    """Run the file and make its world. Raises ``ScenarioError`` that says what is wrong with it."""
    global _declared  # noqa: PLW0603  # decorators know no file
    outer, _declared = _declared, Declared()
    names: dict[str, Any] = {"__name__": "kickstand_model", "__file__": protocol.path}
    try:
        exec(protocol.code(), names)  # noqa: S102  # the user's own file, on the user's command
        declared = _declared
    except ScenarioError:
        raise
    except (Exception, SystemExit) as error:
        raise ScenarioError(f"{protocol.path}: {type(error).__name__}: {error}{_line(error, protocol.path)}") from error
    finally:
        _declared = outer
    return _Maker(protocol, names, declared, share).world()


def statements(protocol: Protocol) -> tuple[str, ...]:
    """The names of the file's own properties."""
    world = load(protocol)
    return (*world.never, *world.eventually)


def _line(error: BaseException, path: str) -> str:
    place, at = error.__traceback__, ""
    while place is not None:
        if place.tb_frame.f_code.co_filename == path:
            at = f" (line {place.tb_lineno})"
        place = place.tb_next
    return at


class _Maker:
    """Makes one world of a file that has run."""

    def __init__(self, protocol: Protocol, names: dict[str, Any], declared: Declared, share: Share) -> None:
        self.protocol = protocol
        self.names = names
        self.declared = declared
        self.share = share
        self.proxies: dict[int, Any] = {}
        self.found: list[tuple[Any, str]] = []
        self.reals: list[tuple[Shared, str]] = []

    def world(self) -> World:
        """Threads, objects, statements."""
        self._check()
        for name, value in list(self.names.items()):
            if not name.startswith("__"):
                self.names[name] = self._shared(value, name)
        resting = {id(what) for what in self.declared.rest}
        threads = []
        for name, function, args in self.declared.threads:
            own = tuple(self._shared(arg, f"{name}.{type(arg).__name__.lower()}") for arg in args)
            make = partial(function, *own)
            threads.append(Thread(name, "", Role.OWN, make, rests=id(function) in resting))
        world = World(self.protocol.scenario, {}, threads, self.found, kept={"": (frozenset(), frozenset())})
        world.never = {NEVER + name: statement for name, statement in self.declared.never.items()}
        world.eventually = {EVENTUALLY + name: statement for name, statement in self.declared.eventually.items()}
        world.rest = tuple(what for what in self.declared.rest if not inspect.iscoroutinefunction(what))
        before = {name: repr(value) for name, value in self._plain().items()}

        def check() -> None:
            for changed, value in self._plain().items():
                if before.get(changed) == repr(value):
                    continue
                raise ScenarioError(f"{self.protocol.path}: {changed} changes while threads run: {CURE}")

        world.check = check
        return world

    # -- objects -----------------------------------------------------------------------------------------

    def _shared(self, value: Any, name: str) -> Any:
        """``value`` with each shared object in it replaced by what the driver made of it."""
        if isinstance(value, Shared):
            return self._one(value, name)
        if type(value) in (list, tuple):
            return type(value)(self._shared(item, f"{name}[{at}]") for at, item in enumerate(value))
        if type(value) is dict:
            return {key: self._shared(item, f"{name}[{key!r}]") for key, item in value.items()}
        return value

    def _one(self, value: Shared, name: str) -> Any:
        if id(value) not in self.proxies:
            _fields(value, name, self.protocol.path)
            proxy = self.share(value)
            self.proxies[id(value)] = proxy
            self.found.append((proxy, name))
            self.reals.append((value, name))
        return self.proxies[id(value)]

    # -- checks ------------------------------------------------------------------------------------------

    def _check(self) -> None:
        for what in (*self._wrong_threads(), *self._wrong_statements(), *self._wrong_globals()):
            raise ScenarioError(f"{self.protocol.path}: {what}")

    def _wrong_threads(self) -> Iterator[str]:
        names = [name for name, _, _ in self.declared.threads]
        if not names:
            yield "there is no thread: put @thread above an async def"
        for name, function, _ in self.declared.threads:
            if not inspect.iscoroutinefunction(function):
                yield f"thread {name}: write async def {function.__name__}"
            if names.count(name) > 1:
                yield f"two threads are called {name}: give each a name"

    def _wrong_statements(self) -> Iterator[str]:
        for name, statement in (*self.declared.never.items(), *self.declared.eventually.items()):
            if inspect.iscoroutinefunction(statement):
                yield f"{name} is a statement: write def, not async def"
            if inspect.signature(statement).parameters:
                yield f"{name} takes no arguments: it looks at the file's objects by name"

    def _wrong_globals(self) -> Iterator[str]:
        for function in _functions(self.names):
            for instruction in dis.get_instructions(function):
                if instruction.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
                    yield f"{function.__name__} sets the global {instruction.argval}: {CURE}"

    def _plain(self) -> dict[str, Any]:
        """What must not change: globals, and attributes of objects that are no part of their state."""
        plain = {name: value for name, value in self.names.items() if name[:2] != "__" and type(value) in PLAIN}
        for real, name in self.reals:
            kept = {*type(real).FIELDS, "waiters"}
            plain |= {f"{name}.{at}": value for at, value in getattr(real, "__dict__", {}).items() if at not in kept}
        return plain


def _functions(names: dict[str, Any]) -> Iterator[FunctionType]:
    for value in names.values():
        if isinstance(value, FunctionType) and value.__globals__ is names:
            yield value
        elif isinstance(value, type):
            for method in vars(value).values():
                if isinstance(method, FunctionType) and method.__globals__ is names:
                    yield method


def _fields(value: Shared, name: str, path: str) -> None:
    """What an object's state consists of: its ``FIELDS``, else all that ``__init__`` has set, which must be values."""
    kind = type(value)
    if not hasattr(value, "waiters"):
        raise ScenarioError(f"{path}: {name}: {kind.__name__}.__init__ does not call super().__init__()")
    if not kind.FIELDS and kind.state is Shared.state:
        kind.FIELDS = tuple(sorted({*_of_class(kind), *getattr(value, "__dict__", ())} - {"waiters"}))
    try:
        hash(value.state())
    except TypeError:
        wrong = next((at for at in kind.FIELDS if not _hashable(getattr(value, at))), "state")
        raise ScenarioError(f"{path}: {name}.{wrong} is no value: use a tuple or a frozenset") from None
    for at in kind.FIELDS:
        if isinstance(getattr(value, at), Shared):
            raise ScenarioError(f"{path}: {name}.{at} is a Shared in another: give it a name of its own")


def _of_class(kind: type) -> Iterator[str]:
    """What a class gives all its objects to begin with."""
    for base in kind.__mro__[: kind.__mro__.index(Shared)]:
        for name, value in vars(base).items():
            if not name.startswith("__") and name != "FIELDS" and type(value) in PLAIN:
                yield name


def _hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
