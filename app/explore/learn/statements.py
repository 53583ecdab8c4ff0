"""Which objects a statement about the world looks at: those that its function names, or a function that it calls."""

from __future__ import annotations

from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

from kickstand.explore.learn.objects import Proxy
from kickstand.explore.world.parts import Statement


def reads(statement: Statement) -> frozenset[int]:
    """The numbers of the objects that ``statement`` may look at."""
    found: set[int] = set()
    seen: set[int] = set()
    work: list[Any] = [statement]
    while work:
        value = work.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if type(value) is Proxy:
            found.add(value.index)
        elif isinstance(value, FunctionType):
            work += [value.__globals__[name] for name in _names(value.__code__) if name in value.__globals__]
            work += [cell.cell_contents for cell in value.__closure__ or ()]
        elif type(value) in (list, tuple):
            work += value
        elif type(value) is dict:
            work += value.values()
    return frozenset(found)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
