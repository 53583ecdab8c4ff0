"""Ratios, not times: two programs alternate in one process, CPU time of this thread, median and spread."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Ratio:
    """What one row of the table says."""

    row: str
    against: str
    ratio: float
    low: float
    high: float
    goal: str


def cpu_ns(program: Callable[[], None]) -> int:
    """CPU time of one call on this thread, in ns."""
    started = time.thread_time_ns()
    program()
    return time.thread_time_ns() - started


def compare(
    row: str, against: str, ours: Callable[[], None], theirs: Callable[[], None], *, goal: str, rounds: int = 9
) -> Ratio:
    """Run both alternately ``rounds`` times; the ratio of each pair, its median and quartiles."""
    ours(), theirs()
    ratios = sorted(cpu_ns(ours) / max(1, cpu_ns(theirs)) for _ in range(rounds))
    quarter = rounds // 4
    return Ratio(row, against, statistics.median(ratios), ratios[quarter], ratios[-1 - quarter], goal)


def report(ratios: list[Ratio]) -> None:
    """Print the rows as a table, or as JSON with --json."""
    if "--json" in sys.argv:
        print(json.dumps([asdict(ratio) for ratio in ratios]))
        return
    for ratio in ratios:
        spread = f"({ratio.low:.2f} .. {ratio.high:.2f})"
        print(f"{ratio.row:<48} {ratio.ratio:8.2f} {spread:<18} x {ratio.against:<28} {ratio.goal}")
