"""Script files: ``.json``, ``.jsonl`` and either with ``.gz``, one by one or as folders with a ``meta.json``.

Files come from strangers: decompression, sizes, nesting and integers are bounded, and everything is checked
before the first operation of any file is played.
"""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from kickstand.scripts.language.errors import ScriptError
from kickstand.scripts.language.presets import PRESETS
from kickstand.scripts.language.script import LIMITS, ScriptLimits, Trace, parse_trace
from kickstand.scripts.language.values import SpecialRegisters

SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
META = "meta.json"
FORMAT = 1
STDIN = Path("-")
MAX_FILE = 64 << 20  # bytes after decompression
MAX_TRACES = 100_000
_SPECIAL: TypeAdapter[dict[str, Any]] = TypeAdapter(SpecialRegisters)


def load(paths: Iterable[Path], limits: ScriptLimits = LIMITS) -> list[Trace]:
    """Read and check every script of the files and folders. ``ScriptError`` for the first that is refused."""
    traces: list[Trace] = []
    for path in paths:
        for file in _files(path):
            for trace in read_file(file, limits):
                traces.append(trace)
                if len(traces) > MAX_TRACES:
                    raise ScriptError(f"more than {MAX_TRACES} traces")
    if not traces:
        raise ScriptError("there is no script in " + ", ".join(map(str, paths)))
    return traces


def read_file(file: Path, limits: ScriptLimits = LIMITS) -> Iterator[Trace]:
    """Yield the scripts of one file; the presets are those of the ``meta.json`` beside it."""
    presets = read_presets(file.parent / META)
    for number, value in enumerate(values(file)):
        trace = parse_trace(value, f"{'stdin' if file == STDIN else file.name}#{number}", presets, limits)
        yield replace(trace, file=file, number=number)


def read_presets(meta: Path) -> Mapping[str, Mapping[str, Any]]:
    """The presets of a folder, and the built-in ones where it has none of that name."""
    if not meta.is_file():
        return PRESETS
    value = _json(read_bounded(meta), str(meta))
    given = value.get("presets", {}) if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(given, dict):
        raise ScriptError("meta.json is an object with presets", trace=str(meta))
    if value.get("format", FORMAT) != FORMAT:
        raise ScriptError(f"format {value['format']!r} is not {FORMAT}", trace=str(meta), field="format")
    return PRESETS | {name: _preset(name, preset, str(meta)) for name, preset in given.items()}


def _preset(name: str, preset: object, meta: str) -> dict[str, Any]:
    try:
        return _SPECIAL.validate_python(preset)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(["presets", name, *map(str, first["loc"])])
        raise ScriptError(first["msg"].removeprefix("Value error, "), trace=meta, field=field) from None


def read_bounded(file: Path, limit: int = MAX_FILE) -> bytes:
    """Return a file's bytes, decompressed if its name ends in ``.gz``; more than ``limit`` bytes are refused."""
    if file == STDIN:
        return _bounded(_standard_input(limit), file, limit)
    try:
        with gzip.open(file) if file.name.endswith(".gz") else file.open("rb") as stream:
            data: bytes = stream.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ScriptError(f"cannot be read: {reason}", trace=str(file)) from error
    return _bounded(data, file, limit)


@cache
def _standard_input(limit: int) -> bytes:
    """What comes in; it comes once, and may be asked for again."""
    return sys.stdin.buffer.read(limit + 1)


def _bounded(data: bytes, file: Path, limit: int) -> bytes:
    if len(data) > limit:
        raise ScriptError(f"has more than {limit} bytes", trace=str(file))
    return data


def _files(path: Path) -> Sequence[Path]:
    if path == STDIN or not path.is_dir():
        return [path]
    return sorted(
        file for file in path.rglob("*") if file.name.endswith(SUFFIXES) and file.name != META and file.is_file()
    )


def values(file: Path) -> Iterator[object]:
    """Yield the JSON of each script of a file, unchecked."""
    data = read_bounded(file)
    if ".jsonl" in file.name or (file == STDIN and data[:1] == b"{" and b"\n{" in data):
        for number, line in enumerate(data.splitlines(), 1):
            if line.strip():
                yield _json(line, f"{file}:{number}")
        return
    value = _json(data, str(file))
    # A list is one script, unless its members are whole traces.
    if isinstance(value, list) and value and all(isinstance(item, dict) and "op" not in item for item in value):
        yield from value
    else:
        yield value


def _json(data: bytes, where: str) -> Any:
    try:
        return json.loads(data)
    except RecursionError:
        raise ScriptError("is nested too deeply", trace=where) from None
    except ValueError as error:  # bad JSON, bad UTF-8, an integer of thousands of digits
        raise ScriptError(f"is not JSON: {error}", trace=where) from None
