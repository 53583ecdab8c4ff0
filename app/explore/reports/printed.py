"""Verdicts and requirements as lines of text, at most 80 columns wide where that can be, and never cut.

A matrix has more properties than a terminal has room for their names: then each has a letter, and a legend below. What
holds for every variant has no column.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from textwrap import wrap

from rich.text import Text

from kickstand.explore.decide import Verdict
from kickstand.explore.reports.requirements import LEDGER
from kickstand.explore.search.properties import property_of

WIDTH = 80
GLYPHS = {"holds": ("✓", "green"), "violated": ("✗", "red"), "undecided": ("?", "yellow"), "vacuous": ("-", "yellow")}
LETTERS = "abcdefghijklmnopqrstuvwxyz"
Cells = dict[str, Verdict]  # one variant's, by property


def verdict_table(title: str, group: Sequence[Verdict]) -> Iterator[Text]:
    """Variants down, properties across: ``✗N`` is violated in N steps."""
    rows: dict[str, Cells] = {}
    for verdict in group:
        rows.setdefault(verdict.variant, {})[verdict.property] = verdict
    names = list(dict.fromkeys(verdict.property for verdict in group))
    constant = [name for name in names if len(rows) > 1 and all(_holds(cells, name) for cells in rows.values())]
    telling = [name for name in names if name not in constant] or names
    heads, legend = telling, ""
    if len(_lines(rows, telling, telling)[0]) > WIDTH:
        heads = list(LETTERS[: len(telling)])
        legend = "   ".join(f"{letter} {name}" for letter, name in zip(heads, telling, strict=True))
    yield Text()
    yield Text(title, style="bold")
    yield from _lines(rows, heads, telling)
    yield from (Text(f"  {line}") for line in wrap(legend, WIDTH - 2))
    if constant and telling is not names:
        yield from map(Text, wrap(f"  every variant holds {', '.join(constant)}", WIDTH, subsequent_indent="  "))


def _holds(cells: Cells, name: str) -> bool:
    return cells[name].verdict == "holds"


def _lines(rows: dict[str, Cells], heads: Sequence[str], names: Sequence[str]) -> list[Text]:
    """The head and a line a variant, in columns."""
    variants = max(len("variant"), *map(len, rows))
    marks = {variant: [_mark(cells[name]) for name in names] for variant, cells in rows.items()}
    widths = [max(len(head), *(len(line[at]) for line in marks.values())) for at, head in enumerate(heads)]
    states = {variant: f"{next(iter(cells.values())).states:,}" for variant, cells in rows.items()}
    last = max(len("states"), *map(len, states.values()))
    lines = [_line("variant", variants, [Text(head) for head in heads], widths, "states".rjust(last))]
    for variant, line in marks.items():
        lines.append(_line(variant, variants, line, widths, states[variant].rjust(last)))
    return lines


def _line(name: str, width: int, cells: Sequence[Text], widths: Sequence[int], last: str) -> Text:
    line = Text(name.ljust(width) + " ")
    for cell, wide in zip(cells, widths, strict=True):
        line.append(" ").append_text(cell).append(" " * (wide - len(cell)))
    return line.append(f"  {last}")


def _mark(verdict: Verdict) -> Text:
    glyph, colour = GLYPHS[verdict.verdict]
    steps = verdict.counterexample.trail.steps if verdict.counterexample else ""
    return Text(f"{glyph}{steps}", style=colour)


def totals(verdicts: Sequence[Verdict]) -> Iterator[Text]:
    """How many of each verdict, and what the words mean."""
    counts = ((sum(verdict.verdict == word for verdict in verdicts), word) for word in GLYPHS)
    told = ", ".join(f"{number} {word}" for number, word in counts if number or word in ("holds", "violated"))
    text = f"{told}. ✓ holds: every interleaving was looked at; ✗N: violated in N steps; ? undecided: a bound was met."
    asked = dict.fromkeys(verdict.property for verdict in verdicts)
    weak = [name for name in asked if property_of(name).fairness == "weak"]
    text += f" Weak fairness per thread is assumed by {', '.join(weak)}." if weak else ""
    text += " livelock assumes no fairness." if "livelock" in asked else ""
    yield Text()
    yield from map(Text, wrap(text, WIDTH))


def for_any_number(verdicts: Sequence[Verdict]) -> Iterator[Text]:
    """What holds for every number of vCPUs, and why other things are not known to."""
    cells: dict[tuple[str, str, str], list[Verdict]] = {}
    for verdict in verdicts:
        if verdict.any_number is not None:
            cells.setdefault((verdict.scenario, verdict.variant, verdict.behaviour), []).append(verdict)
    for (scenario, variant, behaviour), group in cells.items():
        yield Text()
        yield from map(Text, _any_number(f"{scenario}, {variant}, {behaviour}", group))


def _any_number(cell: str, group: list[Verdict]) -> Iterator[str]:
    found = [(verdict.property, verdict.any_number) for verdict in group if verdict.any_number is not None]
    (_, first), *_ = found
    if first["cutoff"] is None:
        text = f"{cell}: not certified for every number of vCPUs: {'; '.join(first['reasons'])}"
        yield from wrap(text, WIDTH, subsequent_indent="  ")
        return
    few = "one vCPU stands" if first["cutoff"] == 1 else f"{first['cutoff']} vCPUs stand"
    held = [name for name, said in found if said["holds"]]
    names = ", ".join(held) or "nothing"
    text = f"{cell}: holds for every number of vCPUs ({few} for all, C0 to C3 checked): {names}"
    yield from wrap(text, WIDTH, subsequent_indent="  ")
    rest = [name for name, said in found if not said["holds"]]
    if rest:
        text = f"for the number of vCPUs that was asked only: {', '.join(rest)}"
        yield from wrap(text, WIDTH, initial_indent="  ", subsequent_indent="  ")


def ledger_lines() -> Iterator[str]:
    """Each requirement, and under it what shows it."""
    for entry in LEDGER:
        yield from wrap(entry.what, WIDTH, initial_indent=f"{entry.id:<4} ", subsequent_indent=" " * 5)
        yield from (f"       {shown}" for shown in entry.shown_by)
