"""From JSON to an operation, with the number and the field in every complaint; and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from kickstand.scripts.language.errors import ScriptError
from kickstand.scripts.language.operations import OPERATIONS, Args


@dataclass(frozen=True, slots=True)
class Operation:
    """One step of a script; ``result`` is what was recorded, if anything was."""

    op: str
    args: Args
    result: Mapping[str, Any] | None = None


def parse_operation(value: object, number: int = 0) -> Operation:
    """Check one operation by itself. ``ScriptError`` names its number and field."""
    if not isinstance(value, dict):
        raise ScriptError("an operation is an object with op and args", operation=number)
    if unknown := sorted(set(value) - {"op", "args", "result"}, key=str):
        raise ScriptError("an operation has op, args and result only", operation=number, field=str(unknown[0]))
    op, args, result = value.get("op"), value.get("args", {}), value.get("result")
    model = OPERATIONS.get(op) if isinstance(op, str) else None
    if model is None:
        raise ScriptError(f"unknown operation {_short(op)}", operation=number, field="op")
    if not isinstance(args, dict):
        raise ScriptError("args is an object", operation=number, op=op, field="args")
    if result is not None and not isinstance(result, dict):
        raise ScriptError("result is an object", operation=number, op=op, field="result")
    try:
        return Operation(str(op), model.model_validate(args), result)
    except ValidationError as error:
        raise _explain(error, number, str(op)) from None


def parse_operations(values: object) -> list[Operation]:
    """Check every operation of a list by itself; ``script.check`` then looks at them together."""
    return list(parse_each(values))


def parse_each(values: object) -> Iterator[Operation]:
    """``parse_operations``, one by one."""
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise ScriptError("a script is a list of operations")
    return (parse_operation(value, number) for number, value in enumerate(values))


def plain(operations: Iterable[Operation]) -> list[dict[str, Any]]:
    """Operations as JSON has them, recorded results included."""
    return [
        {
            "op": operation.op,
            "args": operation.args.model_dump(exclude_none=True, exclude_unset=True),
            **({} if operation.result is None else {"result": dict(operation.result)}),
        }
        for operation in operations
    ]


def _explain(error: ValidationError, number: int, op: str) -> ScriptError:
    first = error.errors(include_url=False, include_context=False)[0]
    field = "args." + ".".join(map(str, first["loc"])) if first["loc"] else "args"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] not in ("missing", "value_error"):
        message += f": {_short(first['input'])}"
    return ScriptError(message, operation=number, op=op, field=field)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."  # noqa: PLR2004  a line of a terminal
