"""How far a long command is, for people who watch."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def replay_bar(
    *, enabled: bool
) -> Generator[tuple[Callable[[Sequence[Any]], object], Callable[[Any, Any], None]], None, None]:
    """A progress bar over traces, or nothing."""
    if not enabled:
        yield len, lambda _trace, _failure: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("replaying")
        yield lambda traces: bar.update(task, total=len(traces)), lambda _trace, _failure: bar.advance(task)
