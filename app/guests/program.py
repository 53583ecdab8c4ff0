"""The language of script guests: checking a program and flattening it into a list of steps.

In the flat list ``choose`` is a jump, so that where a guest is, is one number.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass

from kickstand.core.errors import KvmError
from kickstand.core.run.exits import IoExit

MAX_DEPTH = 16
LONGEST_NUMBER = 66  # characters: "0b" and 64 digits
MOST_STEPS = 4_096  # what is checked in a fiftieth of a second on a slow machine
LAST_PORT = 0xFFFF
ARGUMENTS = {
    "read": ("gpa", "size"),
    "write": ("gpa", "value", "size"),
    "compute": ("n",),
    "in": ("port", "size"),
    "out": ("port", "value", "size"),
    "fetch": ("gpa",),
    "hlt": (),
    "spin": (),
}
OPTIONAL_SIZE = {"read": 8, "write": 8, "in": 1, "out": 1}
SIZES = {"read": (1, 2, 4, 8), "write": (1, 2, 4, 8), "in": (1, 2, 4), "out": (1, 2, 4)}


@dataclass(frozen=True, slots=True)
class Step:
    """One compiled step; ``targets`` are where a ``choose`` or ``jump`` goes."""

    name: str
    address: int = 0  # gpa, port, or the amount of ``compute``
    size: int = 0
    value: int = 0
    targets: tuple[int, ...] = ()
    exit: IoExit | None = None  # of a step that always leaves in the same way


def compile_program(program: object) -> tuple[Step, ...]:
    """Check a program (design: the bare list of steps) and flatten it.

    Raises ``KvmError`` EINVAL that names the step by its path (``[2][1][0]``) and the rule.
    """
    steps: list[Step] = []
    _compile(program, "", 0, steps)
    return tuple(steps)


def _bad(path: str, rule: str) -> KvmError:
    return KvmError(errno.EINVAL, "program", f"step {path or 'list'}: {rule}", field=f"program{path}")


def _compile(program: object, path: str, depth: int, steps: list[Step]) -> None:
    if not isinstance(program, list | tuple) or not program:
        raise _bad(path, "a program is a list of at least one step")
    if depth > MAX_DEPTH:
        raise _bad(path, f"choices nest deeper than {MAX_DEPTH}")
    for index, step in enumerate(program):
        where = f"{path}[{index}]"
        if not isinstance(step, list | tuple) or not step or not isinstance(step[0], str):
            raise _bad(where, "a step is a list that starts with its name")
        if len(steps) >= MOST_STEPS:
            raise _bad(where, f"a program has at most {MOST_STEPS} steps")
        if step[0] == "choose":
            _compile_choose(step[1:], where, depth, steps)
        else:
            steps.append(_compile_step(step[0], step[1:], where))


def _compile_choose(branches: Sequence[object], path: str, depth: int, steps: list[Step]) -> None:
    if not branches:
        raise _bad(path, "choose needs at least one program")
    at = len(steps)
    steps.append(Step("choose"))
    targets: list[int] = []
    jumps: list[int] = []
    for index, branch in enumerate(branches):
        targets.append(len(steps))
        _compile(branch, f"{path}[{index + 1}]", depth + 1, steps)
        jumps.append(len(steps))
        steps.append(Step("jump"))
    for jump in jumps:
        steps[jump] = Step("jump", targets=(len(steps),))
    steps[at] = Step("choose", targets=tuple(targets))


def _compile_step(name: str, given: Sequence[object], path: str) -> Step:
    names = ARGUMENTS.get(name)
    if names is None:
        raise _bad(path, f"{name!r} is none of {', '.join([*ARGUMENTS, 'choose'])}")
    needed = len(names) - (name in OPTIONAL_SIZE)
    if not needed <= len(given) <= len(names):
        raise _bad(
            path, f"{name} takes {', '.join(names) or 'nothing'}{' (size may be left out)' * (name in OPTIONAL_SIZE)}"
        )
    values = {key: _number(value, key, path) for key, value in zip(names, given, strict=False)}
    size = values.get("size", OPTIONAL_SIZE.get(name, 0))
    if name in SIZES and size not in SIZES[name]:
        raise _bad(path, f"size {size} is none of {SIZES[name]}")
    address = values.get("gpa", values.get("port", values.get("n", 0)))
    if "port" in values and address > LAST_PORT:
        raise _bad(path, f"port {address:#x} is above {LAST_PORT:#x}")
    value = values.get("value", 0)
    if size and value >= 1 << 8 * size:
        raise _bad(path, f"value {value:#x} does not fit in {size} bytes")
    return Step(name, address, size, value, exit=_exit(name, address, size, value))


def _exit(name: str, port: int, size: int, value: int) -> IoExit | None:
    if name == "in":
        return IoExit("in", size, port)
    return IoExit("out", size, port, data=value.to_bytes(size, "little")) if name == "out" else None


def _number(value: object, key: str, path: str) -> int:
    if isinstance(value, str):
        if len(value) > LONGEST_NUMBER:
            raise _bad(path, f"{key} has more digits than 64 bits have")
        try:
            value = int(value, 0)
        except ValueError:
            raise _bad(path, f"{key} {value!r} is no number") from None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 64:
        raise _bad(path, f"{key} must be an integer from 0 to 2**64-1")
    return value
