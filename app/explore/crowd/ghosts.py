"""The erased runs, performed beside the real one: each common object has a copy that some vCPUs never touch.

For each set of vCPUs that is *kept* there is a ghost of every object that vCPUs have in common. An operation of a kept
vCPU, or one of a VMM that is not about an erased vCPU, is performed on the real objects and on the ghosts, in one
step. So a ghost is always in the state in which its original would be had the erased vCPUs never come, and the
operation tells at once whether company makes a difference:

* a vCPU gets the same answer, leaves its own objects in the same state, and waits in company if and only if it waits
  alone (C1);
* a VMM gets the same answer and goes on in company only where it goes on alone; where it waits in company it waits in
  one of the small worlds (C3, a conjunctive guard).

What makes a difference takes the small world out of the comparison. As long as every vCPU is in one that is left, the
run is matched; else ``CompanyError``, which the search finds as it finds any assertion that fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from kickstand.core.atomics import Blocked, Shared
from kickstand.explore.crowd.worlds import Owners, owners
from kickstand.explore.learn.knowledge import Ways
from kickstand.explore.learn.objects import Objects, Raised, Ref, Trap, Way
from kickstand.explore.world.parts import Role, World


class CompanyError(AssertionError):
    """An operation does in company what it does in no smaller world."""


class Lost(Shared):
    """The small worlds that the run has left."""

    __slots__ = ("worlds",)
    FIELDS = ("worlds",)

    def __init__(self) -> None:
        super().__init__()
        self.worlds: frozenset[int] = frozenset()


@dataclass(slots=True)
class Came:
    """What came of an operation: it waits, or it has answered."""

    waits: Blocked | None = None
    answer: Any = None
    own: tuple[Any, ...] = ()  # how it left the vCPU's own objects

    def told(self) -> str:
        """In words."""
        return "waits" if self.waits is not None else f"answers {self.answer}"


def _attempt(operate: Callable[..., Any], objects: Iterable[Any], own: list[Shared]) -> Came:
    operation = operate(*objects)
    try:
        effect = operation.send(None)
    except StopIteration as stop:
        return Came(answer=stop.value, own=_states(own))
    except Exception as error:  # noqa: BLE001  # an errno is an answer too
        return Came(answer=Raised(error), own=_states(own))
    operation.close()
    return Came(waits=effect)


def _states(own: list[Shared]) -> tuple[Any, ...]:
    return tuple(shared.state() for shared in own)


def _load(own: list[Shared], states: tuple[Any, ...]) -> None:
    for shared, state in zip(own, states, strict=True):
        shared.load(state)


@dataclass(frozen=True, slots=True)
class Shadowed:
    """Performs an operation in the real world and in the small ``worlds`` in which it happens.

    ``common`` are the positions of common objects among the operation's object and arguments; ``vcpus`` says which
    vCPUs each small world keeps.
    """

    name: str
    by_vcpu: bool
    worlds: tuple[int, ...]
    common: tuple[int, ...]
    vcpus: tuple[tuple[int, ...], ...]
    about: int | None = None  # the vCPU that has to be in a small world that is left; None: each

    async def __call__(self, operate: Callable[..., Any], objects: tuple[Any, ...], extra: list[Shared]) -> Any:
        lost, *ghosts = extra
        assert isinstance(lost, Lost)
        own = [item for at, item in enumerate(objects) if isinstance(item, Shared) and at not in self.common]
        before, apart = _states(own), _states(ghosts)
        full = _attempt(operate, objects, own)
        left = [at for at, world in enumerate(self.worlds) if world not in lost.worlds]
        alone = {}
        for at in left:
            there = list(objects)
            for number, position in enumerate(self.common):
                there[position] = ghosts[at * len(self.common) + number]
            _load(own, before)
            alone[self.worlds[at]] = _attempt(operate, there, own)
        _load(own, full.own if full.waits is None else before)
        if full.waits is not None:
            _load(ghosts, apart)  # nothing has happened yet, there neither
            self._may_wait(list(alone.values()))
            await full.waits
        self._lose(lost, full, alone)
        if type(full.answer) is Raised:
            raise full.answer.error
        return full.answer

    def _may_wait(self, alone: list[Came]) -> None:
        waits = [came.waits is not None for came in alone]
        if alone and not (all(waits) if self.by_vcpu else any(waits)):
            self._differ("waits", next(came for came in alone if came.waits is None).told())

    def _lose(self, lost: Lost, full: Came, alone: dict[int, Came]) -> None:
        different = {
            world
            for world, came in alone.items()
            if came.waits is not None or (came.answer, came.own) != (full.answer, full.own)
        }
        if not different:
            return
        lost.worlds |= different
        left = [kept for world, kept in enumerate(self.vcpus) if world not in lost.worlds]
        everybody = set().union(*self.vcpus) if self.about is None else {self.about}
        if everybody - set().union(*left):
            came = alone[min(different)]
            self._differ(full.told(), came.told())

    def _differ(self, full: str, alone: str) -> None:
        raise CompanyError(f"{self.name} {full} in company, and {alone} without")


@dataclass(slots=True)
class Ghosts(Ways):
    """Those of a world with more vCPUs than the small one: ``kept`` has the vCPUs of each small world.

    ``twins`` are positions among the objects of nobody: those that vCPUs share and that change. The small worlds have
    ``size`` vCPUs and, if one is given, the vCPU ``about``.
    """

    twins: list[int]
    size: int
    about: int | None = None
    broken: list[str] = field(default_factory=list)  # what operations do that they must not, whatever the run
    together: list[tuple[int, ...]] = field(init=False)  # the ghosts of each small world
    owners: Owners = field(init=False)
    kept: tuple[tuple[int, ...], ...] = field(init=False)

    def __call__(self, world: World, objects: Objects) -> Callable[[int, Trap], Trap]:
        """Share the ghosts of a world and say how its threads perform operations."""
        self.owners = whose = owners(world)
        several = combinations(sorted(whose.tids.values()), self.size)
        self.kept = tuple(kept for kept in several if self.about is None or self.about in kept)
        lost = objects.share(Lost())
        common = [whose.lists[None][at] for at in self.twins]
        ghosts = [{index: objects.share(_copy(objects.real[index])).index for index in common} for _ in self.kept]
        self.together = [tuple(common), *(tuple(there.values()) for there in ghosts)]
        names = objects.names

        def translate(thread: int, trap: Trap) -> Trap:
            about = self._about(world, thread, trap, names)
            positions = [at for at in whose.common(trap) if _object(trap, at) in ghosts[0]]
            happens = tuple(number for number, kept in enumerate(self.kept) if about <= set(kept))
            if not positions or not happens:
                return trap
            shadowed = Shadowed(
                f"{names[trap.object]}.{trap.name}",
                world.threads[thread].role is Role.VCPU,
                happens,
                tuple(positions),
                self.kept,
                self.about,
            )
            extra = [ghosts[number][_object(trap, at)] for number in happens for at in positions]
            return trap._replace(way=Way(shadowed, (lost.index, *extra)))

        return translate

    def _about(self, world: World, thread: int, trap: Trap, names: list[str]) -> set[int]:
        """The vCPU that an operation is about; more than one is more than the argument allows."""
        about = self.owners.subjects(trap)
        vcpu = world.threads[thread].vcpu
        operation = f"{names[trap.object]}.{trap.name}"
        if vcpu is not None:
            if about - {vcpu.id}:
                self.note(f"C1: a vCPU's {operation} touches another vCPU")
            return {vcpu.id}
        if len(about) > 1:
            self.note(f"C2: {operation} touches {len(about)} vCPUs at once")
        return about

    def note(self, what: str) -> None:
        """Keep what is broken, once."""
        if what not in self.broken:
            self.broken.append(what)


def _object(trap: Trap, position: int) -> int:
    arg = (Ref(trap.object), *trap.args)[position]
    return int(arg.object)


def _copy(real: Shared) -> Shared:
    ghost = copy(real)
    ghost.waiters = {}
    ghost.load(real.state())
    return ghost
