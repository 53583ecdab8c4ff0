"""A scenario, a variant and a behaviour made into objects and threads, for any driver.

The same world runs under the explorer (``share`` makes proxies) and on the shipped runtime (no ``share``).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from app.core.atomics import Task
from app.core.errors import KvmError
from app.core.memslots import Region, Slot, plan
from app.core.uapi import MpState
from app.core.variants import Variant, variant
from app.core.vcpu import Vcpu
from app.core.vm import System, Vm
from app.explore.scenarios import Scenario, VmmSpec, VmSpec
from app.explore.threads import (
    ExploredGuest,
    Gate,
    ResumeFlag,
    Transaction,
    Userspace,
    VmmThread,
    region_of,
    vcpu_thread,
)
from app.guests.script import Step, compile_program
from app.runtime.tasks import perform_now

Kept = tuple[frozenset[int], frozenset[int]]  # gfns that stay readable RAM, and writable RAM
BEHAVIOURS = ("well", "careless")


@dataclass(slots=True)
class Thread:
    """One thread of the world: how to start it and what it is."""

    name: str
    vm: str
    kind: str  # "vcpu", "vmm" or "ioctl"
    make: Callable[[], Coroutine[Any, Any, Any]]
    vcpu: Vcpu | None = None
    transaction: Any = None


@dataclass(slots=True)
class World:
    """Objects and threads, in the order of the columns of a counterexample: VMMs, then vCPUs."""

    scenario: Scenario
    vms: dict[str, Vm]
    threads: list[Thread]
    named: list[tuple[Any, str]]
    kept: dict[str, Kept] = field(default_factory=dict)
    flags: dict[str, Any] = field(default_factory=dict)


def build(
    scenario: Scenario,
    variant_name: str | type[Variant],
    behaviour: str,
    share: Callable[[Any], Any] = lambda shared: shared,
) -> World:
    """Make the world of one cell. Raises ``KvmError`` EINVAL for an unknown variant or a bad program."""
    kind = variant(variant_name) if isinstance(variant_name, str) else variant_name
    world = World(scenario, {}, [], [])
    system = System(share)
    vcpus: list[Thread] = []
    gates: dict[str, tuple[dict[int, Gate], dict[int, Gate]]] = {}
    world.named.append((system.memory_transaction, "kvm.memory_transaction"))
    transactions = {spec.name: share(Transaction()) for spec in scenario.vmms if not spec.loop}
    for spec in scenario.vms:
        vcpus += _add_vm(world, spec, kind, behaviour, share, system, gates)
    for vmm in scenario.vmms:
        world.threads.append(_vmm_thread(world, vmm, share, transactions, gates))
    world.threads += vcpus
    world.kept = {spec.id: _kept(scenario, spec) for spec in scenario.vms}
    for name, transaction in transactions.items():
        world.named.append((transaction, f"{name}.transaction"))
    return world


def _add_vm(
    world: World,
    spec: VmSpec,
    kind: type[Variant],
    behaviour: str,
    share: Callable[[Any], Any],
    system: System,
    gates: dict[str, tuple[dict[int, Gate], dict[int, Gate]]],
) -> list[Thread]:
    compiled: dict[int, tuple[Step, ...]] = {}
    users: dict[int, Userspace] = {}
    created: dict[int, Gate] = {vcpu: share(Gate()) for vcpu in spec.hotplug}
    pages: dict[int, Gate] = {vcpu: share(Gate()) for vcpu in spec.faults}
    gates[spec.id] = created, pages

    def guest(vcpu: Vcpu) -> ExploredGuest:
        compiled[vcpu.id] = compile_program(spec.program(vcpu.id))
        users[vcpu.id] = share(Userspace())
        return ExploredGuest(vcpu, compiled[vcpu.id], pages.get(vcpu.id))

    vm = Vm(
        spec.id,
        kind,
        guest,
        system=system,
        irqchip=spec.irqchip,
        switches=spec.switches,
        share=share,
        flush_guests=spec.flush,
    )
    world.vms[spec.id] = vm
    flag = share(ResumeFlag())
    world.flags[spec.id] = flag
    real = _real(vm)
    real.memslots.slots = dict(_slots(spec.regions))
    real.memslots.dirty = {slot.id: set() for slot in real.memslots.slots.values() if slot.logged}
    real.memslots.load(real.memslots.state())
    threads = []
    for number in (*range(spec.vcpus), *spec.hotplug):
        vcpu = vm.prepare_vcpu(number)
        vm.vcpus[number] = vcpu
        _unproxied(vcpu.arch).mp_state = MpState.RUNNABLE  # every AP has been started
        gate = created.get(number)
        waits = flag if behaviour == "well" else None
        make = partial(vcpu_thread, vcpu, users[number], waits, gate)
        prefix = "CPU" if len(world.scenario.vms) == 1 else f"{spec.id}/CPU"
        threads.append(Thread(f"{prefix}{number}", spec.id, "vcpu", make, vcpu))
        _name_vcpu(world, vcpu, users[number])
    real.lifetime.online = tuple(range(spec.vcpus))
    _name_vm(world, vm, flag, created, pages)
    return threads


def _vmm_thread(
    world: World,
    spec: VmmSpec,
    share: Callable[[Any], Any],
    transactions: dict[str, Any],
    gates: dict[str, tuple[dict[int, Gate], dict[int, Gate]]],
) -> Thread:
    vm = world.vms[spec.vm]
    task = share(Task(spec.name))
    created, pages = gates[spec.vm]
    own: Any = transactions.get(spec.name)
    thread = VmmThread(vm, task, own, world.flags[spec.vm], created, pages)
    world.named.append((task, f"{spec.name}.task"))
    make = partial(thread.run, spec.operations, loop=spec.loop)
    return Thread(spec.name, spec.vm, "ioctl" if spec.loop else "vmm", make, None, own)


def _unproxied(shared: Any) -> Any:
    return getattr(shared, "_real", shared)


class _real:  # noqa: N801  # reads as a function
    """The objects behind a VM's proxies, for setting the initial state."""

    def __init__(self, vm: Vm) -> None:
        self.memslots = _unproxied(vm.memslots)
        self.lifetime = _unproxied(vm.lifetime)


def _slots(regions: tuple[Region, ...]) -> dict[int, Slot]:
    slots: dict[int, Slot] = {}
    for region in regions:
        what = plan(slots, region)
        if what.new is None:
            slots.pop(region.slot)
        else:
            slots[region.slot] = what.new
    return slots


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
    reads, writes = (_pages(before, writable=write) & _pages(after, writable=write) for write in (False, True))
    return reads, writes


def _play(operations: Any, slots: dict[int, Slot]) -> bool:
    """What the operations make of the slots; one that fails is given up, a list as a whole. True if none failed."""
    whole = True
    for operation in operations:
        args = operation.get("args", {})
        if operation["op"] == "memory_transaction":
            after = dict(slots)
            done = _play(args["operations"], after)
            whole &= done
            if done or args.get("protect") != "list":
                slots.clear()
                slots.update(after)
        elif operation["op"] == "set_memory_region":
            whole &= _set(region_of(**args), slots)
    return whole


def _set(region: Region, slots: dict[int, Slot]) -> bool:
    try:
        what = plan(slots, region)
    except KvmError:
        return False
    if what.new is None:
        slots.pop(region.slot)
    else:
        slots[region.slot] = what.new
    return True


def _name_vcpu(world: World, vcpu: Vcpu, userspace: Any) -> None:
    where = f"cpu{vcpu.id}" if len(world.scenario.vms) == 1 else vcpu.tid
    for name in ("task", "mutex", "requests", "mode", "arch", "run_page"):
        world.named.append((getattr(vcpu, name), f"{where}.{name}"))
    guest: Any = vcpu.guest
    world.named.append((guest.position, f"{where}.rip"))
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


__all__ = ["BEHAVIOURS", "Thread", "World", "build", "perform_now"]
