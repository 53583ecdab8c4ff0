"""``kickstand explore`` as plain functions: run, print, export, replay. The command line only parses.

Every function returns the exit status: 0 done and nothing violated, 1 a cell is violated. ``Refused`` is wrong usage.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from concurrent.futures import Executor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from kickstand.core.errors import KvmError
from kickstand.explore.decide import MAX_STATES, Verdict
from kickstand.explore.evidence.replay import ReplayError
from kickstand.explore.evidence.tokens import Token, TokenError
from kickstand.explore.learn.automata import UnknownEffectError
from kickstand.explore.learn.plain import PlainStateError
from kickstand.explore.matrix import Matrix, Tick, process_pool, replay_run
from kickstand.explore.question import Question
from kickstand.explore.reports.gallery import gallery
from kickstand.explore.reports.printed import for_any_number, ledger_lines, totals, verdict_table
from kickstand.explore.reports.report import Violated, by_run, write
from kickstand.explore.reports.requirements import ledger_json
from kickstand.explore.world.scenarios import ScenarioError
from kickstand.explore.world.scenarios.files import FILES, in_file, load, oddities

__all__ = [
    "MAX_STATES",
    "Options",
    "Question",
    "Refused",
    "ReplayError",
    "print_gallery",
    "print_ledger",
    "replay_one",
    "run",
]
DONE, VIOLATED = 0, 1


class Refused(ValueError):
    """What was asked for cannot be explored or replayed; nothing was done."""


@dataclass(slots=True)
class Options:
    """What the user asked for, where it is computed, how it is told."""

    question: Question = Question()
    matrix: bool = False  # one table a behaviour and size, and no counterexamples
    cluster: str | None = None  # address of a Dask scheduler
    json: bool = False
    perfetto: Path | None = None  # write the first counterexample here, as a trace that Perfetto opens
    report: Path | None = None  # write a report for a mailing list into this folder


def check_size(scenario: str, vcpus: int | None, vmms: int) -> None:
    """Refuse numbers of threads that a scenario's file says itself, or cannot take. Raises ``Refused``."""
    try:
        fixed = in_file(scenario)
    except ScenarioError as error:
        raise Refused(str(error)) from error
    if fixed is None:
        return
    if vmms > 1:
        raise Refused(f"{scenario} names its VMM threads: --vmms is for the built-in scenarios")
    if vcpus and fixed and fixed != vcpus:
        raise Refused(f"{scenario} says how many vCPUs there are, {fixed}: leave --vcpus out")


def run(options: Options, console: Console | None = None) -> int:
    """Explore, print verdicts and counterexamples."""
    out = console or Console()
    try:
        cells = Matrix(options.question)
    except (ScenarioError, KvmError, ValueError, OSError) as error:
        raise Refused(str(error)) from error
    with _executor(options, len(cells.cells)) as executor:
        try:
            verdicts = _run(cells, executor, out, quiet=options.json)
        except (PlainStateError, ScenarioError, UnknownEffectError) as error:
            raise Refused(str(error)) from error
    if options.perfetto is not None:
        _write_perfetto(options.perfetto, verdicts)
    if options.report is not None:
        write(options.report, verdicts, whole=options.matrix)
    if options.json:
        out.print_json(json.dumps({"cells": [verdict.json() for verdict in verdicts]}))
    else:
        _print(verdicts, options, out)
    return VIOLATED if any(verdict.verdict == "violated" for verdict in verdicts) else DONE


def replay_one(token: str, console: Console | None = None, *, as_json: bool = False, model: str | None = None) -> int:
    """Perform a counterexample on the shipped runtime and say whether the property fell again."""
    out = console or Console()
    try:
        what, run, names = replay_run(token, model)
    except (TokenError, ScenarioError) as error:
        raise Refused(str(error)) from error
    if as_json:
        out.print_json(
            json.dumps(
                {
                    "scenario": what.scenario,
                    "variant": what.variant,
                    "behaviour": what.behaviour,
                    "vcpus": what.vcpus,
                    "vmms": what.vmms,
                    "property": what.schedule.prop,
                    "confirmed": True,
                    "operations": [[names[thread], name] for thread, name in run.log],
                    "where": [None if place is None else place._asdict() for place in run.places],
                }
            )
        )
        return VIOLATED
    for number, ((thread, name), place) in enumerate(zip(run.log, run.places, strict=True), 1):
        out.print(Text(f"{number:4}  {names[thread]:10} {name:24} {place or ''}".rstrip()), soft_wrap=True)
    out.print(
        Text(
            f"confirmed on the shipped runtime: {what.schedule.prop} is violated "
            f"({what.scenario if not what.vcpus else _where(what)})"
        )
    )
    return VIOLATED


def _where(what: Token) -> str:
    return f"{what.scenario}, {what.variant}, {what.behaviour}, {what.vcpus} vCPUs, {what.vmms} VMMs"


def print_ledger(console: Console | None = None, *, as_json: bool = False) -> int:
    """Print each requirement with what demonstrates it."""
    out = console or Console()
    if as_json:
        out.print_json(json.dumps(ledger_json()))
        return DONE
    for line in ledger_lines():
        out.print(Text(line), soft_wrap=True)
    return DONE


def print_gallery() -> int:
    """Print the defects of the posted patch as Markdown, column by column as found now."""
    sys.stdout.write(gallery())
    return DONE


# -- running -----------------------------------------------------------------------------------------------


class _executor:  # noqa: N801  # reads as a function
    """The executor that the options ask for, or None for this process."""

    def __init__(self, options: Options, cells: int) -> None:
        self.options = options
        self.cells = cells
        self.close: list[Any] = []

    def __enter__(self) -> Executor | None:
        if self.options.cluster is not None:
            distributed: Any = import_module("distributed")  # an optional extra, without types
            client = distributed.Client(self.options.cluster)
            self.close.append(client.close)
            executor: Executor = client.get_executor()
            return executor
        if self.options.question.workers > 1 and self.cells > 1:
            pool = process_pool(min(self.options.question.workers, self.cells))
            self.close.append(lambda: pool.shutdown(cancel_futures=True))
            return pool
        return None

    def __exit__(self, *error: object) -> None:
        for close in self.close:
            close()


def _run(cells: Matrix, executor: Executor | None, console: Console, *, quiet: bool) -> list[Verdict]:
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[search]}"),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
    )
    with bar:
        task = bar.add_task("exploring", total=len(cells.cells), search="")

        def report(tick: Tick) -> None:
            search = tick.search
            text = (
                ""
                if search is None
                else f"{search.states:,} states, frontier {search.frontier:,}, {search.rate:,.0f}/s"
            )
            bar.update(
                task,
                completed=tick.done,
                search=text,
                description=tick.cell.describe(),
            )

        return cells.run(executor, report)


def _oddities(question: Question) -> Iterable[str]:
    return oddities(load(question.scenario, question.vcpus[0])) if question.scenario.endswith(FILES) else ()


def _write_perfetto(path: Path, verdicts: list[Verdict]) -> None:
    found = next((verdict.counterexample for verdict in verdicts if verdict.counterexample), None)
    if found is not None:
        path.write_text(json.dumps(found.perfetto(), indent=1))


# -- printing ----------------------------------------------------------------------------------------------


def _print(verdicts: list[Verdict], options: Options, console: Console) -> None:
    groups: dict[tuple[str, int, int], list[Verdict]] = {}
    for verdict in verdicts:
        groups.setdefault((verdict.behaviour, verdict.vcpus, verdict.vmms), []).append(verdict)
    for (behaviour, vcpus, vmms), group in groups.items():
        title = f"{group[0].scenario}, {behaviour}, {vcpus} vCPU{'s' * (vcpus > 1)}, {vmms} VMM{'s' * (vmms > 1)}"
        title = title if vcpus else group[0].scenario
        for line in verdict_table(title, group):
            console.print(line, soft_wrap=True)
    if not options.matrix:
        for same in by_run(verdicts):
            _print_counterexample(same, console, options.question.scenario)
    notes = [f"note: {text}" for text in _oddities(options.question)]
    undecided = [verdict for verdict in verdicts if verdict.verdict == "undecided"]
    notes += [f"? {verdict.variant} {verdict.behaviour} {verdict.property}: {verdict.bound}" for verdict in undecided]
    for note in notes:
        console.print(Text(note), soft_wrap=True)
    for line in for_any_number(verdicts):
        console.print(line, soft_wrap=True)
    for line in totals(verdicts):
        console.print(line, soft_wrap=True)


def _print_counterexample(same: list[Violated], console: Console, scenario: str) -> None:
    (verdict, found), *others = same
    names = ", ".join(violated.property for violated, _ in same)
    console.print()
    where = f"{verdict.variant}, {verdict.behaviour}" if verdict.vcpus else verdict.scenario
    console.print(Text(f"{names}: {where}, {found.trail.steps} steps", style="bold"))
    console.print(Text(found.text(*(other.verdict for _, other in others))), soft_wrap=True, highlight=False)
    model = "" if verdict.vcpus else f"{scenario} "
    console.print(Text(f"   replay: kickstand explore {model}--replay {found.token}"), soft_wrap=True, highlight=False)
