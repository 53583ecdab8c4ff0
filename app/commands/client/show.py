"""How an answer is printed: one line of JSON for machines; for people names and values, and tables without frames."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, TypeGuard

GLYPHS = {"user": "·", "waiting": "…", "kernel": "k", "guest": "▶", "exiting": "◀", "halted": "z", "blocked": "■"}
NOTHING = "-"
WIDTH = 80


def show(answer: Any, *, as_json: bool = False) -> None:
    """Print an answer."""
    if as_json:
        print(json.dumps(answer))
    elif isinstance(answer, Mapping):
        print("\n".join(block(answer)))
    elif answer is not None:
        print(answer)


def block(answer: Mapping[str, Any]) -> Iterable[str]:
    """Names and values under each other; what has members of its own is indented below its name."""
    width = max((len(name) for name in answer), default=0)
    for name, value in answer.items():
        if isinstance(value, Mapping) and value:
            line = f"{name:<{width}}  {', '.join(f'{key} {plain(item)}' for key, item in value.items())}"
            if len(line) <= WIDTH and not any(isinstance(item, Mapping | list) for item in value.values()):
                yield line
                continue
            yield name
            yield from (f"  {line}" for line in block(value))
        elif _objects(value):
            yield f"{name:<{width}}  {len(value)}"
            yield from (f"  {line}" for line in lines_of(value))
        else:
            yield f"{name:<{width}}  {plain(value)}"


def plain(value: Any) -> str:
    """One value in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        numbers = len(value) > 1 and all(type(item) is int for item in value)
        return (ranges(value) if numbers else ", ".join(map(plain, value))) or NOTHING
    return NOTHING if value is None or value == {} else str(value)


def ranges(numbers: Sequence[int]) -> str:
    """1, 2, 3, 7 as ``1-3, 7 (4)``: a dirty log has thousands."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    told = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"{told} ({len(numbers)})"


def _objects(value: Any) -> TypeGuard[list[Mapping[str, Any]]]:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)


def lines_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Objects of one kind as a table: vCPUs in short, others by their simple members."""
    if all("mp_state" in row and "counters" in row for row in rows):
        return vcpu_table(rows)
    names = [name for name, value in rows[0].items() if not isinstance(value, Mapping) and not _objects(value)]
    return columns([names, *([plain(row.get(name)) for name in names] for row in rows)])


def columns(rows: Sequence[Sequence[str]], right: Iterable[int] = ()) -> list[str]:
    """Rows of equal length in columns without a frame, two spaces between; ``right``: columns of numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    numbers = set(right)
    return [
        "  ".join(
            cell.rjust(width) if at in numbers else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def vcpu_table(vcpus: Sequence[Mapping[str, Any]]) -> list[str]:
    """VCPUs as a table of at most 80 columns; the state is a glyph and a word, never a colour alone.

    What is the same and says nothing for all of them (no request, no thread) has no column.
    """
    heads = ["vcpu", "state", "mp_state", "last exit", "thread", "requests", "runs", "exits", "EINTR", "spins"]
    rows = [
        [
            str(vcpu["id"]),
            f"{GLYPHS.get(vcpu['state'], '?')} {vcpu['state']}",
            vcpu["mp_state"],
            vcpu["exit_reason"].removeprefix("KVM_EXIT_"),
            vcpu["thread"]["behaviour"] if vcpu["thread"] else NOTHING,
            " ".join(name.removeprefix("KVM_REQ_") for name in vcpu["requests"]) or NOTHING,
            *(short(vcpu["counters"][name]) for name in ("runs", "exits", "eintr", "spins")),
        ]
        for vcpu in vcpus
    ]
    kept = [at for at, head in enumerate(heads) if head not in ("mp_state", "thread", "requests") or _tells(rows, at)]
    table = [[row[at] for at in kept] for row in (heads, *rows)]
    return columns(table, right=[number for number, at in enumerate(kept) if at >= heads.index("runs")])


def _tells(rows: Sequence[Sequence[str]], at: int) -> bool:
    return any(row[at] not in (NOTHING, "RUNNABLE") for row in rows)


def short(count: int) -> str:
    """A count in at most five characters."""
    for unit in ("", "k", "M", "G"):
        if count < 10_000:  # noqa: PLR2004
            return f"{count}{unit}"
        count //= 1000
    return f"{count}T"


def console() -> Any:
    """The terminal as rich has it; a pipe or a file is as wide as what is printed, so that nothing is cut."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 1_000)
