"""Is an answer the recorded one? Field by field, with what the format calls soft left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kickstand.scripts.language import operations as ops
from kickstand.scripts.language.parse import Operation

RFLAGS = 0x0CD5 | 0x200 | 0x2  # the arithmetic flags, TF to DF, IF, and bit 1, which is always set
MISSING = "nothing"


@dataclass(frozen=True, slots=True)
class Difference:
    """One field that is not as it was."""

    field: str
    expected: object
    actual: object

    def __str__(self) -> str:
        return f"{self.field}: expected {_shown(self.expected)}, got {_shown(self.actual)}"


def compare(operation: Operation, expected: Mapping[str, Any], actual: Mapping[str, Any]) -> list[Difference]:
    """Return the fields of ``expected`` that ``actual`` does not repeat, in order."""
    differences: list[Difference] = []
    soft = _soft(operation, expected)
    for name, value in expected.items():
        if name not in soft:
            _compare(name, value, actual.get(name, MISSING), differences)
    return differences


def _soft(operation: Operation, expected: Mapping[str, Any]) -> frozenset[str]:
    """``exit_reason`` after a failed KVM_RUN is the kernel's word only when a signal ended it."""
    if operation.op not in ("run", "finish_run") or expected.get("ret") == 0:
        return frozenset()
    signalled = isinstance(operation.args, ops.Run) and operation.args.kick_after_ms is not None
    return frozenset() if signalled and expected.get("exit_reason") == "INTR" else frozenset({"exit_reason"})


def _compare(name: str, expected: object, actual: object, differences: list[Difference]) -> None:
    if isinstance(expected, Mapping) and isinstance(actual, Mapping):
        for key, value in expected.items():
            _compare(f"{name}.{key}", value, actual.get(key, MISSING), differences)
    elif not _equal(name, expected, actual):
        differences.append(Difference(name, expected, actual))


def _equal(name: str, expected: object, actual: object) -> bool:
    if name == "regs.rflags" and isinstance(expected, int) and isinstance(actual, int):
        return expected & RFLAGS == actual & RFLAGS
    return type(expected) is type(actual) and expected == actual


def shorten(text: str, width: int = 200) -> str:
    """At most ``width`` characters, for a terminal."""
    return text if len(text) <= width else f"{text[: width - 3]}..."


def _shown(value: object) -> str:
    number = isinstance(value, int) and not isinstance(value, bool)
    return hex(value) if number and value > 9 else shorten(repr(value))  # type: ignore[operator,arg-type]  # noqa: PLR2004
