"""A user's own scenario: a YAML or JSON file, checked field by field.

``vms`` have ``memory_regions`` and a ``program`` (or ``programs``, one a vCPU); ``vmms`` have ``operations``. What is
left out has the value that the built-in scenarios use.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from app.core.errors import KvmError
from app.core.memslots import Region, plan
from app.core.vm import Switches
from app.explore.scenarios import Scenario, ScenarioError, VmmSpec, VmSpec, scenario
from app.explore.threads import VmmThread
from app.guests.script import compile_program

REGION = {
    "slot": "slot",
    "flags": "flags",
    "gpa": "gpa",
    "guest_phys_addr": "gpa",
    "size": "size",
    "memory_size": "size",
    "host": "host",
    "userspace_addr": "host",
}
FLAGS = {"LOG_DIRTY_PAGES": 1, "READONLY": 2}
LARGEST = 1 << 30  # bytes of one slot: every page is looked at by itself
WINDOWS = ("kick", "resume", "memory_transaction")


def load(name: str, vcpus: int = 1, vmms: int = 1) -> Scenario:
    """Return a built-in scenario by name, or the one in a file. Raises ``ScenarioError``."""
    if not name.endswith((".yaml", ".yml", ".json")):
        return scenario(name, vcpus, vmms)
    path = Path(name)
    try:
        text = path.read_text()
    except OSError as error:
        raise ScenarioError(f"{name}: {error.strerror}") from None
    return parse(_parsed(text, path), path.stem, vcpus)


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
    top = _mapping(data, "the scenario", {"name", "summary", "vms", "vmms"})
    title = str(top.get("name", name))
    if not title.replace("_", "").replace("-", "").isalnum():
        raise ScenarioError(f"name: {title!r} may have letters, digits, - and _ only")
    vms = tuple(_vm(item, f"vms[{n}]", vcpus) for n, item in enumerate(_list(top.get("vms"), "vms")))
    if len({vm.id for vm in vms}) < len(vms):
        raise ScenarioError("vms: two have the same id")
    vmms = tuple(_vmm(item, f"vmms[{n}]", n, vms) for n, item in enumerate(_list(top.get("vmms"), "vmms")))
    if len({vmm.name for vmm in vmms}) < len(vmms):
        raise ScenarioError("vmms: two have the same name")
    total = sum(vm.vcpus + len(vm.hotplug) for vm in vms)
    if total > 8:
        raise ScenarioError(f"vms: {total} vCPUs are more than the 8 that can be explored")
    source = dict(top) | {"name": title}
    return Scenario(title, vms, vmms, str(top.get("summary", "")), source)


def _vm(data: Any, where: str, vcpus: int) -> VmSpec:
    item = _mapping(
        data,
        where,
        {"id", "vcpus", "irqchip", "switches", "memory_regions", "program", "programs", "hotplug", "faults"},
    )
    regions = tuple(
        _region(region, f"{where}.memory_regions[{n}]")
        for n, region in enumerate(_list(item.get("memory_regions"), f"{where}.memory_regions"))
    )
    slots: dict[int, Any] = {}
    for n, region in enumerate(regions):
        if region.slot in slots:
            raise ScenarioError(f"{where}.memory_regions[{n}].slot: there is a slot {region.slot} already")
        try:
            slots[region.slot] = plan(slots, region).new
        except KvmError as error:
            raise ScenarioError(f"{where}.memory_regions[{n}]: {error.detail}") from None
    programs = item.get("programs", [item["program"]] if "program" in item else [[["spin"]]])
    for n, program in enumerate(_list(programs, f"{where}.programs")):
        try:
            compile_program(program)
        except KvmError as error:
            raise ScenarioError(f"{where}.programs[{n}]: {error.detail}") from None
    count = _number(item.get("vcpus", vcpus), f"{where}.vcpus", 1, 4)
    return VmSpec(
        str(item.get("id", "vm")),
        count,
        regions,
        tuple(programs),
        bool(item.get("irqchip", True)),
        _switches(item.get("switches", {}), f"{where}.switches"),
        _numbers(item.get("hotplug", []), f"{where}.hotplug", count, 7),
        _numbers(item.get("faults", []), f"{where}.faults", 0, count - 1),
    )


def _switches(data: Any, where: str) -> Switches:
    item = _mapping(data, where, {field.name for field in fields(Switches)})
    if item.get("exit_test", "before_r") not in ("before_r", "after_r"):
        raise ScenarioError(f"{where}.exit_test: {item['exit_test']!r} is neither before_r nor after_r")
    return Switches(**item)


def _vmm(data: Any, where: str, number: int, vms: tuple[VmSpec, ...]) -> VmmSpec:
    item = _mapping(data, where, {"vm", "name", "operations", "loop"})
    name = str(item.get("vm", vms[0].id))
    vm = next((spec for spec in vms if spec.id == name), None)
    if vm is None:
        raise ScenarioError(f"{where}.vm: there is no VM {name!r}")
    operations = tuple(
        _operation(op, f"{where}.operations[{n}]", vm)
        for n, op in enumerate(_list(item.get("operations"), f"{where}.operations"))
    )
    loop = bool(item.get("loop", False))
    for n, operation in enumerate(operations):
        if loop and operation["op"] in WINDOWS:
            raise ScenarioError(f"{where}.operations[{n}].op: a thread that loops is no VMM: no {operation['op']} here")
    return VmmSpec(name, operations, str(item.get("name", f"VMM{number}" if number else "VMM")), loop)


def _operation(data: Any, where: str, vm: VmSpec) -> dict[str, Any]:
    item = _mapping(data, where, {"op", "args"})
    op = str(item.get("op", ""))
    handler = getattr(VmmThread, f"op_{op}", None)
    if handler is None:
        known = sorted(name.removeprefix("op_") for name in vars(VmmThread) if name.startswith("op_"))
        raise ScenarioError(f"{where}.op: {op!r} is none of {', '.join(known)}")
    args = item.get("args", {})
    if op == "set_memory_region":
        region = _region(args, f"{where}.args")
        return {
            "op": op,
            "args": {
                "slot": region.slot,
                "flags": region.flags,
                "gpa": region.guest_phys_addr,
                "size": region.memory_size,
                "host": region.userspace_addr,
            },
        }
    allowed = {name: parameter for name, parameter in inspect.signature(handler).parameters.items() if name != "self"}
    args = dict(_mapping(args, f"{where}.args", set(allowed)))
    for name, parameter in allowed.items():
        if parameter.default is parameter.empty and name not in args:
            raise ScenarioError(f"{where}.args: {op} needs {name}")
    if op == "memory_transaction":
        args["operations"] = [
            _operation(inner, f"{where}.args.operations[{n}]", vm)
            for n, inner in enumerate(_list(args["operations"], f"{where}.args.operations"))
        ]
        if args.get("protect", "kick") not in ("kick", "none", "list", "variant"):
            raise ScenarioError(f"{where}.args.protect: {args['protect']!r} is none of kick, none, list, variant")
    else:
        args = {name: _number(value, f"{where}.args.{name}", 0, 1 << 64) for name, value in args.items()}
        _check_vcpu(op, args, where, vm)
    return {"op": op, "args": args}


def _check_vcpu(op: str, args: Mapping[str, int], where: str, vm: VmSpec) -> None:
    known = {
        "signal": ("vcpu", "vcpus", (*range(vm.vcpus), *vm.hotplug)),
        "create_vcpu": ("id", "hotplug", vm.hotplug),
        "provide_page": ("vcpu", "faults", vm.faults),
    }
    name, of, ids = known.get(op, ("", "", ()))
    if name and args[name] not in ids:
        raise ScenarioError(f"{where}.args.{name}: {args[name]} is none of the {of} of {vm.id}: {list(ids)}")


def _region(data: Any, where: str) -> Region:
    item = _mapping(data, where, set(REGION))
    values: dict[str, int] = {"flags": 0, "host": 0}
    for key, value in item.items():
        if key == "flags" and isinstance(value, list):
            unknown = [flag for flag in value if flag not in tuple(FLAGS)]  # by comparison: it may be a list
            if unknown:
                raise ScenarioError(f"{where}.flags: {unknown[0]!r} is none of {', '.join(FLAGS)}")
            value = sum(FLAGS[flag] for flag in value)  # noqa: PLW2901  # names become bits
        if key == "host" and isinstance(value, Mapping):
            value = value.get("abs", value.get("offset", 0))  # noqa: PLW2901  # as ioctl scripts have it
        values[REGION[key]] = _number(value, f"{where}.{key}", 0, LARGEST if REGION[key] == "size" else 1 << 64)
    for key in ("slot", "gpa", "size"):
        if key not in values:
            raise ScenarioError(f"{where}: {key} is missing")
    return Region(values["slot"], values["flags"], values["gpa"], values["size"], values["host"])


def _mapping(data: Any, where: str, keys: set[str]) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise ScenarioError(f"{where} is a mapping with {', '.join(sorted(keys))}")
    for key in data:
        if key not in keys:
            raise ScenarioError(f"{where}: {key!r} is none of {', '.join(sorted(keys))}")
    return data


def _list(data: Any, where: str) -> list[Any]:
    if not isinstance(data, list) or not data:
        raise ScenarioError(f"{where} is a list of at least one item")
    return data


def _numbers(value: Any, where: str, low: int, high: int) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise ScenarioError(f"{where} is a list of integers from {low} to {high}")
    numbers = tuple(_number(item, where, low, high) for item in value)
    if len(set(numbers)) < len(numbers):
        raise ScenarioError(f"{where}: two are the same")
    return numbers


def _number(value: Any, where: str, low: int, high: int) -> int:
    try:
        number = int(value, 0) if isinstance(value, str) else value
    except ValueError:
        number = None
    if isinstance(number, bool) or not isinstance(number, int) or not low <= number <= high:
        raise ScenarioError(f"{where}: {value!r} is no integer from {low} to {high}")
    return number
