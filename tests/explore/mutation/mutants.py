"""Every small mistake that somebody may make in the protocol's code, one at a time.

A mutant is one function with one thing changed: a line dropped, a condition inverted or taken for granted, two
neighbouring lines swapped, a flag or a number or a name exchanged for its opposite. The function's code is replaced in
place, so that whoever has taken hold of it meets the mistake.
"""

from __future__ import annotations
import __future__

import ast
import copy
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from types import CodeType, FunctionType, ModuleType
from typing import Any

NOT_PROTOCOL = re.compile(r"\b(show|trace|_trace_slot|watched|trace_access|entered|counters|kept|detail|KvmError)\b")
OPPOSITES = {
    "READ": "WRITE",
    "srcu_read_lock": "srcu_read_unlock",
    "set_interruptible": "set_running",
    "enter": "leave",
    "test": "check",
    "MP_HALTED": "MP_RUNNABLE",
    "up_read": "up_write",
    "IN_GUEST_MODE": "OUTSIDE_GUEST_MODE",
    "EXIT": "AGAIN",
    "popleft": "pop",
    "append": "appendleft",
    "add": "discard",
}
OPPOSITES |= {other: one for one, other in OPPOSITES.items()}
COMPARISONS = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
SIMPLE = (ast.Expr, ast.Assign, ast.AugAssign, ast.Return, ast.Raise, ast.Break, ast.Continue)


@dataclass(frozen=True, slots=True)
class Mutant:
    """One function with one change. ``name`` says where and what; ``line`` is the line of the module that it is in."""

    name: str
    kind: str
    function: FunctionType
    line: int
    code: CodeType

    def plant(self) -> Callable[[], None]:
        """Put it in place; what is returned takes it out again."""
        before = self.function.__code__
        self.function.__code__ = self.code

        def mend() -> None:
            self.function.__code__ = before

        return mend


def functions_of(owner: type | ModuleType) -> Iterator[FunctionType]:
    """The functions that are written in a class or module."""
    for value in list(vars(owner).values()):
        plain = value.fget if isinstance(value, property) else value
        module = owner.__name__ if isinstance(owner, ModuleType) else owner.__module__
        if isinstance(plain, FunctionType) and plain.__module__ == module:
            yield plain


def mutants_of(function: FunctionType) -> Iterator[Mutant]:
    """All mutants of one function."""
    node = _node(function)
    where = f"{function.__module__.removeprefix('kickstand.core.')}.{function.__qualname__}"
    seen = {ast.dump(node)}
    for kind, line, what, changed in _changes(node):
        if ast.dump(changed) in seen:
            continue
        seen.add(ast.dump(changed))
        code = _compiled(function, changed)
        if code is not None:
            yield Mutant(f"{where}:{line}: {what}", kind, function, line, code)


@cache
def _module(module: str) -> dict[int, ast.AsyncFunctionDef | ast.FunctionDef]:
    source = inspect.getsource(importlib.import_module(module))
    return {
        node.lineno: node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef)
    }


def _node(function: FunctionType) -> Any:
    nodes = _module(function.__module__)
    first = function.__code__.co_firstlineno  # of its decorators, if it has any
    return next(nodes[line] for line in sorted(nodes) if line >= first)


def _compiled(function: FunctionType, node: Any) -> CodeType | None:
    """The code of the changed function, with the free variables of the one that it replaces."""
    node = copy.deepcopy(node)
    node.decorator_list = []
    free = function.__code__.co_freevars
    body: list[Any] = [node]
    if free:
        wrapper = ast.parse("def around(" + ", ".join(free) + "): pass").body[0]
        assert isinstance(wrapper, ast.FunctionDef)
        wrapper.body = body
        body = [wrapper]
    tree = ast.fix_missing_locations(ast.Module(body, []))
    flags = __future__.annotations.compiler_flag
    code = compile(tree, function.__code__.co_filename, "exec", flags, dont_inherit=True)
    found = _find(code, node.name)
    if (
        found is None
        or found.co_freevars != free
        or bool(found.co_flags & 0x80) != bool(function.__code__.co_flags & 0x80)
    ):
        return None
    return found.replace(co_qualname=function.__code__.co_qualname)


def _find(code: CodeType, name: str) -> CodeType | None:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_name == name:
                return constant
            inner = _find(constant, name)
            if inner is not None:
                return inner
    return None


# -- what can be changed -----------------------------------------------------------------------------------------


def _changes(node: Any) -> Iterator[tuple[str, int, str, Any]]:
    """(kind, line, what was done, the changed function)."""
    for path, statement in _statements(node):
        yield from _dropped(node, path, statement)
        yield from _conditions(node, path, statement)
    yield from _swapped(node)
    yield from _exchanged(node)


def _statements(node: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Each statement with the way to it: fields and positions."""

    def walk(here: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
        for name in ("body", "orelse", "finalbody", "handlers"):
            for at, child in enumerate(getattr(here, name, None) or ()):
                if isinstance(child, ast.stmt):
                    yield (*path, (name, at)), child
                if isinstance(child, ast.stmt | ast.ExceptHandler):
                    yield from walk(child, (*path, (name, at)))

    yield from walk(node, ())


def _at(node: Any, path: tuple[Any, ...]) -> Any:
    for name, at in path:
        node = getattr(node, name)[at]
    return node


def _with(node: Any, path: tuple[Any, ...], new: list[Any], count: int = 1) -> Any:
    changed = copy.deepcopy(node)
    *outer, (name, at) = path
    getattr(_at(changed, tuple(outer)), name)[at : at + count] = new
    return changed


def _text(node: Any) -> str:
    first, *_ = ast.unparse(node).splitlines()
    return first


def _is_protocol(statement: Any) -> bool:
    is_docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return not is_docstring and not NOT_PROTOCOL.search(_text(statement))


def _dropped(node: Any, path: tuple[Any, ...], statement: Any) -> Iterator[tuple[str, int, str, Any]]:
    if isinstance(statement, SIMPLE) and _is_protocol(statement):
        if isinstance(statement, ast.Assign) and _binds_locals(statement):
            return
        if path == (("body", len(node.body) - 1),) and isinstance(statement, ast.Return) and statement.value is None:
            return
        nothing = ast.copy_location(ast.Pass(), statement)
        yield "dropped", statement.lineno, f"no `{_text(statement)}`", _with(node, path, [nothing])
    if isinstance(statement, ast.Try) and statement.finalbody:
        yield "dropped", statement.lineno, "no try", _with(node, path, list(statement.body))


def _binds_locals(statement: ast.Assign) -> bool:
    """Without it the function would only fail."""
    names = [target for target in ast.walk(statement) if isinstance(getattr(target, "ctx", None), ast.Store)]
    return all(isinstance(target, ast.Name | ast.Tuple | ast.Starred) for target in names)


def _conditions(node: Any, path: tuple[Any, ...], statement: Any) -> Iterator[tuple[str, int, str, Any]]:
    if isinstance(statement, ast.If | ast.While) and not isinstance(statement.test, ast.Constant):
        test = statement.test
        new = [
            ("inverted", ast.UnaryOp(ast.Not(), test)),
            ("never", ast.Constant(False)),
            ("always", ast.Constant(True)),
        ]
        if isinstance(statement, ast.While):
            new = new[:2]  # one that is always true is no mistake that can be looked at
        for kind, condition in new:
            changed = copy.copy(statement)
            changed.test = ast.copy_location(condition, test)
            yield kind, statement.lineno, f"{kind}: {_text(statement)}", _with(node, path, [changed])
        if isinstance(statement, ast.While):
            once = ast.copy_location(ast.If(test, statement.body, []), statement)
            yield "once", statement.lineno, f"if, not while: {_text(statement)}", _with(node, path, [once])


def _swapped(node: Any) -> Iterator[tuple[str, int, str, Any]]:
    for path, statement in _statements(node):
        *outer, (name, at) = path
        siblings = getattr(_at(node, tuple(outer)), name)
        if at + 1 == len(siblings):
            continue
        after = siblings[at + 1]
        ends = (ast.Return, ast.Raise, ast.Break, ast.Continue)
        if (
            isinstance(statement, ends)
            or isinstance(after, ends)
            or not (_is_protocol(statement) and _is_protocol(after))
        ):
            continue
        if _names(statement, ast.Store) & _names(after, ast.Load) or _names(after, ast.Store) & _names(
            statement, ast.Load
        ):
            continue
        if not (_has_effect(statement) and _has_effect(after)):
            continue
        if "self.changed" in _text(statement) + _text(after) and not _awaits(statement, after):
            continue  # nobody who is woken runs before the operation is over
        what = f"`{_text(after)}` before `{_text(statement)}`"
        yield "swapped", statement.lineno, what, _with(node, path, [after, statement], 2)


def _names(statement: Any, context: type) -> set[str]:
    return {name.id for name in ast.walk(statement) if isinstance(name, ast.Name) and isinstance(name.ctx, context)}


def _has_effect(statement: Any) -> bool:
    return any(isinstance(part, ast.Await | ast.Call | ast.AugAssign) for part in ast.walk(statement)) or any(
        isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store) for part in ast.walk(statement)
    )


def _awaits(*statements: Any) -> bool:
    return any(isinstance(part, ast.Await) for statement in statements for part in ast.walk(statement))


def _exchanged(node: Any) -> Iterator[tuple[str, int, str, Any]]:
    """Flags, numbers, names and comparisons inside expressions."""
    for statement in (child for _, child in _statements(node) if isinstance(child, ast.stmt)):
        if not _is_protocol(statement):
            continue
        for part in _parts(statement):
            for kind, what, new in _replacements(part):
                yield kind, statement.lineno, f"{what} in `{_text(statement)}`", _replaced(node, part, new)


def _parts(statement: Any) -> Iterator[Any]:
    """The expressions of a statement, without those of statements inside it."""
    for child in ast.iter_child_nodes(statement):
        if isinstance(child, ast.expr | ast.keyword | ast.withitem):
            yield from ast.walk(child)


def _replacements(part: Any) -> Iterator[tuple[str, str, Any]]:
    """What stands in an expression, exchanged for its opposite."""
    if isinstance(part, ast.Constant):
        yield from _constants(part)
    elif isinstance(part, ast.Compare) and len(part.ops) == 1 and type(part.ops[0]) in COMPARISONS:
        new = ast.Compare(part.left, [COMPARISONS[type(part.ops[0])]()], part.comparators)
        yield "comparison", f"`{ast.unparse(new)}`", new
    elif isinstance(part, ast.BoolOp):
        yield from _parts_of_conditions(part)
    elif isinstance(part, ast.UnaryOp) and isinstance(part.op, ast.Not):
        yield "inverted", f"no not before `{ast.unparse(part.operand)}`", part.operand
    elif isinstance(part, ast.BinOp) and isinstance(part.op, ast.Add | ast.Sub):
        adds = isinstance(part.op, ast.Add)
        yield (
            "number",
            "- for +" if adds else "+ for -",
            ast.BinOp(part.left, ast.Sub() if adds else ast.Add(), part.right),
        )
    elif isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load) and part.id in OPPOSITES:
        yield "name", f"{OPPOSITES[part.id]} for {part.id}", ast.Name(OPPOSITES[part.id], ast.Load())
    elif isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Load) and part.attr in OPPOSITES:
        other = OPPOSITES[part.attr]
        yield "name", f"{other} for {part.attr}", ast.Attribute(part.value, other, ast.Load())


def _constants(part: ast.Constant) -> Iterator[tuple[str, str, Any]]:
    if isinstance(part.value, bool):
        yield "flag", f"{not part.value} for {part.value}", ast.Constant(not part.value)
    elif isinstance(part.value, int):
        yield "number", f"{part.value + 1} for {part.value}", ast.Constant(part.value + 1)


def _parts_of_conditions(part: ast.BoolOp) -> Iterator[tuple[str, str, Any]]:
    new = ast.BoolOp(ast.Or() if isinstance(part.op, ast.And) else ast.And(), part.values)
    yield "and/or", f"`{ast.unparse(new)}`", new
    for at in range(len(part.values)):
        left = part.values[:at] + part.values[at + 1 :]
        without = left[0] if len(left) == 1 else ast.BoolOp(part.op, left)
        yield "part of a condition", f"without `{ast.unparse(part.values[at])}`", without


def _replaced(node: Any, part: Any, new: Any) -> Any:
    changed = copy.deepcopy(node)
    pairs = zip(ast.walk(node), ast.walk(changed), strict=True)
    old = next(copied for here, copied in pairs if here is part)
    return _Replace(old, copy.deepcopy(new)).visit(changed)


class _Replace(ast.NodeTransformer):
    def __init__(self, old: Any, new: Any) -> None:
        self.old, self.new = old, new

    def visit(self, node: Any) -> Any:
        return ast.copy_location(self.new, node) if node is self.old else self.generic_visit(node)
