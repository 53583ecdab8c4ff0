"""Counterexamples for people: columns as kernel mails draw them, and the same as data."""

from __future__ import annotations

from itertools import pairwise
from textwrap import wrap
from typing import Any

from app.core.requests import request_names
from app.explore.replay import Told
from app.explore.scenarios import Scenario
from app.explore.trail import Event, Trail, operation_name, shown_value

SILENT_RESULTS = (None,)
WIDTH = 99  # of a line in a mail, more or less
CAPS = {1: 40, 2: 31, 3: 17}  # a column's width by the number of threads; what is longer runs on over empty cells
CAP = 12  # for more threads than these
SHORT = (
    ("memory_transaction.", "rwsem."),
    ("USERSPACE_KICK", "KICK"),
    ("OUTSIDE_GUEST_MODE", "OUTSIDE"),
    ("EXITING_GUEST_MODE", "EXITING"),
    ("IN_GUEST_MODE", "IN_GUEST"),
    (", ", ","),
)


def row_text(event: Event, names: list[str], thread: str) -> str:
    """One step in its column: the thread's own prefix is left out."""
    if event.trap is None:
        return f"choose branch {event.result}"
    text = operation_name(event.trap, names)
    for own in (thread, thread.lower(), thread.rpartition("/")[2].lower()):
        text = text.removeprefix(f"{own}.")
    if event.trap.method == "run_returned":
        return f"KVM_RUN = {event.trap.args[0]}"
    if event.result not in SILENT_RESULTS:
        text += f" = {shown_result(event)}"
    return text


def shown_result(event: Event) -> str:
    """An operation's result; the requests that are pending by name."""
    if event.trap is not None and event.trap.method == "pending" and type(event.result) is int:
        names = [name.removeprefix("KVM_REQ_") for name in request_names(event.result)]
        return "|".join(names) or "0"
    return shown_value(event.result)


def short(text: str) -> str:
    """The same in fewer letters, for columns."""
    for long, brief in SHORT:
        text = text.replace(long, brief)
    return text


def changed_text(event: Event) -> str:
    """The shared state that a step changed."""
    return ", ".join(f"{name}: {before} -> {after}" for name, before, after in event.changes)


def _brief_row(event: Event, names: list[str], thread: str) -> str:
    """A row as the columns have it: who acts is said by the column."""
    text = row_text(event, names, thread)
    for own in (f"(vm/{thread.lower()})", f"({thread})", f"({thread.lower()})"):
        text = text.replace(own, "")
    return short(text).replace("()", "")


def _brief_change(event: Event, names: list[str]) -> str:
    """What others can see of a change: a vCPU's own bookkeeping of it is left out, and the name that the row has."""
    own = names[event.trap.object] if event.trap is not None else ""
    changes = [change for change in event.changes if not change[0].endswith((".srcu_index", ".exit"))]
    return short(
        "; ".join(f"{name.removeprefix(own + '.')}: {old} -> {new}" for name, old, new in changes or event.changes)
    )


def _line(mark: str, column: int, text: str, changed: str, starts: list[int]) -> str:
    """One row: text that is too long for its cell runs on over the empty ones beside it."""
    line = list(mark.ljust(starts[-1]))
    for start in starts[1:]:
        line[start - 2] = "|"
    begin = starts[column]
    line[begin : begin + len(text)] = text
    if len(text) + begin > starts[-1] - 3 and changed:
        line.append("  ")
    return ("".join(line) + changed).rstrip()


def columns(trail: Trail, names: list[str], verdict: str) -> str:
    """The printed form, narrow enough for a mail; the last row is ``verdict``."""
    rows: list[tuple[str, int, str, str]] = []
    for position, event in enumerate(trail.events):
        if event.shown:
            mark = ">>" if trail.loop is not None and position >= trail.loop else "  "
            text = _brief_row(event, names, trail.threads[event.thread])
            rows.append((f"{mark}{len(rows) + 1:3}", event.thread, text, _brief_change(event, names)))
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
    lines += [_clipped(_line(mark, thread, text, changed, starts)) for mark, thread, text, changed in rows]
    if trail.loop is not None:
        lines.append("   >> repeats for ever")
    lines += [f"      {who} waits for ever: {short(what)}" for who, what in trail.blocked]
    lines += wrap(verdict, WIDTH - 6, initial_indent="   => ", subsequent_indent="      ")
    return "\n".join(lines)


def _clipped(line: str) -> str:
    return line if len(line) <= WIDTH else line[: WIDTH - 1] + "\u2026"


def as_json(trail: Trail, names: list[str], verdict: str) -> dict[str, Any]:
    """The same as data: one entry a shown step."""
    steps = []
    for position, event in enumerate(trail.events):
        if event.shown:
            steps.append(
                {
                    "thread": trail.threads[event.thread],
                    "operation": row_text(event, names, ""),
                    "result": shown_value(event.result),
                    "changed": [
                        {"name": name, "before": before, "after": after} for name, before, after in event.changes
                    ],
                    "loop": trail.loop is not None and position >= trail.loop,
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
    for event in trail.events:
        shown += event.shown
        if event.trap is not None:
            steps.append(shown)
    return {
        "vms": [{"id": vm.id, "vcpus": [*range(vm.vcpus), *vm.hotplug]} for vm in scenario.vms],
        "events": [
            {"step": steps[note.operations], "event": note.event, "vm": note.vm, "vcpu": note.vcpu, **note.fields}
            for note in sorted(told, key=lambda note: note.operations)
        ],
    }


def as_perfetto(trail: Trail, names: list[str], verdict: str) -> dict[str, Any]:
    """Chrome trace events, which Perfetto opens: one track a thread, a millisecond a step."""
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": number + 1, "args": {"name": name}}
        for number, name in enumerate(trail.threads)
    ]
    shown = [event for event in trail.events if event.shown]
    for number, event in enumerate(shown):
        events.append(
            {
                "ph": "X",
                "pid": 1,
                "tid": event.thread + 1,
                "ts": number * 1000,
                "dur": 900,
                "cat": "step",
                "name": row_text(event, names, trail.threads[event.thread]),
                "args": {"changed": changed_text(event)},
            }
        )
    events.append({"ph": "i", "s": "g", "pid": 1, "tid": 1, "ts": len(shown) * 1000, "name": verdict})
    return {"traceEvents": events, "displayTimeUnit": "ms"}
