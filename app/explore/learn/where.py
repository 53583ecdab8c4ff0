"""Where in the source a suspended thread is: the innermost function of its await chain that is not the explorer's."""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from types import CoroutineType
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]  # of the package: files in it are named from there
OWN = str(ROOT / "explore" / "evidence")


class Where(NamedTuple):
    """A function, its file, and the line that waits for the operation."""

    function: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.function} {self.file}:{self.line}"


def where(coroutine: Coroutine[Any, Any, Any]) -> Where | None:
    """The place of a suspended coroutine; None if it has ended."""
    found = None
    link: Any = coroutine
    while type(link) is CoroutineType and link.cr_frame is not None:
        code = link.cr_frame.f_code
        if not code.co_filename.startswith(OWN):
            found = Where(code.co_name, _short(code.co_filename), link.cr_frame.f_lineno)
        link = link.cr_await
    return found


def _short(name: str) -> str:
    path = Path(name)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else name
