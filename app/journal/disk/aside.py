"""What is damaged is kept aside, whole and with a sentence that says why: nothing is removed or overwritten."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping
from itertools import count
from pathlib import Path

FOLDER = "damaged"
REASON = "why.txt"
_UNFIT = re.compile(r"[^A-Za-z0-9_.-]+")


def keep_aside(
    state: Path, what: str, why: str, paths: Iterable[Path], texts: Mapping[str, bytes] | None = None
) -> Path:
    """Move ``paths``, as far as they are there, into a folder of their own beside ``texts``, and return the folder.

    ``OSError``: not all of it; what was not moved is where it was.
    """
    folder = _new_folder(state / FOLDER, f"{time.strftime('%Y%m%d-%H%M%S')}-{_fit(what)}")
    for name, data in {REASON: f"{why}\n".encode(), **(texts or {})}.items():
        _write(folder / _fit(name), data)
    for path in paths:
        if os.path.lexists(path):
            path.rename(folder / path.name)
    return folder


def _new_folder(parent: Path, name: str) -> Path:
    parent.mkdir(0o700, exist_ok=True)
    for number in count(1):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(0o700)
        except FileExistsError:
            continue
        return folder
    raise AssertionError


def _fit(name: str) -> str:
    return _UNFIT.sub("-", name)[:100]


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
