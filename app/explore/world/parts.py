"""What every world consists of, whoever made it: threads, objects, statements about them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from kickstand.core.vcpu import Vcpu
from kickstand.core.vm import Vm
from kickstand.explore.world.killing import Killable
from kickstand.explore.world.scenarios import Scenario

Statement = Callable[[], bool]
Kept = tuple[frozenset[int], frozenset[int]]  # gfns that stay readable RAM, and writable RAM


def nothing() -> None:
    """Nothing has to be checked."""


class Role(Enum):
    """What a thread is for: ``IOCTL`` is another user of the slots, for ever."""

    VCPU = "vcpu"
    VMM = "vmm"
    IOCTL = "ioctl"
    OWN = "own"  # of a protocol of one's own
    DRAIN = "drain"  # a CPU's store buffer


@dataclass(slots=True)
class Thread:
    """One thread of the world: how to start it and what it is."""

    name: str
    vm: str
    role: Role
    make: Callable[[], Coroutine[Any, Any, Any]]
    vcpu: Vcpu | None = None
    transaction: Any = None
    rests: bool = False  # it may wait for ever: it serves others


@dataclass(slots=True)
class World:
    """Objects and threads, in the order of the columns of a counterexample: VMMs, then vCPUs.

    ``never`` and ``eventually`` are statements about the objects, ``rest`` says where waiting for ever is no deadlock;
    ``check`` raises ``PlainStateError`` if something that the explorer cannot see has changed.
    """

    scenario: Scenario
    vms: dict[str, Vm]
    threads: list[Thread]
    named: list[tuple[Any, str]]
    kept: dict[str, Kept] = field(default_factory=dict)
    flags: dict[str, Any] = field(default_factory=dict)
    shared: list[tuple[Any, int | None]] = field(default_factory=list)  # every object, in order, and whose it is
    never: dict[str, Statement] = field(default_factory=dict)
    eventually: dict[str, Statement] = field(default_factory=dict)
    rest: tuple[Statement, ...] = ()
    stores: Any = None  # the store buffers, where there are any
    fates: dict[int, Any] = field(default_factory=dict)  # of the threads that somebody may kill
    check: Callable[[], None] = nothing

    def way(self, thread: int, method: Any, target: Any, others: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]] | None:
        """How ``thread`` performs ``method`` on ``target``, and with which further objects; None: plainly."""
        found = None if self.stores is None else self.stores.way(thread, method, target, others)
        fate = self.fates.get(thread)
        if fate is None or target is fate:
            return found
        inner, objects = found or (None, ())
        return Killable(inner), (fate, *objects)

    def statements(self) -> tuple[Statement, ...]:
        """All that is said of the objects."""
        return (*self.never.values(), *self.eventually.values(), *self.rest)
