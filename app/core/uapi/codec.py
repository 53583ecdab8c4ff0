"""All bytes of a C structure at once: ``struct`` does in one call what its fields would do one by one.

Only what is plain goes this way: every field there, every number in its range. Anything else raises, and the caller
takes the way field by field, which knows what to say about it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from struct import Struct as Packed
from typing import Any

Build = Callable[[Sequence[Any]], Any]
Flatten = Callable[[Any], Iterable[Any]]
Leaf = tuple[str, Build, Flatten, int]
"""The format of a kind, what makes its value from unpacked numbers, what takes it apart again, how many they are."""

_CODES = {1: "B", 2: "H", 4: "I", 8: "Q"}


def number(size: int, *, signed: bool) -> Leaf:
    """One integer."""
    code = _CODES[size]
    return code.lower() if signed else code, _first, _alone, 1


def raw(size: int) -> Leaf:
    """Bytes; all of them have to be given."""

    def flatten(value: Any) -> Iterable[Any]:
        if len(value) != size:
            raise ValueError(size)
        return (value,)

    return f"{size}s", _first, flatten, 1


def array(item: Leaf, count: int) -> Leaf:
    """As many of one kind; all of them have to be given."""
    code, build, flatten, width = item

    def made(values: Sequence[Any]) -> list[Any]:
        return [build(values[at : at + width]) for at in range(0, len(values), width)]

    def taken_apart(value: Any) -> Iterable[Any]:
        if len(value) != count:
            raise ValueError(count)
        return [number for one in value for number in flatten(one)]

    return code * count, made, taken_apart, count * width


def record(members: Sequence[tuple[str, Leaf]], padded: str) -> Leaf:
    """A structure of named members; ``padded`` is its format with the padding in it."""
    names = [name for name, _ in members]
    total = sum(leaf[3] for _, leaf in members)
    if all(leaf[1] is _first for _, leaf in members):
        return padded, _zipped(names), _picked(names, [leaf[2] for _, leaf in members]), total
    spans: list[tuple[str, Build, slice]] = []
    at = 0
    for name, (_, build, _, width) in members:
        spans.append((name, build, slice(at, at + width)))
        at += width

    def made(values: Sequence[Any]) -> dict[str, Any]:
        return {name: build(values[span]) for name, build, span in spans}

    def taken_apart(value: Mapping[str, Any]) -> Iterable[Any]:
        if len(value) != len(names):
            raise ValueError(len(names))
        return [number for name, leaf in members for number in leaf[2](value[name])]

    return padded, made, taken_apart, total


def codec(leaf: Leaf) -> tuple[Callable[[bytes], Any], Callable[[Any], bytes]]:
    """What unpacks and what packs it. Packing raises whatever it stumbles over."""
    code, build, flatten, _ = leaf
    packed = Packed(f"<{code}")
    return lambda data: build(packed.unpack(data)), lambda value: packed.pack(*flatten(value))


def _first(values: Sequence[Any]) -> Any:
    return values[0]


def _alone(value: Any) -> Iterable[Any]:
    return (value,)


def _zipped(names: list[str]) -> Build:
    return lambda values: dict(zip(names, values, strict=True))


def _picked(names: list[str], flattens: list[Flatten]) -> Flatten:
    pick: Callable[[Any], Any] = itemgetter(*names)
    plain = all(flatten is _alone for flatten in flattens)

    def taken_apart(value: Mapping[str, Any]) -> Iterable[Any]:
        if len(value) != len(names) or not plain:
            raise ValueError(len(names))
        return (pick(value),) if len(names) == 1 else pick(value)

    return taken_apart
