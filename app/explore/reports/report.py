"""A report for the list: the matrix, every violation as columns with its token; text that fits a mail, and HTML."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from pathlib import Path
from textwrap import wrap

from kickstand.explore.decide import Answer, Verdict
from kickstand.explore.evidence.columns import WIDTH
from kickstand.explore.evidence.counterexample import Counterexample
from kickstand.explore.matrix import run_cell
from kickstand.explore.question import Question
from kickstand.explore.reports.gallery import BARRIERS, WITHOUT, Barrier, without
from kickstand.explore.reports.printed import for_any_number

Violated = tuple[Verdict, Counterexample]
MARKS = {Answer.HOLDS: "holds", Answer.VACUOUS: "-", Answer.UNDECIDED: "?"}
READER = [{"op": "read_slots", "args": {"gpa": 0x1000}}]
LOCKCNT = {
    "name": "lockcnt",
    "vms": [{"memory_regions": [{"slot": 0, "gpa": 0x1000, "size": 0x1000}], "vcpus": 1, "program": [["spin"]]}],
    "vmms": [
        {"operations": [{"op": "kick"}, {"op": "resume"}]},
        {"name": "IOA", "loop": True, "operations": READER},
        {"name": "IOB", "loop": True, "operations": READER},
    ],
}
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>What the explorer found</title>
<style>body {{ font: 16px/1.5 sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem }}
pre {{ font: 13px/1.35 monospace; overflow-x: auto; background: #f6f7f9; color: #16191f; padding: 1rem }}</style>
{body}
</html>
"""


def by_run(verdicts: list[Verdict]) -> list[list[Violated]]:
    """Violations, those that one run shows together."""
    groups: list[list[Violated]] = []
    for verdict in verdicts:
        found = verdict.counterexample
        if found is None:
            continue
        for group in groups:
            first, shown = group[0]
            alike = (first.variant, first.behaviour, first.vcpus) == (verdict.variant, verdict.behaviour, verdict.vcpus)
            if alike and shown.same_run(found):
                group.append((verdict, found))
                break
        else:
            groups.append([(verdict, found)])
    return groups


def write(folder: Path, verdicts: list[Verdict], *, whole: bool = False) -> None:
    """Write ``report.txt`` and ``report.html`` into ``folder``, which is made. ``OSError`` if that fails.

    ``whole``: with what store buffers change, and the starvation of QEMU's lockcnt, which are looked for now.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sections = [*_sections(verdicts), *(appendices() if whole else ())]
    text = "\n\n".join(f"{title}\n{'=' * len(title)}\n\n{body}" for title, body in sections)
    (folder / "report.txt").write_text(text + "\n")
    body = "\n".join(f"<h2>{escape(title)}</h2>\n<pre>{escape(body)}</pre>" for title, body in sections)
    (folder / "report.html").write_text(PAGE.format(body=body))


def _sections(verdicts: list[Verdict]) -> Iterator[tuple[str, str]]:
    """Titles and texts."""
    yield "What was asked", _asked(verdicts)
    cells: dict[tuple[str, str, int, int], list[Verdict]] = {}
    for verdict in verdicts:
        cells.setdefault((verdict.scenario, verdict.behaviour, verdict.vcpus, verdict.vmms), []).append(verdict)
    for (scenario, behaviour, vcpus, vmms), group in cells.items():
        yield f"{scenario}, {behaviour}, {vcpus} vCPUs, {vmms} VMMs", _matrix(group)
    numbers = [line.plain for line in for_any_number(verdicts)]
    if numbers:
        yield "Any number of vCPUs", "\n".join(numbers).strip()
    for same in by_run(verdicts):
        (verdict, found), *others = same
        names = ", ".join(violated.property for violated, _ in same)
        tokens = "\n".join(f"   kickstand explore --replay {shown.token}" for _, shown in same)
        where = f"{verdict.variant}, {verdict.behaviour}, {verdict.vcpus} vCPUs, {verdict.vmms} VMMs"
        yield f"{names}: {where}", f"{found.text(*(other.verdict for _, other in others))}\n\n{tokens}"


def appendices() -> Iterator[tuple[str, str]]:
    """What a list asks next: titles and texts."""
    yield "What store buffers change (x86)", "\n\n".join(_barrier(barrier) for barrier in BARRIERS)
    source = json.dumps(LOCKCNT)
    (verdict,) = run_cell(
        Question("lockcnt", ("accel_blocker",), ("careless",), properties=("kick_returns",), scenario_source=source)
    )
    found = verdict.counterexample
    shown = "it was not found" if found is None else f"{found.text()}\n\n   kickstand explore --replay {found.token}"
    about = (
        "accel_ioctl_inhibit_begin waits until the count of ioctls is zero, and does not keep new ones from being "
        "counted while it is not: two threads whose ioctls overlap for ever starve it."
    )
    yield "QEMU's accel-blocker can be starved", "\n".join(wrap(about, WIDTH)) + f"\n\n{shown}"


def _barrier(barrier: Barrier) -> str:
    fallen = "; ".join(f"{variant}: {without(variant, barrier.name)}" for variant in WITHOUT)
    text = f"{barrier.name} ({barrier.where}) orders {barrier.orders}. Without it, in so many steps: {fallen}."
    return "\n".join(wrap(text.replace("`", ""), WIDTH))


def _asked(verdicts: list[Verdict]) -> str:
    counts = {answer: sum(verdict.verdict is answer for verdict in verdicts) for answer in Answer}
    text = (
        f"{len(verdicts)} questions: {', '.join(f'{count} {answer}' for answer, count in counts.items())}. "
        "'holds' is said only when every interleaving was looked at, endless loops included, for the configuration "
        f"that is named and under {_memory(verdicts)}; '-' means that what the property is about never occurs "
        "there; '?' that a bound was met. kick_returns, progress, resume_runs and signal_leaves assume that each "
        "thread that can always move does so in the end; livelock assumes nothing. Every violation below was "
        "confirmed on the shipped runtime, and replays with its token on the same code."
    )
    return "\n".join(wrap(text, WIDTH))


def _memory(verdicts: list[Verdict]) -> str:
    names = {"sc": "sequential consistency", "tso": "x86's memory order"}
    found = dict.fromkeys(verdict.memory for verdict in verdicts)
    return " and ".join(names.get(name, f"x86's memory order without {name.removeprefix('tso-')}") for name in found)


def _matrix(group: list[Verdict]) -> str:
    """A property a line: which variants keep it, and after how many steps it falls under the others."""
    lines = []
    for name in dict.fromkeys(verdict.property for verdict in group):
        answers = [verdict for verdict in group if verdict.property == name]
        cells = (f"{verdict.variant} {_cell(verdict)}" for verdict in answers)
        lines += wrap(", ".join(cells), WIDTH, initial_indent=f"{name:16} ", subsequent_indent=" " * 17)
    return "\n".join(lines)


def _cell(verdict: Verdict) -> str:
    found = verdict.counterexample
    return f"FALLS in {found.trail.steps}" if found else MARKS.get(verdict.verdict, str(verdict.verdict))
