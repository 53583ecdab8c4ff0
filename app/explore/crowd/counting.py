"""C0: no operation tells three vCPUs from two. A number of vCPUs is compared with nothing but 0 and 1.

The search looks at small crowds; a threshold beyond them would not show. So the source of every common object is read:
where a field that vCPUs change is compared by order, or with a number above 1, or divided, the certificate is refused.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable, Iterator
from textwrap import dedent

from kickstand.core.atomics import Shared
from kickstand.explore.learn.knowledge import Knowledge
from kickstand.explore.learn.objects import Trap
from kickstand.explore.world.parts import Role

ORDER = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
HARMLESS = (ast.Add, ast.Sub, ast.BitOr)


def counting(knowledge: Knowledge, indices: Iterable[int]) -> str | None:
    """Which operation of the given objects counts vCPUs; None if none does."""
    changed = _changed(knowledge, set(indices))
    nodes = [node for automaton in knowledge.automata for node in automaton.nodes]
    used = frozenset(node.effect.name for node in nodes if type(node.effect) is Trap)
    for index, positions in changed.items():
        real = knowledge.objects.real[index]
        for method in _suspicious(type(real), frozenset(_fields(real, positions)), used):
            return f"C0: {knowledge.objects.names[index]}.{method} compares a number of vCPUs with more than 0 and 1"
    return None


def _changed(knowledge: Knowledge, indices: set[int]) -> dict[int, set[int]]:
    """Which parts of the objects' states vCPUs change."""
    changed: dict[int, set[int]] = {}
    vcpus = {number for number, thread in enumerate(knowledge.threads) if thread.role is Role.VCPU}
    traps = {node.effect for number in vcpus for node in knowledge.automata[number].nodes}
    for (trap, states), outcome in knowledge.objects.transitions():
        if trap not in traps or outcome is None:
            continue
        for index, old, new in zip(trap.involved, states, outcome.states, strict=True):
            if index in indices and old != new:
                known = knowledge.objects.states[index]
                parts = enumerate(zip(known[old], known[new], strict=True))
                changed.setdefault(index, set()).update(at for at, (one, other) in parts if one != other)
    return changed


def _fields(real: Shared, positions: set[int]) -> set[str]:
    """The attributes behind parts of a state; all of them where that cannot be told."""
    names = real.FIELDS or tuple(type(real).__slots__)
    if len(names) != len(real.state()):
        return {"*"}
    return {names[at] for at in positions}


def _suspicious(kind: type, fields: frozenset[str], used: frozenset[str]) -> tuple[str, ...]:
    """Methods that count: operations that are used, and whatever is no operation."""
    found = []
    for base in kind.__mro__:
        if base is Shared or not issubclass(base, Shared):
            continue
        try:
            tree = ast.parse(dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):
            return (base.__name__,)
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name in ("state", "load"):
                continue
            if node.name in used or not node.decorator_list:
                found += [node.name for _ in _counts(node, fields)]
    return tuple(found)


def _counts(function: ast.FunctionDef | ast.AsyncFunctionDef, fields: frozenset[str]) -> Iterator[ast.AST]:
    """Expressions in which a field's size or value matters by more than whether there is any."""
    local = {
        target.id
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and _reads(node.value, fields, set())
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(function):
        if isinstance(node, ast.Compare) and _reads(node, fields, local):
            parts = (node.left, *node.comparators)
            above = any(isinstance(part, ast.Constant) and _above_one(part.value) for part in parts)
            ordered = any(isinstance(operator, ORDER) for operator in node.ops)
            if above or (ordered and not any(_is_small(part) for part in parts)):
                yield node
        elif isinstance(node, ast.BinOp) and not isinstance(node.op, HARMLESS) and _reads(node.left, fields, set()):
            yield node


def _above_one(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and not -1 <= value <= 1


def _is_small(part: ast.expr) -> bool:
    return isinstance(part, ast.Constant) and part.value in (0, 1)


def _reads(node: ast.AST, fields: frozenset[str], local: set[str]) -> bool:
    """The expression reads one of the fields, or a local that was made of one."""
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and part.id in local:
            return True
        own = isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id == "self"
        if own and isinstance(part, ast.Attribute) and (part.attr in fields or "*" in fields):
            return True
    return False
