"""``kickstand explore`` as plain functions: run, print, export, replay. The command line only parses.

Every function returns the exit status: 0 done and nothing violated, 1 a cell is violated, 2 wrong usage.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import Executor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from app.core.errors import KvmError
from app.core.variants import summary, variants
from app.explore.campaign import Matrix, Tick, matrix, process_pool, replay_token
from app.explore.decide import MAX_STATES, Verdict
from app.explore.gallery import gallery
from app.explore.ledger import LEDGER, ledger_json
from app.explore.properties import PROPERTIES
from app.explore.replay import ReplayError
from app.explore.scenarios import ScenarioError
from app.explore.tokens import TokenError

DONE, VIOLATED, USAGE = 0, 1, 2
GLYPHS = {"holds": ("✓ holds", "green"), "violated": ("✗ violated", "red"), "undecided": ("? undecided", "yellow")}


@dataclass(slots=True)
class Options:
    """What the user asked for; empty tuples mean all."""

    scenario: str = "merge"
    variants: tuple[str, ...] = ()
    behaviours: tuple[str, ...] = ()
    vcpus: int | None = None
    vmms: int = 1
    properties: tuple[str, ...] = ()
    matrix: bool = False  # one table a behaviour and size, and no counterexamples
    workers: int = 1
    cluster: str | None = None  # address of a Dask scheduler
    strategy: str = "states"
    max_states: int = MAX_STATES
    seed: int = 0
    variant_module: str | None = None
    json: bool = False
    perfetto: Path | None = None  # write the first counterexample here, as a trace that Perfetto opens


def run(options: Options, console: Console | None = None) -> int:
    """Explore, print verdicts and counterexamples."""
    out = console or Console()
    try:
        matrices = [
            matrix(
                options.scenario,
                options.variants,
                options.behaviours,
                vcpus,
                options.vmms,
                options.properties,
                options.strategy,
                options.max_states,
                options.seed,
                options.variant_module,
                options.workers,
            )
            for vcpus in sizes(options)
        ]
    except (ScenarioError, KvmError, ValueError, OSError) as error:
        return refuse(out, str(error))
    cells = Matrix([cell for part in matrices for cell in part.cells])
    with _executor(options, len(cells.cells)) as executor:
        verdicts = _run(cells, executor, out, quiet=options.json)
    if options.perfetto is not None:
        _write_perfetto(options.perfetto, verdicts)
    if options.json:
        out.print_json(json.dumps({"cells": [verdict.json() for verdict in verdicts]}))
    else:
        _print(verdicts, options, out)
    return VIOLATED if any(verdict.verdict == "violated" for verdict in verdicts) else DONE


def sizes(options: Options) -> tuple[int, ...]:
    """The numbers of vCPUs to explore: with ``--matrix`` and no number, one and two."""
    if options.vcpus is not None:
        return (options.vcpus,)
    return (1, 2) if options.matrix else (1,)


def replay_one(token: str, console: Console | None = None, *, as_json: bool = False) -> int:
    """Perform a counterexample on the shipped runtime and say whether the property fell again."""
    out = console or Console()
    try:
        what, log, names = replay_token(token)
    except TokenError as error:
        return refuse(out, str(error))
    except ReplayError as error:
        out.print(Text(f"internal error: {error}", style="red"))
        return USAGE
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
                    "operations": [[names[thread], name] for thread, name in log],
                }
            )
        )
        return VIOLATED
    for number, (thread, name) in enumerate(log, 1):
        out.print(Text(f"{number:4}  {names[thread]:10} {name}"), soft_wrap=True)
    out.print(
        Text(
            f"confirmed on the shipped runtime: {what.schedule.prop} is violated "
            f"({what.scenario}, {what.variant}, {what.behaviour}, {what.vcpus} vCPUs, {what.vmms} VMMs)"
        )
    )
    return VIOLATED


def print_ledger(console: Console | None = None, *, as_json: bool = False) -> int:
    """Print each requirement with what demonstrates it."""
    out = console or Console()
    if as_json:
        out.print_json(json.dumps(ledger_json()))
        return DONE
    table = Table(title="Requirements", show_lines=False)
    for column in ("id", "what", "shown by"):
        table.add_column(column)
    for entry in LEDGER:
        table.add_row(entry.id, entry.what, "\n".join(map(str, entry.shown_by)))
    out.print(table)
    return DONE


def print_gallery() -> int:
    """Print the defects of the posted patch as Markdown, column by column as found now."""
    sys.stdout.write(gallery())
    return DONE


def refuse(console: Console, reason: str) -> int:
    """Say why nothing was done."""
    console.print(Text(reason, style="red"), soft_wrap=True)
    return USAGE


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
        if self.options.workers > 1 and self.cells > 1:
            pool = process_pool(min(self.options.workers, self.cells))
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
                description=f"{tick.cell.scenario} {tick.cell.variant} {tick.cell.behaviour} {tick.cell.vcpus} vCPU",
            )

        return cells.run(executor, report)


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
        console.print(_table(title, group))
    if not options.matrix:
        for verdict in verdicts:
            _print_counterexample(verdict, console)
    for verdict in verdicts:
        if verdict.verdict == "undecided":
            console.print(
                Text(f"? {verdict.variant} {verdict.behaviour} {verdict.property}: {verdict.bound}"), soft_wrap=True
            )
    console.print(
        Text(
            f"{_count(verdicts)}. holds is exhaustive for the configuration; kick_returns, progress and "
            "resume_runs assume weak fairness per thread, livelock assumes none."
        )
    )


def _count(verdicts: list[Verdict]) -> str:
    return ", ".join(f"{sum(verdict.verdict == word for verdict in verdicts)} {word}" for word in GLYPHS)


def _table(title: str, group: list[Verdict]) -> Table:
    """Properties down, variants across would be too wide: variants down, properties by number of steps."""
    names = list(dict.fromkeys(verdict.property for verdict in group))
    table = Table(title=title, caption="✓ holds   ✗N violated in N steps   ? undecided")
    table.add_column("variant", no_wrap=True)
    for name in names:
        table.add_column(name.replace("_", "\n"), justify="center")
    table.add_column("states", justify="right")
    table.add_column("s", justify="right")
    rows: dict[str, dict[str, Verdict]] = {}
    for verdict in group:
        rows.setdefault(verdict.variant, {})[verdict.property] = verdict
    for variant, cells in rows.items():
        some = next(iter(cells.values()))
        seconds = max(verdict.seconds for verdict in cells.values())
        table.add_row(variant, *(_cell(cells[name]) for name in names), f"{some.states:,}", f"{seconds:.2f}")
    return table


def _cell(verdict: Verdict) -> Text:
    glyph, colour = GLYPHS[verdict.verdict]
    steps = verdict.counterexample.trail.steps if verdict.counterexample else ""
    return Text(f"{glyph[0]}{steps}", style=colour)


def _print_counterexample(verdict: Verdict, console: Console) -> None:
    found = verdict.counterexample
    if found is None:
        return
    console.print()
    console.print(
        Text(f"{verdict.property}: {verdict.variant}, {verdict.behaviour}, {found.trail.steps} steps", style="bold")
    )
    console.print(Text(found.text()), soft_wrap=True, highlight=False)
    console.print(Text(f"   replay: kickstand explore --replay {found.token}"), soft_wrap=True, highlight=False)


def describe_choices() -> dict[str, dict[str, str]]:
    """Variants and properties with one line each, for help texts."""
    return {
        "variants": {name: summary(kind) for name, kind in variants().items()},
        "properties": {name: item.summary for name, item in PROPERTIES.items()},
    }
