"""Plays many traces and compares every answer: with what was recorded, or with what another machine answers.

``replay`` is the whole of ``kickstand replay`` but for the printing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.scripts.backends import Backend, InProcess
from app.scripts.compare import Difference, compare, shorten
from app.scripts.http_player import OverHttp
from app.scripts.parse import Operation, plain
from app.scripts.player import Result
from app.scripts.reader import load
from app.scripts.script import LIMITS, ScriptLimits, Trace


@dataclass(frozen=True, slots=True)
class Failure:
    """The first operation of a trace whose answer is another."""

    trace: str
    number: int
    operation: Operation
    differences: tuple[Difference, ...]

    def lines(self) -> list[str]:
        """For a terminal: where, then each field."""
        (shown,) = plain([self.operation])
        args = shorten(json.dumps(shown["args"]))
        head = f"FAILED {self.trace}: operation {self.number}: {self.operation.op} {args}"
        return [head, *(f"    {difference}" for difference in self.differences)]

    def as_json(self) -> dict[str, Any]:
        """For a machine."""
        return {
            "trace": self.trace,
            "operation": self.number,
            **plain([self.operation])[0],
            "differences": [
                {"field": one.field, "expected": one.expected, "actual": one.actual} for one in self.differences
            ],
        }


@dataclass(slots=True)
class Summary:
    """What a replay came to."""

    passed: int = 0
    operations: int = 0
    failures: list[Failure] = field(default_factory=list)

    @property
    def failed(self) -> int:
        return len(self.failures)

    @property
    def line(self) -> str:
        """The last line: ``N passed, M failed``."""
        return f"{self.passed} passed, {self.failed} failed"

    def lines(self) -> list[str]:
        """The failures and the last line."""
        return [*(line for failure in self.failures for line in failure.lines()), self.line]

    def as_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "failed": self.failed,
            "operations": self.operations,
            "failures": [failure.as_json() for failure in self.failures],
        }


Progress = Callable[[Trace, Failure | None], None]


def _silent(_trace: Trace, _failure: Failure | None) -> None:
    """Report nothing."""


def replay(
    paths: Iterable[Path],
    *,
    engine: str | None = None,
    variant: str | None = None,
    url: str | None = None,
    token: str | None = None,
    against: str | None = None,
    started: Callable[[Sequence[Trace]], object] = len,
    progress: Progress = _silent,
    limits: ScriptLimits = LIMITS,
) -> Summary:
    """Play every script of files and folders.

    On a machine of this process with ``engine``, or on the server at ``url``. Compared with the recorded results,
    or with what the engine ``against`` answers. ``started`` is told what will be played, ``progress`` each trace
    when it is done. Raises ``ScriptError`` before anything is played, ``ServerError`` if the server refuses,
    ``KvmError`` if an engine cannot be used here.
    """
    traces = load(paths, limits)
    started(traces)
    backend: Backend = OverHttp(url, engine, variant, token=token) if url else InProcess(engine, variant)
    other = None if against is None else InProcess(against, variant)
    return asyncio.run(replay_traces(traces, backend, other, progress))


async def replay_traces(
    traces: Iterable[Trace], backend: Backend, other: Backend | None = None, progress: Progress = _silent
) -> Summary:
    """Play traces on ``backend`` and compare with what was recorded, or with what ``other`` answers."""
    summary = Summary()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(backend)
        if other is not None:
            await stack.enter_async_context(other)
        for trace in traces:
            failure = await replay_trace(trace, backend, other)
            summary.operations += len(trace.operations)
            summary.passed += failure is None
            if failure is not None:
                summary.failures.append(failure)
            progress(trace, failure)
    return summary


async def replay_trace(trace: Trace, backend: Backend, other: Backend | None = None) -> Failure | None:
    """Play one trace up to its first difference."""
    async with aclosing(backend.play(trace)) as answers, aclosing(_expected(trace, other)) as expected:
        for number, operation in enumerate(trace.operations):
            actual = await anext(answers)
            differences = compare(operation, await anext(expected), actual)
            if differences:
                return Failure(trace.id, number, operation, tuple(differences))
    return None


async def _expected(trace: Trace, other: Backend | None) -> AsyncGenerator[Result, None]:
    if other is None:
        for operation in trace.operations:
            yield dict(operation.result or {})
        return
    async with aclosing(other.play(trace)) as answers:
        async for answer in answers:
            yield answer
