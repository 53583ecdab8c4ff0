"""A counterexample as one short word that replays it on any machine with the same code.

``ks2:<scenario>.<variant>.<behaviour>.<vcpus>x<vmms>:<property>:<model hash>:<schedule>``. The schedule says which
thread performs each operation, and which branch each choice takes. The hash covers all code that decides.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import inspect
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import kickstand.core
from kickstand.core.errors import KvmError
from kickstand.core.variants import Variant, variant
from kickstand.explore.search.properties import PROPERTIES
from kickstand.explore.world.cell import Cell
from kickstand.explore.world.own import EVENTUALLY, NEVER, Own, Protocol
from kickstand.explore.world.scenarios import Scenario
from kickstand.explore.world.stores import MEMORIES, SC
from kickstand.guests import program, script

PREFIX = "ks2"
DECIDING = ("world", "learn", "search", "decide.py", "evidence/judge.py", "evidence/replay.py")  # what makes verdicts
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
    vcpu: int = 0  # the thread that the property is about; of a deadlock one more, and 0 if it is everybody's


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
    memory: str = SC


def model_hash(cell: Cell | Protocol) -> str:
    """Eight digits that change when code that decides does (comments, docstrings and columns do not count)."""
    digest = hashlib.sha256(_decides().encode())
    for base in cell.variant.__mro__:
        if issubclass(base, Variant):
            digest.update(_meaning(_source(base)).encode())
    if isinstance(cell, Protocol):
        digest.update(_meaning_of(cell.text).encode())
    digest.update(json.dumps(cell.scenario.source, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:8]


@cache
def _decides() -> str:
    """A hash of the explored code, and of the code that explores it."""
    digest = hashlib.sha256()
    here = Path(__file__).parents[1]
    for place in (
        Path(kickstand.core.__file__).parent,
        *(here / name for name in DECIDING),
        _file(program),
        _file(script),
    ):
        for path in _files(place):
            digest.update(_meaning(path).encode())
    return digest.hexdigest()


def _files(place: Path) -> list[Path]:
    """The sources there, but for variants: each is its own cells' matter."""
    files = [place] if place.suffix else sorted(place.rglob("*.py"))
    assert files, f"{place} has no code"
    return [file for file in files if file.parent.name != "variants"]


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
    return _meaning_of(path.read_text())


def _meaning_of(text: str) -> str:
    tree = ast.parse(text)
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


def encode(cell: Cell | Protocol, schedule: Schedule) -> str:
    """Return the token of a schedule."""
    source = cell.scenario.source
    name = f"~{_pack(json.dumps(source, default=str).encode())}" if source else cell.scenario.name
    numbers = [schedule.vcpu, schedule.loop]
    numbers += _runs(schedule.threads)
    numbers += _runs(schedule.choices)
    payload = _pack(b"".join(map(_varint, numbers)))
    where = f"{name}.{cell.variant.name}.{cell.behaviour}.{cell.vcpus}x{cell.vmms}"
    where += "" if cell.memory == SC else f".{cell.memory}"
    return f"{PREFIX}:{where}:{schedule.prop}:{model_hash(cell)}:{payload}"


def decode(token: str) -> Token:
    """Take a token apart. Raises ``TokenError`` if it is no token."""
    prefix = token.strip().partition(":")[0]
    if prefix != PREFIX and re.fullmatch(r"ks\d+", prefix):
        raise TokenError(f"the token's format is {prefix!r}, this explorer reads {PREFIX!r}")
    if prefix != PREFIX:
        raise TokenError(f"this is no counterexample token (it does not start with {PREFIX})")
    try:
        prefix, cell, prop, model, payload = token.strip().split(":")
        name, kind, behaviour, size, *more = cell.split(".")
        (memory,) = more or (SC,)
        vcpus, _, vmms = size.partition("x")
        source = dict(json.loads(_unpack(name[1:]))) if name.startswith("~") else None
        numbers = _numbers(_unpack(payload))
        vcpu, loop = next(numbers), next(numbers)
        schedule = Schedule(prop, _from_runs(numbers), _from_runs(numbers), loop, vcpu)
        count = (int(vcpus), int(vmms))
    except (ValueError, TypeError, IndexError, StopIteration, RuntimeError, zlib.error) as error:
        raise TokenError("this is no counterexample token (it is damaged or cut short)") from error
    if prop not in PROPERTIES and not prop.startswith((NEVER, EVENTUALLY)):
        raise TokenError(f"the token is about a property {prop!r}, which this explorer does not have")
    return Token(
        name if source is None else str(source.get("name", "scenario")),
        kind,
        behaviour,
        *count,
        model,
        schedule,
        source,
        memory,
    )


def check_model(token: Token, protocol: Protocol | None) -> Protocol:
    """Return the protocol that a token is about, or raise ``TokenError`` with the reason why it does not fit."""
    if protocol is None or token.variant != Own.name:
        about = f"{token.scenario}.py: name that file too" if protocol is None else f"{token.scenario}, no own protocol"
        raise TokenError(f"the token is about {about}")
    if model_hash(protocol) != token.model:
        raise TokenError(
            f"{protocol.path} or the explorer changed since this counterexample was found: explore it again"
        )
    return protocol


def check_code(token: Token, scenario: Scenario) -> Cell:
    """Return the token's cell, or raise ``TokenError`` with the reason why it does not fit this code."""
    try:
        kind = variant(token.variant)
    except KvmError as error:
        raise TokenError(f"{error}; give --variant-module if it is your own") from None
    if token.memory not in MEMORIES:
        raise TokenError(f"the token is about memory {token.memory!r}, which this explorer does not have")
    cell = Cell(scenario, kind, token.behaviour, token.vcpus, token.vmms, token.memory)
    here = model_hash(cell)
    if here != token.model:
        raise TokenError(
            f"the code changed since this counterexample was found: its model is {token.model}, "
            f"here it is {here}; explore {token.scenario} with {token.variant} again"
        )
    return cell


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
