"""Ratios, not times: two programs alternate in one process, CPU time, median and spread, and a verdict.

A benchmark is a script: it builds a list of ``Ratio`` by ``compare`` (a ratio), ``measured`` (a figure of its own
unit) or ``skipped``, and gives it to ``report``. With ``--json`` it prints that list for ``run.py``.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

ROUNDS = 9


@dataclass(frozen=True)
class Goal:
    """A bound that a row's value is held against: ``sign`` is ``<=`` or ``>=``."""

    sign: str
    bound: float

    def met(self, value: float) -> bool:
        """Whether ``value`` is on the right side."""
        return value <= self.bound if self.sign == "<=" else value >= self.bound

    def __str__(self) -> str:
        return f"{self.sign} {self.bound:g}"


def at_most(bound: float) -> Goal:
    """The value may be ``bound`` or less."""
    return Goal("<=", bound)


def at_least(bound: float) -> Goal:
    """The value has to be ``bound`` or more."""
    return Goal(">=", bound)


@dataclass(frozen=True)
class Ratio:
    """One row of the table: a ratio, or a figure in a ``unit`` of its own; ``low`` and ``high`` are quartiles.

    ``verdict`` is ``met`` or ``missed``; with ``?`` where the quartiles lie on both sides of the goal, so that
    another run may say otherwise; empty without a goal; ``skipped`` with the reason in ``note``.
    """

    row: str
    against: str
    ratio: float | None
    low: float | None = None
    high: float | None = None
    goal: Goal | None = None
    unit: str = "x"
    note: str = ""
    verdict: str = ""


def judged(
    row: str, against: str, values: Sequence[float], goal: Goal | None = None, *, unit: str = "x", note: str = ""
) -> Ratio:
    """Make a row of the values of several rounds: median, quartiles, verdict."""
    ordered = sorted(values)
    quarter = len(ordered) // 4
    median, low, high = statistics.median(ordered), ordered[quarter], ordered[-1 - quarter]
    verdict = ""
    if goal is not None:
        verdict = "met" if goal.met(median) else "missed"
        if goal.met(low) != goal.met(high):
            verdict += "?"
    return Ratio(row, against, median, low, high, goal, unit, note, verdict)


def measured(
    row: str, values: float | Sequence[float], unit: str, goal: Goal | None = None, *, against: str = "", note: str = ""
) -> Ratio:
    """Make a row that is no ratio: one figure, or one of each round, in ``unit``."""
    return judged(row, against, [values] if isinstance(values, int | float) else values, goal, unit=unit, note=note)


def skipped(row: str, reason: str) -> Ratio:
    """Make a row that cannot be measured here."""
    return Ratio(row, "", None, note=reason, verdict="skipped")


def thread_ns() -> int:
    """CPU time of this thread: what a program on one event loop costs."""
    return time.thread_time_ns()


def process_ns() -> int:
    """CPU time of this process, all its threads together."""
    return time.process_time_ns()


def tree_ns() -> int:
    """CPU time of this process and of the children it has waited for; ticks of 10 ms for the children."""
    times = os.times()
    return time.process_time_ns() + round((times.children_user + times.children_system) * 1e9)


def cpu_ns(program: Callable[[], object], clock: Callable[[], int] | None = thread_ns) -> int:
    """CPU time of one call, in ns; without a clock the program says itself what it cost."""
    if clock is None:
        return int(program())
    started = clock()
    program()
    return clock() - started


def compare(
    row: str,
    against: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    *,
    goal: Goal | None = None,
    rounds: int = ROUNDS,
    clock: Callable[[], int] | None = thread_ns,
    scale: float = 1.0,
    faster: bool = False,
    note: str = "",
) -> Ratio:
    """Run both alternately ``rounds`` times after one round to warm up; the ratio ours / theirs of each pair.

    ``scale`` multiplies each ratio, for programs that do different amounts of work; ``faster`` turns the ratio
    round: how many times faster ours is. ``clock`` is the CPU time to look at: ``thread_ns``, ``process_ns`` for
    programs with threads, ``tree_ns`` for programs that start processes, None for programs that return their own
    figure (because they have to prepare each round).
    """
    ours(), theirs()
    pairs = [(cpu_ns(ours, clock), cpu_ns(theirs, clock)) for _ in range(rounds)]
    ratios = [scale * (max(1, them) / max(1, us) if faster else us / max(1, them)) for us, them in pairs]
    return judged(row, against, ratios, goal, note=note)


def table(rows: Sequence[Ratio]) -> str:
    """Lay the rows out as text."""
    lines = []
    for row in rows:
        if row.ratio is None:
            lines.append(f"{row.row:<56} {row.verdict}: {row.note}")
            continue
        spread = "" if row.low == row.high else f"({row.low:.3g} .. {row.high:.3g})"
        figure = f"{row.ratio:.3g} {row.unit}"
        goal = "" if row.goal is None else str(row.goal)
        lines.append(
            f"{row.row:<56} {figure:>12} {spread:<18} {row.against:<36} {goal:<8} {row.verdict:<8} {row.note}".rstrip()
        )
    return "\n".join(lines)


def report(rows: Sequence[Ratio]) -> None:
    """Print the rows as a table, or as JSON with --json."""
    print(json.dumps([asdict(row) for row in rows]) if "--json" in sys.argv else table(rows))
