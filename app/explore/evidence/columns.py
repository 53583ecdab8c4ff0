"""Counterexamples for people: columns as kernel mails draw them, and the same as data."""

from __future__ import annotations

from itertools import pairwise
from textwrap import wrap
from typing import Any

from kickstand.explore.evidence.replay import Told
from kickstand.explore.evidence.trail import Row, Trail
from kickstand.explore.world.scenarios import Scenario

WIDTH = 99  # of a line in a mail, more or less
CAPS = {1: 40, 2: 31, 3: 17}  # a column's width by the number of threads; what is longer runs on over empty cells
CAP = 12  # for more threads than these
NARROWEST = 24  # what the changed column is not narrower than
SHORT = (
    ("memory_transaction.", "rwsem."),
    ("USERSPACE_KICK", "KICK"),
    ("OUTSIDE_GUEST_MODE", "OUTSIDE"),
    ("EXITING_GUEST_MODE", "EXITING"),
    ("IN_GUEST_MODE", "IN_GUEST"),
    (", ", ","),
)


def row_text(row: Row, thread: str) -> str:
    """One step in its column: the thread's own prefix is left out."""
    text = row.text
    for own in (thread, thread.lower(), thread.rpartition("/")[2].lower()):
        text = text.removeprefix(f"{own}.")
    return text


def short(text: str) -> str:
    """The same in fewer letters, for columns."""
    for long, brief in SHORT:
        text = text.replace(long, brief)
    return text


def changed_text(row: Row) -> str:
    """The shared state that a step changed."""
    return ", ".join(f"{name}: {before} -> {after}" for name, before, after in row.changes)


def _brief_row(row: Row, thread: str) -> str:
    """A row as the columns have it: who acts is said by the column."""
    text = row_text(row, thread)
    for own in (f"(vm/{thread.lower()})", f"({thread})", f"({thread.lower()})"):
        text = text.replace(own, "")
    return short(text).replace("()", "")


def _brief_change(row: Row) -> str:
    """What others can see of a change: a vCPU's own bookkeeping of it is left out, and the name that the row has."""
    own = row.object
    changes = [change for change in row.changes if not change[0].endswith((".srcu_index", ".exit"))]
    return short(
        "; ".join(f"{name.removeprefix(own + '.')}: {old} -> {new}" for name, old, new in changes or row.changes)
    )


def _lines(mark: str, column: int, text: str, changed: str, starts: list[int]) -> list[str]:
    """One row: what is too long for its cell runs on over the empty ones beside it, and then below; nothing is cut."""
    begin, last = starts[column], starts[-1]
    pieces = wrap(text, WIDTH - begin, break_on_hyphens=False) or [""]
    lines = [_line(mark if number == 0 else "", begin, piece, starts) for number, piece in enumerate(pieces)]
    for piece in wrap(changed, max(WIDTH - last, NARROWEST), break_on_hyphens=False):
        if len(lines[-1]) == last:
            lines[-1] += piece
        elif len(lines[-1]) + 1 + len(piece) <= WIDTH:
            lines[-1] += f" {piece}"
        else:
            lines.append(_line("", begin, "", starts) + piece)
    return [line.rstrip() for line in lines]


def _line(mark: str, begin: int, text: str, starts: list[int]) -> str:
    line = list(mark.ljust(starts[-1]))
    for start in starts[1:]:
        line[start - 2] = "|"
    line[begin : begin + len(text)] = text
    if begin + len(text) <= starts[-1] - 3:
        return "".join(line)
    return "".join(line).rstrip().ljust(starts[-1]) + " "  # it runs into the column of changes


def columns(trail: Trail, *verdicts: str) -> str:
    """The printed form, narrow enough for a mail; the last rows are ``verdicts``."""
    rows: list[tuple[str, int, str, str]] = []
    for position, row in enumerate(trail.rows):
        if row.shown:
            mark = ">>" if trail.loop is not None and position >= trail.loop else "  "
            text = _brief_row(row, trail.threads[row.thread])
            rows.append((f"{mark}{len(rows) + 1:3}", row.thread, text, _brief_change(row)))
    cap = CAPS.get(len(trail.threads), CAP)
    starts = [6]
    for column, name in enumerate(trail.threads):
        longest = max([len(name), *(len(text) for _, thread, text, _ in rows if thread == column)])
        starts.append(starts[-1] + min(longest, cap) + 3)
    head = "".join(
        name.ljust(end - start - 3) + " | " for name, start, end in zip(trail.threads, starts, starts[1:], strict=False)
    )
    rule = "-+-".join("-" * (end - start - 3) for start, end in pairwise(starts))
    lines = [f"      {head}changed", f"      {rule}-+--------"]
    for mark, thread, text, changed in rows:
        lines += _lines(mark, thread, text, changed, starts)
    if trail.loop is not None:
        lines.append("   >> repeats for ever")
    lines += [f"      {who} waits for ever: {short(what)}" for who, what in trail.blocked]
    for verdict in verdicts:
        lines += wrap(
            verdict,
            WIDTH - 6,
            initial_indent="   => ",
            subsequent_indent="      ",
            break_on_hyphens=False,
            break_long_words=False,
        )
    return "\n".join(lines)


def as_json(trail: Trail, verdict: str) -> dict[str, Any]:
    """The same as data: one entry a shown step."""
    steps = []
    for position, row in enumerate(trail.rows):
        if row.shown:
            steps.append(
                {
                    "thread": trail.threads[row.thread],
                    "operation": row.text,
                    "result": row.result,
                    "changed": [
                        {"name": name, "before": before, "after": after} for name, before, after in row.changes
                    ],
                    "loop": trail.loop is not None and position >= trail.loop,
                    "where": None if row.where is None else row.where._asdict(),
                }
            )
    return {
        "threads": list(trail.threads),
        "steps": steps,
        "verdict": verdict,
        "blocked": [{"thread": who, "operation": what} for who, what in trail.blocked],
    }


def seen(trail: Trail, scenario: Scenario, told: list[Told]) -> dict[str, Any]:
    """What a watcher of the server would have seen: events by step, the memory map among them."""
    shown, steps = 0, [0]
    for row in trail.rows:
        shown += row.shown
        if row.choice is None:
            steps.append(shown)
    return {
        "vms": [{"id": vm.id, "vcpus": [*range(vm.vcpus), *vm.hotplug]} for vm in scenario.vms],
        "events": [
            {"step": steps[note.operations], "event": note.event, "vm": note.vm, "vcpu": note.vcpu, **note.fields}
            for note in sorted(told, key=lambda note: note.operations)
        ],
    }


def as_perfetto(trail: Trail, verdict: str) -> dict[str, Any]:
    """Chrome trace events, which Perfetto opens: one track a thread, a millisecond a step."""
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": number + 1, "args": {"name": name}}
        for number, name in enumerate(trail.threads)
    ]
    shown = [row for row in trail.rows if row.shown]
    for number, row in enumerate(shown):
        events.append(
            {
                "ph": "X",
                "pid": 1,
                "tid": row.thread + 1,
                "ts": number * 1000,
                "dur": 900,
                "cat": "step",
                "name": row_text(row, trail.threads[row.thread]),
                "args": {"changed": changed_text(row), "where": str(row.where or "")},
            }
        )
    events.append({"ph": "i", "s": "g", "pid": 1, "tid": 1, "ts": len(shown) * 1000, "name": verdict})
    return {"traceEvents": events, "displayTimeUnit": "ms"}
