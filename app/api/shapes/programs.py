"""The schema of script guests' programs: one component for each step, made from what the compiler takes."""

from __future__ import annotations

from typing import Any

from kickstand.api.shapes.values import number_schema
from kickstand.guests.program import ARGUMENTS, LAST_PORT, MAX_DEPTH, MOST_STEPS, OPTIONAL_SIZE, SIZES

DOES = {
    "read": "Read guest memory; where no slot is, KVM_EXIT_MMIO.",
    "write": "Write guest memory; where no slot is, KVM_EXIT_MMIO.",
    "compute": "Spend so many turns in the guest.",
    "in": "Read a port: KVM_EXIT_IO.",
    "out": "Write a port: KVM_EXIT_IO.",
    "fetch": "Go on at an address; where no slot is, KVM_EXIT_INTERNAL_ERROR.",
    "hlt": "Halt: KVM_EXIT_HLT, or a sleep inside KVM_RUN with an in-kernel irqchip.",
    "spin": "Stay in the guest until a kick or a signal.",
}
MEANS = {
    "gpa": "Guest physical address in bytes.",
    "port": "Port number.",
    "value": "Value; fits in size bytes.",
    "n": "Turns.",
    "size": "Bytes.",
}
REF = "#/components/schemas/"


def components() -> dict[str, Any]:
    """``Program``, ``Step`` and one schema for each kind of step: arrays that begin with the step's name."""
    steps = {f"Step{name.capitalize()}": _step(name) for name in ARGUMENTS}
    steps["StepChoose"] = _choose()
    return steps | {
        "Step": {
            "description": "One step: a list of its name and its arguments. The name tells which.",
            "oneOf": [{"$ref": REF + name} for name in steps],
        },
        "Program": {
            "type": "array",
            "description": "What a script guest executes, in order, and from the top again unless it ends in hlt.",
            "items": {"$ref": f"{REF}Step"},
            "minItems": 1,
            "maxItems": MOST_STEPS,
        },
    }


def _step(name: str) -> dict[str, Any]:
    """A list of fixed length; two of them where the size may be left out, because generators know no other way."""
    given = [{"type": "string", "const": name}, *(_argument(name, argument) for argument in ARGUMENTS[name])]
    lists = [_list(given[:-1]), _list(given)] if name in OPTIONAL_SIZE else [_list(given)]
    return {"description": DOES[name]} | (lists[0] if len(lists) == 1 else {"anyOf": lists})


def _list(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}


def _choose() -> dict[str, Any]:
    """Not with the reference to a program that it has: generators cannot make a list that holds itself."""
    program = {"type": "array", "items": {"type": "array", "items": {}}, "minItems": 1}
    name = {"type": "string", "const": "choose"}
    return {
        "type": "array",
        "description": (
            "The name and several programs: the explorer takes every branch, the server draws from the VM's seed. "
            f"Choices nest {MAX_DEPTH} deep at most."
        ),
        "items": {"anyOf": [name, program]},
        "contains": name,
        "maxContains": 1,
        "minItems": 2,
    }


def _argument(step: str, name: str) -> dict[str, Any]:
    if name == "size":
        default = OPTIONAL_SIZE[step]
        return {"type": "integer", "enum": list(SIZES[step]), "default": default, "description": MEANS[name]}
    highest = LAST_PORT if name == "port" else 2**64 - 1
    return number_schema(highest) | {"description": MEANS[name]}
