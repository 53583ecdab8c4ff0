"""A user's own scenario: a YAML or JSON file, checked field by field.

``vms`` have ``memory_regions`` and a ``program`` (or ``programs``, one a vCPU); ``vmms`` have ``operations``. What is
left out has the value that the built-in scenarios use.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, ValidationError, field_validator

from kickstand.core.errors import KvmError
from kickstand.core.memslots import Region, plan
from kickstand.core.vm import Switches
from kickstand.explore.world.scenarios import Scenario, ScenarioError, VmmSpec, VmSpec, scenario, vcpu_column
from kickstand.explore.world.scenarios.items import Item, Operation, RegionItem, integer, number, one_of
from kickstand.explore.world.scenarios.operations import OPERATIONS, Kick, Kill, MemoryTransaction, Resume, all_of
from kickstand.explore.world.threads import Moment
from kickstand.explore.world.vcpus import Signals
from kickstand.guests.program import compile_program

MOST_VCPUS = 8
FILES = (".yaml", ".yml", ".json")
T = TypeVar("T", bound=Item)
Vcpus = Annotated[int, number(1, 4)]


def _several(value: Any, where: str) -> list[tuple[str, Any]]:
    """The items of a list with the place of each."""
    if not isinstance(value, list) or not value:
        raise ScenarioError(f"{where} is a list of at least one item")
    return [(f"{where}[{n}]", item) for n, item in enumerate(value)]


class SwitchesItem(Item):
    """The switches of a VM."""

    rwsem_steal: bool = False
    killable: bool = False
    exit_test: Annotated[str, one_of("before_r", "after_r")] = "before_r"


class SignalsItem(Item):
    """What a VMM does with the signal that it sends to vCPU threads."""

    blocked: bool = True
    handler: Annotated[str, one_of("nothing", "immediate_exit")] = "nothing"


class OperationItem(Item):
    """An operation as it stands in a file."""

    op: str
    args: Any = Field(default_factory=dict)

    @field_validator("op", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if value not in tuple(OPERATIONS):
            raise ValueError(f"{value!r} is none of {', '.join(sorted(OPERATIONS))}")
        return value


class VmItem(Item):
    """One VM."""

    id: str = "vm"
    vcpus: Vcpus | None = None
    irqchip: bool = True
    switches: SwitchesItem = SwitchesItem()
    memory_regions: Any = None
    program: Any = None
    programs: Any = None
    hotplug: Any = Field(default_factory=list)
    faults: Any = Field(default_factory=list)
    signals: SignalsItem = SignalsItem()
    handlers: Any = Field(default_factory=dict)


class VmmItem(Item):
    """One VMM thread, or another user of slots."""

    vm: str | None = None
    name: str | None = None
    operations: Any = None
    loop: bool = False


class ScenarioItem(Item):
    """The file."""

    name: str | None = None
    summary: str = ""
    vms: Any = None
    vmms: Any = None

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not value.replace("_", "").replace("-", "").isalnum():
            raise ValueError(f"{value!r} may have letters, digits, - and _ only")
        return value


def load(name: str, vcpus: int = 1, vmms: int = 1) -> Scenario:
    """Return a built-in scenario by name, or the one in a file. Raises ``ScenarioError``."""
    if not name.endswith(FILES):
        return scenario(name, vcpus, vmms)
    path = Path(name)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ScenarioError(f"{name}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ScenarioError(f"{name}: not UTF-8: {error.reason} at byte {error.start}") from None
    return parse(_parsed(text, path), path.stem, vcpus)


def in_file(name: str) -> int | None:
    """How many vCPUs a scenario's file says that there are; 0 if it leaves that open, None if it is no file."""
    if not name.endswith(FILES):
        return None
    few, more = load(name, 1), load(name, 2)
    return few.vms[0].vcpus if few.vms[0].vcpus == more.vms[0].vcpus else 0


def _parsed(text: str, path: Path) -> Any:
    try:
        if path.suffix == ".json":
            return json.loads(text)
        import yaml  # noqa: PLC0415  # only for YAML files

        return yaml.safe_load(text)
    except Exception as error:  # noqa: BLE001  # whatever the parser says
        raise ScenarioError(f"{path}: {error}") from None


def parse(data: Any, name: str = "scenario", vcpus: int = 1) -> Scenario:
    """Check a scenario's data and make it. Raises ``ScenarioError`` that names the field."""
    item = _checked(ScenarioItem, {"name": name, **data} if isinstance(data, Mapping) else data, "")
    title = item.name or name
    vms = tuple(_vm(_checked(VmItem, vm, where), where, vcpus) for where, vm in _several(item.vms, "vms"))
    if len({vm.id for vm in vms}) < len(vms):
        raise ScenarioError("vms: two have the same id")
    threads = enumerate(_several(item.vmms, "vmms"))
    vmms = tuple(_vmm(_checked(VmmItem, vmm, where), where, n, vms) for n, (where, vmm) in threads)
    if len({vmm.name for vmm in vmms}) < len(vmms):
        raise ScenarioError("vmms: two have the same name")
    _check_kills(vms, vmms)
    total = sum(vm.vcpus + len(vm.hotplug) for vm in vms)
    if total > MOST_VCPUS:
        raise ScenarioError(f"vms: {total} vCPUs are more than the {MOST_VCPUS} that can be explored")
    return Scenario(title, vms, vmms, item.summary, dict(data) | {"name": title})


def _checked(kind: type[T], data: Any, where: str) -> T:
    """``data`` as a ``kind``; ``ScenarioError`` says at which place under ``where`` which rule is broken."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = where
        for part in first["loc"]:
            place += f"[{part}]" if isinstance(part, int) else f"{'.' * bool(place)}{part}"
        says = first["msg"].removeprefix("Value error, ")
        place = place or "the scenario"
        raise ScenarioError(f"{place} {says}" if says.startswith("is a ") else f"{place}: {says}") from None


def _vm(item: VmItem, where: str, vcpus: int) -> VmSpec:
    items = _several(item.memory_regions, f"{where}.memory_regions")
    regions = tuple(_checked(RegionItem, region, place).region() for place, region in items)
    _check_regions(regions, f"{where}.memory_regions")
    programs = item.programs if item.programs is not None else [item.program or [["spin"]]]
    for place, program in _several(programs, f"{where}.programs"):
        _check_program(program, place)
    count = item.vcpus or vcpus
    spec = VmSpec(
        item.id,
        count,
        regions,
        tuple(programs),
        item.irqchip,
        Switches(item.switches.rwsem_steal, item.switches.killable, item.switches.exit_test),
        _ids(item.hotplug, f"{where}.hotplug", count, MOST_VCPUS - 1),
        _ids(item.faults, f"{where}.faults", 0, count - 1),
        signals=Signals(item.signals.blocked, item.signals.handler == "immediate_exit"),
    )
    return replace(spec, handlers=_handlers(item.handlers, f"{where}.handlers", spec))


def _handlers(value: Any, where: str, vm: VmSpec) -> dict[Moment, tuple[Operation, ...]]:
    """What a vCPU's thread does at each moment."""
    if not isinstance(value, Mapping):
        raise ScenarioError(f"{where} is a mapping with {', '.join(Moment)}")
    found = {}
    for moment, items in value.items():
        if moment not in list(Moment):
            raise ScenarioError(f"{where}: {moment!r} is none of {', '.join(Moment)}")
        several = tuple(_operation(op, place, vm) for place, op in _several(items, f"{where}.{moment}"))
        found[Moment(moment)] = several
        _refuse_windows(several, f"{where}.{moment}", "a vCPU's thread is no VMM")
    return found


def _refuse_windows(operations: tuple[Operation, ...], where: str, why: str) -> None:
    for n, operation in enumerate(operations):
        if isinstance(operation, Kick | Resume | MemoryTransaction):
            raise ScenarioError(f"{where}[{n}].op: {why}: no {operation.name()} here")


def _check_kills(vms: tuple[VmSpec, ...], vmms: tuple[VmmSpec, ...]) -> None:
    """Whoever is killed is there, and a window of a VMM that is killed is the only one."""
    single = len(vms) == 1
    names = [vmm.name for vmm in vmms]
    names += [vcpu_column(vm.id, n, single=single) for vm in vms for n in (*range(vm.vcpus), *vm.hotplug)]
    everything = [operation for vmm in vmms for operation in all_of(vmm.operations)]
    everything += [operation for vm in vms for operations in vm.handlers.values() for operation in operations]
    for operation in everything:
        if not isinstance(operation, Kill):
            continue
        if operation.thread not in names:
            raise ScenarioError(f"kill: {operation.thread!r} is none of the threads {', '.join(names)}")
        for victim in vmms:
            if victim.name == operation.thread and _windows_of(victim.vm, vmms) > 1:
                text = "a KICK that may be taken back is the only one of its VM in a scenario"
                raise ScenarioError(f"kill: {victim.name}: {text}")


def _windows_of(vm: str, vmms: tuple[VmmSpec, ...]) -> int:
    """How many windows of a VM may be open at a time, as far as the operations tell."""
    count = 0
    for vmm in vmms:
        if vmm.vm == vm:
            deepest = depth = 0
            for operation in all_of(vmm.operations):
                depth += isinstance(operation, Kick) - isinstance(operation, Resume)
                deepest = max(deepest, depth + isinstance(operation, MemoryTransaction))
            count += deepest
    return count


def _check_regions(regions: tuple[Region, ...], where: str) -> None:
    slots: dict[int, Any] = {}
    for n, region in enumerate(regions):
        if region.slot in slots:
            raise ScenarioError(f"{where}[{n}].slot: there is a slot {region.slot} already")
        try:
            slots[region.slot] = plan(slots, region).new
        except KvmError as error:
            raise ScenarioError(f"{where}[{n}]: {error.detail}") from None


def _check_program(program: Any, where: str) -> None:
    try:
        compile_program(program)
    except KvmError as error:
        raise ScenarioError(f"{where}: {error.detail}") from None


def _ids(value: Any, where: str, low: int, high: int) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise ScenarioError(f"{where} is a list of integers from {low} to {high}")
    try:
        numbers = tuple(integer(item, low, high) for item in value)
    except ValueError as error:
        raise ScenarioError(f"{where}: {error}") from None
    if len(set(numbers)) < len(numbers):
        raise ScenarioError(f"{where}: two are the same")
    return numbers


def oddities(world: Scenario) -> Iterator[str]:
    """What is right, and rather looks like a slip: a name that nobody else uses."""
    users: dict[tuple[str, str], set[str]] = {}
    for name, operation in _by_thread(world):
        for kind in ("lock", "event"):
            if (what := getattr(operation, kind, None)) is not None:
                users.setdefault((kind, what), set()).add(name)
                users.setdefault((operation.name(), what), set()).add(name)
    for (kind, what), names in users.items():
        if kind == "lock" and len(names) == 1 and ("unlock", what) in users:
            yield f"only {next(iter(names))} uses the lock {what!r}"
        for done, missing, verb in (("wait", "post", "posts"), ("post", "wait", "waits for")):
            if kind == done and (missing, what) not in users:
                yield f"nobody {verb} the event {what!r}"


def _by_thread(world: Scenario) -> Iterator[tuple[str, Operation]]:
    for vmm in world.vmms:
        yield from ((vmm.name, operation) for operation in all_of(vmm.operations))
    for vm in world.vms:
        for vcpu in (*range(vm.vcpus), *vm.hotplug):
            name = vcpu_column(vm.id, vcpu, single=len(world.vms) == 1)
            yield from ((name, operation) for operations in vm.handlers.values() for operation in operations)


def _vmm(item: VmmItem, where: str, position: int, vms: tuple[VmSpec, ...]) -> VmmSpec:
    name = item.vm or vms[0].id
    vm = next((spec for spec in vms if spec.id == name), None)
    if vm is None:
        raise ScenarioError(f"{where}.vm: there is no VM {name!r}")
    operations = tuple(_operation(op, place, vm) for place, op in _several(item.operations, f"{where}.operations"))
    if item.loop:
        _refuse_windows(operations, f"{where}.operations", "a thread that loops is no VMM")
    return VmmSpec(name, operations, item.name or (f"VMM{position}" if position else "VMM"), item.loop)


def _operation(data: Any, where: str, vm: VmSpec) -> Operation:
    item = _checked(OperationItem, data, where)
    kind, args = OPERATIONS[item.op], item.args
    if kind is MemoryTransaction and isinstance(args, Mapping) and "operations" in args:
        inner = _several(args["operations"], f"{where}.args.operations")
        args = {**args, "operations": [_operation(op, place, vm) for place, op in inner]}
    operation = _checked(kind, args, f"{where}.args")
    _check_vcpu(operation, f"{where}.args", vm)
    return operation


def _check_vcpu(operation: Operation, where: str, vm: VmSpec) -> None:
    name, of = operation.vcpu_of
    if not name:
        return
    ids = {"vcpus": (*range(vm.vcpus), *vm.hotplug), "hotplug": vm.hotplug, "faults": vm.faults}[of]
    if getattr(operation, name) not in ids:
        raise ScenarioError(f"{where}.{name}: {getattr(operation, name)} is none of the {of} of {vm.id}: {list(ids)}")
