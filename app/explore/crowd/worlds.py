"""Worlds of one kind in several sizes, and whose each of their objects is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from kickstand.explore.learn.objects import Ref, Trap
from kickstand.explore.world.cell import Cell
from kickstand.explore.world.parts import World
from kickstand.explore.world.scenarios import SCENARIOS
from kickstand.explore.world.scenarios.files import parse
from kickstand.explore.world.scenarios.operations import Kill, Msi, all_of
from kickstand.explore.world.stores import SC

Resize = Callable[[int], Cell]


class UnevenError(Exception):
    """The scenario is not the same for every vCPU, or not there in other sizes; the message says why."""


def resizing(cell: Cell) -> Resize:
    """How to make ``cell`` for another number of vCPUs. Raises ``UnevenError``."""
    scenario = cell.scenario
    if cell.memory != SC:
        raise UnevenError("the argument is for sequential consistency")
    if scenario.source:
        if any(vm.get("vcpus") is not None for vm in scenario.source["vms"]):
            raise UnevenError("the scenario's file says how many vCPUs there are")
    elif scenario.name not in SCENARIOS:
        raise UnevenError(f"there is no {scenario.name} of another size")
    _even(cell)

    def resized(vcpus: int) -> Cell:
        if scenario.source:
            made = parse(scenario.source, scenario.name, vcpus)
        else:
            made = SCENARIOS[scenario.name](vcpus, cell.vmms)
        return replace(cell, scenario=made, vcpus=vcpus)

    return resized


def _even(cell: Cell) -> None:
    scenario = cell.scenario
    if len(scenario.vms) > 1:
        raise UnevenError("there is more than one VM")
    for vm in scenario.vms:
        if vm.hotplug or vm.faults:
            raise UnevenError("one vCPU is created later, or waits for a page, and the others do not")
        if vm.handlers:
            raise UnevenError("vCPU threads meet each other in userspace (handlers)")
        if len(vm.programs) > 1:
            raise UnevenError("vCPUs run different programs")
    for vmm in scenario.vmms:
        for operation in all_of(vmm.operations):
            if isinstance(operation, Kill):
                raise UnevenError("kill ends a thread, and nothing is known of what it leaves behind in company")
            if operation.vcpu_of[0] or isinstance(operation, Msi):
                raise UnevenError(f"{operation.name()} names one vCPU")


@dataclass(frozen=True, slots=True)
class Owners:
    """Whose objects are: those of each vCPU, and those of nobody, in the order in which they were made."""

    tids: dict[str, int]  # a vCPU thread's name to the vCPU's number
    of: dict[int, int | None]
    lists: dict[int | None, list[int]]

    def subjects(self, trap: Trap) -> set[int]:
        """The vCPUs that an operation is about: it touches their objects, or names them."""
        found = {self.of.get(index) for index in trap.involved} - {None}
        found |= {self.tids[arg] for arg in trap.args if isinstance(arg, str) and arg in self.tids}
        return {number for number in found if number is not None}

    def common(self, trap: Trap) -> list[int]:
        """The positions, among the operation's object and arguments, of objects that are no vCPU's."""
        objects = (Ref(trap.object), *trap.args)
        return [at for at, arg in enumerate(objects) if type(arg) is Ref and self.of.get(arg.object) is None]


def owners(world: World) -> Owners:
    """Whose the objects of a world with one VM are."""
    (vm,) = world.vms.values()
    of: dict[int, int | None] = {}
    lists: dict[int | None, list[int]] = {}
    for proxy, vcpu in world.shared:
        of[proxy.index] = vcpu
        lists.setdefault(vcpu, []).append(proxy.index)
    return Owners({vcpu.tid: number for number, vcpu in vm.vcpus.items()}, of, lists)


class Renaming:
    """Names of a large world in the words of a small one, which has only the vCPUs that are ``kept``."""

    def __init__(self, large: Owners, small: Owners, kept: tuple[int, ...]) -> None:
        self.kept = kept
        small_tids = {number: tid for tid, number in small.tids.items()}
        self.tids = {tid: small_tids[kept.index(number)] for tid, number in large.tids.items() if number in kept}
        self.objects: dict[int, int] = {}
        for vcpu, objects in large.lists.items():
            if vcpu is None or vcpu in kept:
                there = small.lists[None if vcpu is None else kept.index(vcpu)]
                if len(there) != len(objects):
                    raise UnevenError("worlds of different sizes share different objects")
                self.objects.update(zip(objects, there, strict=True))

    def __call__(self, value: Any) -> Any:
        """The same value in the small world's words."""
        if isinstance(value, str):
            return self.tids.get(value, value)
        if type(value) is Ref:
            return Ref(self.objects.get(value.object, -1))
        if type(value) is tuple:
            return tuple(map(self, value))
        if type(value) is frozenset:
            return frozenset(map(self, value))
        return value
