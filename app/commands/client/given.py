"""Values on the command line: integers in any base, bytes as hex, JSON; each also from a file (``@FILE``) or ``-``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, TypeVar

import typer

T = TypeVar("T")
KINDS = {
    list: "a list", dict: "an object", str: "a string", int: "a number", float: "a number", bool: "true or false",
    type(None): "null",
}  # fmt: skip


def number(text: str | int) -> int:
    """An integer, decimal or 0x..."""
    try:
        return text if isinstance(text, int) else int(text, 0)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no number") from None


def hex_or_file(text: str | bytes) -> bytes:
    """Bytes as hex digits; ``@FILE`` and ``-`` give raw ones."""
    if isinstance(text, bytes):
        return text
    if text == "-":
        return sys.stdin.buffer.read()
    if text.startswith("@"):
        return Path(text[1:]).read_bytes()
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not hex; bytes from a file are @FILE, from standard input -") from None


def json_or_file(text: Any) -> Any:
    """JSON, or a file of it."""
    try:
        data = sys.stdin.buffer.read() if text == "-" else Path(text[1:]).read_bytes() if text[:1] == "@" else text
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        detail = "nested too deeply" if isinstance(error, RecursionError) else error
        raise typer.BadParameter(f"not JSON: {detail}; JSON from a file is @FILE, from standard input -") from None


def list_or_file(text: Any) -> list[Any]:
    """A list as JSON, or a file of it."""
    return _of_kind(list, "a list, [...]", json_or_file(text))


def object_or_file(text: Any) -> dict[str, Any]:
    """An object as JSON, or a file of it."""
    return _of_kind(dict, "an object, with names and values", json_or_file(text))


def _of_kind(kind: type[T], wanted: str, value: Any) -> T:
    if not isinstance(value, kind):
        raise typer.BadParameter(f"it is {wanted}, not {KINDS[type(value)]}")
    return value


def assignment(text: str) -> tuple[str, int]:
    """NAME=VALUE."""
    name, found, value = text.partition("=")
    if not found or not name:
        raise typer.BadParameter(f"{text!r} is not NAME=VALUE")
    return name, number(value)
