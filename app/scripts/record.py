"""Writes the answers of a replay into script files, where none are recorded yet.

What is recorded stays as it is: a file that was checked once is not changed by an emulator that answers otherwise.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kickstand.scripts.language.reader import STDIN, values
from kickstand.scripts.replay import Played


def record_into(played: Sequence[Played], output: Path | None = None) -> None:
    """Fill in what was answered: in the scripts' own files, or all of them, one a line, in ``output`` (``-``: stdout).

    A file is replaced as a whole, or not at all; scripts that failed are left alone. ``OSError``: it cannot be written.
    """
    files = {one.trace.file: _filled(one.trace.file, played) for one in played if one.trace.file is not None}
    if output is not None or STDIN in files:
        _write(output or STDIN, _lines(script for scripts in files.values() for script in scripts))
        return
    for file, scripts in files.items():
        _write(file, _lines(scripts) if ".jsonl" in file.name else _document(scripts))


def _filled(file: Path, played: Iterable[Played]) -> list[Any]:
    """The file's scripts as they were read, with the answers that they lacked."""
    scripts: list[Any] = list(values(file))
    for one in played:
        if one.trace.file == file and one.failure is None:
            for operation, answer in zip(_operations(scripts[one.trace.number]), one.answers, strict=True):
                if operation.get("result") is None:
                    operation["result"] = answer
    return scripts


def _operations(script: Any) -> list[dict[str, Any]]:
    found: Any = script.get("ops", script.get("operations")) if isinstance(script, dict) else script
    return list(found)


def _lines(scripts: Iterable[Any]) -> str:
    """A line a script."""
    return "".join(f"{json.dumps(script)}\n" for script in scripts)


def _document(scripts: Sequence[Any]) -> str:
    """One script, or a list of them."""
    return json.dumps(scripts[0] if len(scripts) == 1 else scripts, indent=1) + "\n"


def _write(file: Path, text: str) -> None:
    data = gzip.compress(text.encode(), mtime=0) if file.name.endswith(".gz") else text.encode()
    if file == STDIN:
        sys.stdout.write(text)
    elif file.exists() and not file.is_file():  # a pipe, a device
        file.write_bytes(data)
    else:
        _replace(file.resolve(), data)


def _replace(file: Path, data: bytes) -> None:
    made = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        made.write_bytes(data)
        if file.exists():
            shutil.copymode(file, made)
        made.replace(file)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from None
    finally:
        made.unlink(missing_ok=True)
