"""The hooks of a user's variant, checked when its file is loaded: names that are near misses, and what they take."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from difflib import get_close_matches

LIKE = 0.8  # how alike a name has to be to a hook's for it to be a slip of the pen


def wrong_hooks(kind: type, base: type) -> Iterator[str]:
    """Say what is wrong with the methods of ``kind``: one sentence each."""
    hooks = {name: value for name, value in vars(base).items() if inspect.isfunction(value) and name[0] != "_"}
    for name, value in vars(kind).items():
        if name.startswith("_") or not inspect.isfunction(value):
            continue
        if name in hooks:
            yield from _wrong_signature(name, value, hooks[name])
        elif not any(name in vars(other) for other in kind.__mro__[1:]):
            near = get_close_matches(name, hooks, 1, LIKE)
            if near:
                yield f"{name} is no hook; did you mean {near[0]}?"


def _wrong_signature(name: str, own: object, hook: object) -> Iterator[str]:
    wanted, given = inspect.signature(hook), inspect.signature(own)  # type: ignore[arg-type]
    try:
        named = [name for name, parameter in wanted.parameters.items() if parameter.kind is parameter.KEYWORD_ONLY]
        given.bind(*(name for name in wanted.parameters if name not in named), **dict.fromkeys(named))
    except TypeError:
        takes, called = (", ".join(signature.parameters) for signature in (given, wanted))
        yield f"{name}({takes}) is called as {name}({called})"
        return
    if inspect.iscoroutinefunction(hook) and not inspect.iscoroutinefunction(own):
        yield f"{name} is awaited: write async def {name}"
