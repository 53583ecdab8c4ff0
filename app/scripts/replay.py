"""Plays many traces and compares every answer: with what was recorded, or with what another machine answers.

``replay`` is the whole of ``kickstand replay`` but for the printing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kickstand.scripts.language.parse import Operation, plain
from kickstand.scripts.language.reader import load
from kickstand.scripts.language.script import LIMITS, ScriptLimits, Trace
from kickstand.scripts.play.backends import Backend, InProcess
from kickstand.scripts.play.compare import Difference, compare, shorten
from kickstand.scripts.play.forms import Result
from kickstand.scripts.play.http_player import OverHttp


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


@dataclass(frozen=True, slots=True)
class Played:
    """One trace that was played: its answers, how many of them were compared, and the first that differs."""

    trace: Trace
    answers: tuple[Result, ...]
    compared: int
    failure: Failure | None

    @property
    def operations(self) -> int:
        return len(self.answers)

    def lines(self) -> list[str]:
        """The answers for a terminal."""
        told = zip(self.trace.operations, self.answers, strict=False)
        return [f"{self.trace.id}: {number} {operation.op} {json.dumps(answer)}"
                for number, (operation, answer) in enumerate(told)]  # fmt: skip


@dataclass(slots=True)
class Summary:
    """What a replay came to."""

    played: list[Played] = field(default_factory=list)

    @property
    def failures(self) -> list[Failure]:
        return [one.failure for one in self.played if one.failure is not None]

    @property
    def failed(self) -> int:
        return len(self.failures)

    @property
    def unknown(self) -> list[Played]:
        """Those that there was nothing to compare with."""
        return [one for one in self.played if not one.compared]

    @property
    def passed(self) -> int:
        return len(self.played) - self.failed - len(self.unknown)

    @property
    def operations(self) -> int:
        return sum(one.operations for one in self.played)

    @property
    def compared(self) -> int:
        return sum(one.compared for one in self.played)

    @property
    def line(self) -> str:
        """The last line: ``N passed, M failed``, unless nothing could pass."""
        if self.played and not self.compared:
            return f"{len(self.played)} played, nothing compared: no answers are recorded (--record writes them)"
        return f"{self.passed} passed, {self.failed} failed"

    def lines(self, *, answers: bool = True) -> list[str]:
        """The failures, what was answered where nothing was recorded, how much was compared, the last line."""
        told = [line for failure in self.failures for line in failure.lines()]
        if answers:
            told += [line for one in self.unknown for line in one.lines()]
        if self.compared:
            unknown = f", {len(self.unknown)} scripts have no recorded answers" if self.unknown else ""
            told.append(f"compared {self.compared} of {self.operations} operations{unknown}")
        return [*told, self.line]

    def as_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "failed": self.failed,
            "operations": self.operations,
            "compared": self.compared,
            "failures": [failure.as_json() for failure in self.failures],
            "unrecorded": [{"trace": one.trace.id, "answers": list(one.answers)} for one in self.unknown],
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
            played = await replay_trace(trace, backend, other)
            summary.played.append(played)
            progress(trace, played.failure)
    return summary


async def replay_trace(trace: Trace, backend: Backend, other: Backend | None = None) -> Played:
    """Play one trace up to its first difference."""
    answers: list[Result] = []
    compared = 0
    async with aclosing(backend.play(trace)) as actual, aclosing(_expected(trace, other)) as expected:
        for number, operation in enumerate(trace.operations):
            answers.append(await anext(actual))
            wanted = await anext(expected)
            compared += wanted is not None
            differences = () if wanted is None else tuple(compare(operation, wanted, answers[-1]))
            if differences:
                failure = Failure(trace.id, number, operation, differences)
                return Played(trace, tuple(answers), compared, failure)
    return Played(trace, tuple(answers), compared, None)


async def _expected(trace: Trace, other: Backend | None) -> AsyncGenerator[Mapping[str, Any] | None, None]:
    """What each operation is to be answered; None where nobody knows."""
    if other is None:
        for operation in trace.operations:
            yield operation.result
        return
    async with aclosing(other.play(trace)) as answers:
        async for answer in answers:
            yield answer
