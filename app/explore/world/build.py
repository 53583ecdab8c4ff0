"""A scenario, a variant and a behaviour made into objects and threads, for any driver.

The same world runs under the explorer (``share`` makes proxies) and on the shipped runtime (no ``share``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

from kickstand.core.atomics import Task
from kickstand.core.errors import KvmError
from kickstand.core.memslots import Memslots, Region, Slot, plan
from kickstand.core.uapi import MpState
from kickstand.core.vcpu import Vcpu
from kickstand.core.vm import System, Vm
from kickstand.explore.world.cell import WELL, Cell
from kickstand.explore.world.ghosts import WatchedMemslots
from kickstand.explore.world.killing import Fate
from kickstand.explore.world.own import Protocol, load
from kickstand.explore.world.parts import Kept, Role, Thread, World
from kickstand.explore.world.scenarios import Scenario, VmmSpec, VmSpec, vcpu_column
from kickstand.explore.world.scenarios.items import Operation
from kickstand.explore.world.scenarios.operations import (
    Kill,
    Lock,
    MemoryTransaction,
    Post,
    SetMemoryRegion,
    Unlock,
    Wait,
    all_of,
)
from kickstand.explore.world.stores import SC, add_stores
from kickstand.explore.world.threads import (
    Event,
    ExploredGuest,
    Gate,
    ResumeFlag,
    Surroundings,
    Transaction,
    Userspace,
    VmmThread,
)
from kickstand.explore.world.threads import Lock as UserLock
from kickstand.explore.world.vcpus import VcpuThread
from kickstand.guests.program import compile_program


def build(cell: Cell | Protocol, share: Callable[[Any], Any] = lambda shared: shared) -> World:
    """Make the world of one cell. Raises ``KvmError`` EINVAL for a bad program."""
    if isinstance(cell, Protocol):
        return load(cell, share)
    scenario = cell.scenario
    world = World(scenario, {}, [], [])
    share = _noting(world, _watching(share))
    system = System(share)
    vcpus: list[Thread] = []
    around: dict[str, Surroundings] = {}
    common = _common(scenario, share, world)
    world.named.append((system.memory_transaction, "kvm.memory_transaction"))
    transactions = {spec.name: share(Transaction()) for spec in scenario.vmms if not spec.loop}
    for spec in scenario.vms:
        threads, around[spec.id] = _add_vm(world, spec, cell, share, system, common)
        vcpus += threads
    for vmm in scenario.vmms:
        world.threads.append(_vmm_thread(world, vmm, share, transactions, around[vmm.vm]))
    world.threads += vcpus
    world.fates = {n: common.fates[one.name] for n, one in enumerate(world.threads) if one.name in common.fates}
    world.kept = {spec.id: _kept(scenario, spec) for spec in scenario.vms}
    for name, transaction in transactions.items():
        world.named.append((transaction, f"{name}.transaction"))
    if cell.memory != SC:
        world.stores = add_stores(world, share, cell.memory)
    return world


def _common(scenario: Scenario, share: Callable[[Any], Any], world: World) -> Surroundings:
    """What threads of all VMs share in userspace: locks, events, and the fates of those that somebody kills."""
    operations = [operation for vmm in scenario.vmms for operation in all_of(vmm.operations)]
    operations += [operation for vm in scenario.vms for several in vm.handlers.values() for operation in several]
    found = Surroundings({}, {}, {}, {}, {}, {})
    for operation in operations:
        if isinstance(operation, Lock | Unlock):
            _once(found.locks, operation.lock, UserLock, share, world)
        if isinstance(operation, Post | Wait):
            _once(found.events, operation.event, Event, share, world)
        if isinstance(operation, Kill):
            _once(found.fates, operation.thread, Fate, share, world, ".fate")
    return found


def _once(
    known: dict[str, Any], name: str, kind: type, share: Callable[[Any], Any], world: World, suffix: str = ""
) -> None:
    if name not in known:
        known[name] = share(kind())
        world.named.append((known[name], name + suffix))


def _watching(share: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Share the memory slots with what a VMM is owed of them."""
    return lambda shared: share(WatchedMemslots() if type(shared) is Memslots else shared)


def _noting(world: World, share: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Share, and note it."""

    def shared(real: Any) -> Any:
        world.shared.append((share(real), None))
        return world.shared[-1][0]

    return shared


def _add_vm(
    world: World,
    spec: VmSpec,
    cell: Cell,
    share: Callable[[Any], Any],
    system: System,
    common: Surroundings,
) -> tuple[list[Thread], Surroundings]:
    """Its vCPUs' threads, and what its VMM's threads meet each other with."""
    created: dict[int, Gate] = {vcpu: share(Gate()) for vcpu in spec.hotplug}
    pages: dict[int, Gate] = {vcpu: share(Gate()) for vcpu in spec.faults}
    here = replace(common, created=created, pages=pages)

    def guest(vcpu: Vcpu) -> ExploredGuest:
        program = compile_program(spec.program(vcpu.id))
        return ExploredGuest(vcpu, program, share(Userspace()), pages.get(vcpu.id))

    vm = world.vms[spec.id] = Vm(
        spec.id,
        cell.variant,
        guest,
        system=system,
        irqchip=spec.irqchip,
        switches=spec.switches,
        share=share,
        flush_guests=spec.flush,
    )
    flag = world.flags[spec.id] = share(ResumeFlag())
    _begin(vm, spec)
    waits = flag if cell.behaviour == WELL else None
    threads = [_add_vcpu(world, spec, number, here, waits) for number in (*range(spec.vcpus), *spec.hotplug)]
    _name_vm(world, vm, flag, created, pages)
    return threads, here


def _add_vcpu(world: World, spec: VmSpec, number: int, here: Surroundings, waits: Any) -> Thread:
    """A vCPU's thread; ``waits``: the flag that it waits for after EINTR, if it is well-behaved."""
    vm = world.vms[spec.id]
    vcpu = _vcpu(world, vm, number)
    name = vcpu_column(spec.id, number, single=len(world.scenario.vms) == 1)
    here.vcpus[name] = vcpu
    acts = VmmThread(vm, vcpu.task, None, world.flags[spec.id], here, here.fates.get(name))
    userspace = cast("ExploredGuest", vcpu.guest).userspace
    thread = VcpuThread(vcpu, userspace, waits, here.created.get(number), acts, spec.handlers, spec.signals)
    _name_vcpu(world, vcpu, userspace)
    return Thread(name, spec.id, Role.VCPU, thread.run, vcpu)


def _begin(vm: Vm, spec: VmSpec) -> None:
    """The state in which a VM is found: its slots, and the vCPUs that are there."""
    slots = _slots(spec.regions)
    logged = tuple((slot.id, ()) for slot in slots.values() if slot.logged)
    _unproxied(vm.memslots).load((tuple(slots.items()), logged))
    _unproxied(vm.lifetime).online = tuple(range(spec.vcpus))


def _vcpu(world: World, vm: Vm, number: int) -> Vcpu:
    """A vCPU whose guest has been started, were it an AP; what was shared for it belongs to it."""
    first = len(world.shared)
    vcpu = vm.vcpus[number] = vm.prepare_vcpu(number)
    world.shared[first:] = [(shared, number) for shared, _ in world.shared[first:]]
    _unproxied(vcpu.arch).mp_state = MpState.RUNNABLE
    return vcpu


def _vmm_thread(
    world: World,
    spec: VmmSpec,
    share: Callable[[Any], Any],
    transactions: dict[str, Any],
    around: Surroundings,
) -> Thread:
    vm = world.vms[spec.vm]
    task = share(Task(spec.name))
    own: Any = transactions.get(spec.name)
    thread = VmmThread(vm, task, own, world.flags[spec.vm], around, around.fates.get(spec.name))
    world.named.append((task, f"{spec.name}.task"))
    make = partial(thread.run, spec.operations, loop=spec.loop)
    return Thread(spec.name, spec.vm, Role.IOCTL if spec.loop else Role.VMM, make, None, own)


def _unproxied(shared: Any) -> Any:
    return getattr(shared, "_real", shared)


def _slots(regions: tuple[Region, ...]) -> dict[int, Slot]:
    slots: dict[int, Slot] = {}
    for region in regions:
        _put(region, slots)
    return slots


def _put(region: Region, slots: dict[int, Slot]) -> None:
    """What the ioctl makes of the slots. Raises ``KvmError`` as ``plan``."""
    new = plan(slots, region).new
    slots.pop(region.slot, None)
    if new is not None:
        slots[region.slot] = new


def _pages(slots: dict[int, Slot], *, writable: bool) -> frozenset[int]:
    return frozenset(
        gfn for slot in slots.values() if not (writable and slot.readonly) for gfn in range(slot.base_gfn, slot.end_gfn)
    )


def _kept(scenario: Scenario, spec: VmSpec) -> Kept:
    """Pages of a VM's memory that are RAM (and writable RAM) before and after all transactions."""
    before = _slots(spec.regions)
    after = dict(before)
    for vmm in scenario.vmms:
        if vmm.vm == spec.id:
            _play(vmm.operations, after)
    for operations in spec.handlers.values():
        _play(operations, after)
    reads, writes = (_pages(before, writable=write) & _pages(after, writable=write) for write in (False, True))
    return reads, writes


def _play(operations: tuple[Operation, ...], slots: dict[int, Slot]) -> bool:
    """What the operations make of the slots; one that fails is given up, a list as a whole. True if none failed."""
    whole = True
    for operation in operations:
        if isinstance(operation, MemoryTransaction):
            after = dict(slots)
            done = _play(operation.operations, after)
            whole &= done
            if done or operation.protect != "list":
                slots.clear()
                slots.update(after)
        elif isinstance(operation, SetMemoryRegion):
            try:
                _put(operation.region(), slots)
            except KvmError:
                whole = False
    return whole


def _name_vcpu(world: World, vcpu: Vcpu, userspace: Any) -> None:
    where = f"cpu{vcpu.id}" if len(world.scenario.vms) == 1 else vcpu.tid
    for name in ("task", "mutex", "requests", "mode", "arch", "run_page"):
        world.named.append((getattr(vcpu, name), f"{where}.{name}"))
    world.named.append((cast("ExploredGuest", vcpu.guest).position, f"{where}.rip"))
    world.named.append((userspace, f"{where}.userspace"))


def _name_vm(world: World, vm: Vm, flag: Any, created: dict[int, Gate], pages: dict[int, Gate]) -> None:
    prefix = "" if len(world.scenario.vms) == 1 else f"{vm.id}."
    world.named += [
        (vm.lifetime, f"{prefix}vm"),
        (vm.memslots, f"{prefix}memslots"),
        (vm.slots_lock, f"{prefix}slots_lock"),
        (vm.srcu, f"{prefix}srcu"),
        (flag, f"{prefix}resume_flag"),
    ]
    known = {id(shared) for shared, _ in world.named}
    for name, value in vars(vm.variant).items():
        if id(value) not in known and hasattr(_unproxied(value), "waiters"):
            world.named.append((value, f"{prefix}{name}"))
    world.named += [(gate, f"{prefix}cpu{number}.created") for number, gate in created.items()]
    world.named += [(gate, f"{prefix}cpu{number}.page") for number, gate in pages.items()]
