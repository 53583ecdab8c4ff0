"""A counterexample as one short word that replays it on any machine with the same code.

``ks1:<scenario>.<variant>.<behaviour>.<vcpus>x<vmms>:<model hash>:<schedule>``. The schedule says which property
fell, which thread performs each operation, and which branch each choice takes.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import inspect
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import app.core
from app.core.errors import KvmError
from app.core.variants import Variant, variant
from app.explore import scenarios, threads, world
from app.explore.properties import PROPERTIES
from app.explore.scenarios import Scenario
from app.guests import script

PREFIX = "ks1"
LARGEST = 1 << 20  # operations of a schedule, bytes of a scenario: a token is short, what it unpacks to need not be


class TokenError(ValueError):
    """The token cannot be replayed; the message says why."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """What a token carries besides the configuration."""

    prop: str
    threads: tuple[int, ...]  # who performs each operation
    choices: tuple[int, ...]
    loop: int = 0  # how many operations at the end repeat
    vcpu: int = 0  # the thread that the property is about


@dataclass(frozen=True, slots=True)
class Token:
    """A token taken apart; ``source`` is a user's scenario, which travels inside."""

    scenario: str
    variant: str
    behaviour: str
    vcpus: int
    vmms: int
    model: str
    schedule: Schedule
    source: dict[str, Any] | None = None


def model_hash(kind: type[Variant], scenario: Scenario) -> str:
    """Eight digits that change when the explored code does (comments and docstrings do not count)."""
    digest = hashlib.sha256()
    root = Path(app.core.__file__).parent
    for path in sorted(root.glob("*.py")):
        digest.update(_meaning(path).encode())
    for module in (script, threads, world, scenarios):
        digest.update(_meaning(_file(module)).encode())
    for base in kind.__mro__:
        if issubclass(base, Variant):
            digest.update(_meaning(_source(base)).encode())
    digest.update(json.dumps(scenario.source, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:8]


def _source(kind: type) -> Path:
    """The file of a class; a user's module is not among the imported ones, but its functions know."""
    for value in vars(kind).values():
        code = getattr(value, "__code__", None)
        if code is not None:
            return Path(code.co_filename)
    return Path(inspect.getfile(kind))


def _file(module: ModuleType) -> Path:
    return Path(module.__file__ or "")


@cache
def _meaning(path: Path) -> str:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            body[0].value.value = ""
    return ast.dump(tree)


def encode(scenario: Scenario, kind: type[Variant], behaviour: str, size: tuple[int, int], schedule: Schedule) -> str:
    """Return the token of a schedule."""
    name = f"~{_pack(json.dumps(scenario.source, default=str).encode())}" if scenario.source else scenario.name
    numbers = [list(PROPERTIES).index(schedule.prop), schedule.vcpu, schedule.loop]
    numbers += _runs(schedule.threads)
    numbers += _runs(schedule.choices)
    payload = _pack(b"".join(map(_varint, numbers)))
    return f"{PREFIX}:{name}.{kind.name}.{behaviour}.{size[0]}x{size[1]}:{model_hash(kind, scenario)}:{payload}"


def decode(token: str) -> Token:
    """Take a token apart. Raises ``TokenError`` if it is no token."""
    try:
        prefix, cell, model, payload = token.strip().split(":")
        name, kind, behaviour, size = cell.split(".")
        vcpus, _, vmms = size.partition("x")
        source = dict(json.loads(_unpack(name[1:]))) if name.startswith("~") else None
        numbers = _numbers(_unpack(payload))
        prop, vcpu, loop = (next(numbers) for _ in range(3))
        schedule = Schedule(list(PROPERTIES)[prop], _from_runs(numbers), _from_runs(numbers), loop, vcpu)
        count = (int(vcpus), int(vmms))
    except (ValueError, TypeError, IndexError, StopIteration, RuntimeError, zlib.error) as error:
        raise TokenError(f"this is no counterexample token ({str(error) or 'it is cut short'})") from None
    if prefix != PREFIX:
        raise TokenError(f"the token's format is {prefix!r}, this explorer reads {PREFIX!r}")
    return Token(
        name if source is None else str(source.get("name", "scenario")),
        kind,
        behaviour,
        *count,
        model,
        schedule,
        source,
    )


def check_code(token: Token, scenario: Scenario) -> type[Variant]:
    """Return the token's variant, or raise ``TokenError`` with the reason why it does not fit this code."""
    try:
        kind = variant(token.variant)
    except KvmError as error:
        raise TokenError(f"{error}; give --variant-module if it is your own") from None
    here = model_hash(kind, scenario)
    if here != token.model:
        raise TokenError(
            f"the code changed since this counterexample was found: its model is {token.model}, "
            f"here it is {here}; explore {token.scenario} with {token.variant} again"
        )
    return kind


def _runs(numbers: Sequence[int]) -> list[int]:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][0] == number:
            runs[-1][1] += 1
        else:
            runs.append([number, 1])
    return [len(runs), *(value for run in runs for value in run)]


def _from_runs(numbers: Any) -> tuple[int, ...]:
    values: list[int] = []
    for _ in range(next(numbers)):
        number, count = next(numbers), next(numbers)
        if len(values) + count > LARGEST:
            raise ValueError("its schedule is too long")
        values += [number] * count
    return tuple(values)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _numbers(data: bytes) -> Iterator[int]:
    number = shift = 0
    for byte in data:
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            yield number
            number = shift = 0


def _pack(data: bytes) -> str:
    squeezed = zlib.compress(data, 9)
    body = b"z" + squeezed if len(squeezed) < len(data) else b"r" + data
    return base64.urlsafe_b64encode(body).rstrip(b"=").decode()


def _unpack(text: str) -> bytes:
    body = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if body[:1] != b"z":
        return body[1:]
    unpacker = zlib.decompressobj()
    data = unpacker.decompress(body[1:], LARGEST)
    if not unpacker.eof:
        raise ValueError("it unpacks to too much, or is cut short")
    return data
