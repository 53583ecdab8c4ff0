"""The local automaton of a thread, learnt from its running coroutine.

A coroutine's local state is its await chain: for each frame the code, the instruction, the locals and what
lies on the value stack (iterators, a return value on its way through ``finally``). Two moments with the same
local state go on alike, so each edge (local state, answer) is run once and afterwards read from a table.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from types import CellType, CodeType, CoroutineType, FrameType, FunctionType, GeneratorType, MethodType
from typing import Any

from kickstand.core.atomics import Choice, Killed, Preempt
from kickstand.core.run.run_page import RunResult
from kickstand.explore.learn.live_locals import live_locals
from kickstand.explore.learn.objects import Proxy, Raised, Ref, Trap, dispose
from kickstand.explore.learn.plain import CURE, PlainStateError
from kickstand.explore.learn.where import Where, where

PLAIN = (int, str, bytes, bool, type(None), float)
HEADER = (FrameType, CodeType, FunctionType)
ITERATORS: tuple[type, ...] = (type(iter(())), type(iter([])), type(iter(range(0))), type(reversed([])), enumerate, zip)


MAX_NODES = 100_000


class UnknownEffectError(Exception):
    """A coroutine asked its driver for something that a closed world does not have."""


def _end_of_locals(refers: list[Any], local: tuple[Any, ...]) -> int:
    """Where the value stack begins: a coroutine refers to its names, then its frame's locals, then the stack."""
    for offset in range(5):
        window = refers[offset : offset + len(local)]
        if len(window) == len(local) and all(
            here is value or type(here) is CellType for here, value in zip(window, local, strict=True)
        ):
            return offset + len(local)
    return 0  # unknown layout: take everything, which is correct and only larger


class Canon:
    """Turns values into hashable ones that are equal when the values behave alike."""

    def __init__(self) -> None:
        self.kept: dict[int, object] = {}  # constants are told apart by identity, so they must stay alive

    def of(self, value: Any) -> Any:  # noqa: C901  one line a kind of value
        """Return the canonical form of ``value``."""
        kind = type(value)
        if kind in PLAIN or isinstance(value, Enum):
            return value
        if kind is Proxy:
            return Ref(value.index)
        if kind is RunResult:
            return "RunResult", value.ret, value.errno, self.of(value.exit)  # the rest is for watchers
        if isinstance(value, tuple):
            return kind, *(self.of(item) for item in value)
        if isinstance(value, list | deque):
            return kind, *(self.of(item) for item in value)
        if isinstance(value, set | frozenset):
            return kind, frozenset(self.of(item) for item in value)
        if kind is dict:
            return kind, *((self.of(key), self.of(item)) for key, item in value.items())
        if kind is partial:
            return kind, self.of(value.func), self.of(value.args), self.of(value.keywords)
        if kind is MethodType:
            return kind, value.__func__, self.of(value.__self__)
        if kind in ITERATORS:
            return kind, *(self.of(item) for item in value.__reduce__()[1:])
        if kind is GeneratorType:
            return self.frame(value, value.gi_frame, None)
        if getattr(kind, "__dataclass_params__", None) is not None and kind.__dataclass_params__.frozen:
            return value
        self.kept[id(value)] = value
        return "constant", id(value)

    def frame(self, owner: Any, frame: FrameType | None, awaited: object) -> Any:
        """Return the canonical form of a suspended coroutine or generator."""
        if frame is None:
            return "finished"
        local = frame.f_locals
        live = live_locals(frame.f_code).get(frame.f_lasti)
        names = tuple(name for name in local if live is None or name in live)
        refers = [value for value in gc.get_referents(owner) if type(value) not in HEADER and value is not local]
        stack = tuple(
            self.of(value) for value in refers[_end_of_locals(refers, tuple(local.values())) :] if value is not awaited
        )
        return frame.f_code, frame.f_lasti, names, tuple(self.of(local[name]) for name in names), stack

    def chain(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Return the local state of a suspended coroutine."""
        parts = []
        link: Any = coroutine
        while type(link) is CoroutineType:
            awaited = link.cr_await
            parts.append(self.frame(link, link.cr_frame, awaited))
            link = awaited
        return tuple(parts)


@dataclass(slots=True)
class Node:
    """One local state: what the thread asks for next (None: it has ended), and where each answer leads."""

    effect: Trap | Choice | None
    label: Any
    path: tuple[Any, ...]
    edges: dict[Any, int] = field(default_factory=dict)
    parked: Coroutine[Any, Any, Any] | None = None
    where: Where | None = None
    error: BaseException | None = None


def plainly(trap: Trap) -> Trap:
    """An operation is performed as it is."""
    return trap


def _name(effect: Any) -> str:
    return effect.name if type(effect) is Trap else repr(effect)


class Automaton:
    """The automaton of the coroutine that ``make`` returns; ``label`` sees the await chain of each new node.

    ``translate`` says how this thread performs an operation.
    """

    def __init__(
        self,
        make: Callable[[], Coroutine[Any, Any, Any]],
        canon: Canon,
        label: Callable[[Coroutine[Any, Any, Any] | None], Any],
        translate: Callable[[Trap], Trap] = plainly,
    ) -> None:
        self.make = make
        self.translate = translate
        self.canon = canon
        self.label = label
        self.nodes: list[Node] = []
        self._ids: dict[Any, int] = {}
        start = make()
        self.root = self._node(start, *self._send(start, None), ())

    def step(self, node: int, answer: Any) -> int:
        """Return the node after ``answer`` to what ``node`` asks for."""
        here = self.nodes[node]
        target = here.edges.get(answer)
        if target is None:
            coroutine, here.parked = here.parked, None
            if coroutine is None:
                coroutine = self._again(here.path)
            target = here.edges[answer] = self._node(coroutine, *self._send(coroutine, answer), (*here.path, answer))
        return target

    def close(self) -> None:
        """Drop the coroutines that wait for their next edge."""
        for node in self.nodes:
            if node.parked is not None:
                dispose(node.parked)
                node.parked = None

    def _again(self, path: tuple[Any, ...]) -> Coroutine[Any, Any, Any]:
        coroutine = self.make()
        effect, _ = self._send(coroutine, None)
        number = self.root
        for answer in path:
            if effect != self.nodes[number].effect:
                break
            effect, _ = self._send(coroutine, answer)
            number = self.nodes[number].edges[answer]
        if effect != self.nodes[number].effect:
            expected, code = self.nodes[number].effect, getattr(coroutine, "__qualname__", "a thread")
            raise PlainStateError(
                f"{code} does not do the same when it is run again ({_name(expected)}, then {_name(effect)}): it reads "
                f"state that is in no Shared object; {CURE}"
            )
        return coroutine

    def _send(self, coroutine: Coroutine[Any, Any, Any], answer: Any) -> tuple[Any, Exception | None]:
        try:
            effect = coroutine.throw(answer.error) if type(answer) is Raised else coroutine.send(answer)
            while type(effect) is Preempt:
                effect = coroutine.send(None)
        except (StopIteration, Killed):
            return None, None
        except PlainStateError:
            raise
        except Exception as error:  # noqa: BLE001  # that the thread ends so is a violation, if the search gets there
            return None, error
        if type(effect) is Trap:
            return self.translate(effect), None
        if type(effect) is not Choice:
            raise UnknownEffectError(f"{effect!r} has no place in a closed world")
        return effect, None

    def _node(
        self, coroutine: Coroutine[Any, Any, Any], effect: Any, error: Exception | None, path: tuple[Any, ...]
    ) -> int:
        key = (
            (effect, self.canon.chain(coroutine))
            if effect is not None
            else ("end", None if error is None else Raised(error))
        )
        number = self._ids.get(key)
        if number is not None:
            dispose(coroutine)
            return number
        number = self._ids[key] = len(self.nodes)
        if number >= MAX_NODES:
            raise UnknownEffectError(f"a thread has more than {MAX_NODES} local states: does it count without end?")
        alive = coroutine if effect is not None else None
        place = None if alive is None else where(alive)
        self.nodes.append(Node(effect, self.label(alive), path, parked=alive, where=place, error=error))
        return number
