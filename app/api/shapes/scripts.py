"""The schema of ioctl scripts: one component for each operation, told apart by ``op``, from the language's models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, RootModel
from pydantic.json_schema import models_json_schema

from kickstand.api.shapes.values import Count, number_schema, one_of
from kickstand.core.uapi import KVM_REGS, KVM_SREGS, MpState
from kickstand.scripts.language.operations import OPERATIONS

REF = "#/components/schemas/"
HEX = number_schema(0)["anyOf"][1]


class Script(RootModel[list[Any] | dict[str, Any]]):
    """A list of operations, or an object with that list as ``operations``."""

    @property
    def path(self) -> str:
        """Where in the body the list is."""
        return "operations." if isinstance(self.root, dict) else ""

    def __len__(self) -> int:
        """How many operations it has."""
        listed: Any = self.root.get("operations", []) if isinstance(self.root, dict) else self.root
        return len(listed) if hasattr(listed, "__len__") else 0


class ScriptResult(BaseModel):
    """What one operation answered, and what belongs to it: ``exit_reason``, ``hex``, ``regs``, ..."""

    model_config = ConfigDict(extra="allow")

    ret: Annotated[int, Field(ge=-1)]
    errno: str | None


class ScriptDone(BaseModel):
    """The operations' results in order. As NDJSON each is a line of its own."""

    results: list[ScriptResult]
    seq: Count


def components() -> dict[str, Any]:
    """``Script``, ``ScriptOperation``, and for each operation itself and its arguments."""
    _, given = models_json_schema(
        [(model, "validation") for model in set(OPERATIONS.values())], ref_template=f"{REF}{{model}}Args"
    )
    found = {
        f"{name}Args": {"description": f"Arguments: {name}."} | _accepting(schema)
        for name, schema in given["$defs"].items()
    }
    operations = {f"{model.__name__}Operation": _operation(op, model) for op, model in OPERATIONS.items()}
    by_name = {op: f"{REF}{model.__name__}Operation" for op, model in OPERATIONS.items()}
    listed = {"type": "array", "items": {"$ref": f"{REF}ScriptOperation"}}
    script = {"type": "object", "properties": {"operations": listed}, "required": ["operations"]}
    return found | operations | {
        "ScriptOperation": {
            "description": "One operation of an ioctl script; `op` tells which.",
            "oneOf": [{"$ref": ref} for ref in by_name.values()],
            "discriminator": {"propertyName": "op", "mapping": by_name},
        },
        "Script": {"description": Script.__doc__, "anyOf": [listed, script]},
    }  # fmt: skip


def _operation(op: str, model: type[BaseModel]) -> dict[str, Any]:
    args = {"$ref": f"{REF}{model.__name__}Args"}
    needed = any(field.is_required() for field in model.model_fields.values())
    return {
        "type": "object",
        "description": f"The operation `{op}`.",
        "properties": {"op": {"type": "string", "const": op}, "args": args, "result": {"type": ["object", "null"]}},
        "required": ["op", *(["args"] if needed else [])],
        "additionalProperties": False,
    }


def _accepting(schema: Any) -> Any:
    """As the language reads it: integers may be ``"0x..."``, and what a model cannot say is said."""
    if isinstance(schema, list):
        return [_accepting(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") == "integer":
        return _number(schema)
    accepted = {name: _accepting(value) for name, value in schema.items()}
    if "properties" in accepted:
        accepted["properties"] = {name: SPECIAL.get(name, value) for name, value in accepted["properties"].items()}
    return accepted


def _number(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Bounds behind a validator of our own come as the model has them."""
    lowest = max(schema.get("minimum", 0), schema.get("ge", 0), schema.get("gt", -1) + 1)
    highest = min(schema.get("maximum", 2**64 - 1), schema.get("le", 2**64), schema.get("lt", 2**64) - 1)
    return {"anyOf": [{"type": "integer", "minimum": lowest, "maximum": highest}, HEX]} | (
        {"default": schema["default"]} if "default" in schema else {}
    )


_U64 = number_schema(2**64 - 1)
SPECIAL: dict[str, Any] = {
    "program": {"$ref": f"{REF}Program"},
    "regs": {"type": "object", "propertyNames": one_of(KVM_REGS.names), "additionalProperties": _U64},
    "changes": {"type": "object", "propertyNames": one_of(KVM_SREGS.names), "default": {}},
    "only": {"type": "array", "items": one_of(KVM_SREGS.names)},
    "mp_state": {"anyOf": [one_of(MpState.__members__), *number_schema(2**32 - 1)["anyOf"]]},
    "request": {"anyOf": [*number_schema(2**32 - 1)["anyOf"], {"type": "string", "pattern": "^KVM_[A-Z0-9_]+$"}]},
}
