"""Counterexamples for people: columns as kernel mails draw them, and the same as data."""

from __future__ import annotations

from typing import Any

from app.explore.replay import Told
from app.explore.scenarios import Scenario
from app.explore.trail import Event, Trail, operation_name, shown_value

SILENT_RESULTS = (None,)


def row_text(event: Event, names: list[str], thread: str) -> str:
    """One step in its column: the thread's own prefix is left out."""
    if event.trap is None:
        return f"choose branch {event.result}"
    text = operation_name(event.trap, names)
    own = thread.rpartition("/")[2].lower() + "."
    text = text.removeprefix(own).removeprefix(f"{thread}.")
    if event.trap.method == "run_returned":
        return f"KVM_RUN = {event.trap.args[0]}"
    if event.result not in SILENT_RESULTS:
        text += f" = {shown_value(event.result)}"
    return text


def changed_text(event: Event) -> str:
    """The shared state that a step changed."""
    return ", ".join(f"{name}: {before} -> {after}" for name, before, after in event.changes)


def columns(trail: Trail, names: list[str], verdict: str) -> str:
    """The printed form; the last row is ``verdict``."""
    rows: list[tuple[str, int, str, str]] = []
    number = 0
    for position, event in enumerate(trail.events):
        if not event.shown:
            continue
        number += 1
        mark = ">>" if trail.loop is not None and position >= trail.loop else "  "
        rows.append(
            (
                f"{mark}{number:3}",
                event.thread,
                row_text(event, names, trail.threads[event.thread]),
                changed_text(event),
            )
        )
    widths = [
        max([len(name), *(min(len(text), 46) for _, thread, text, _ in rows if thread == column)])
        for column, name in enumerate(trail.threads)
    ]
    lines = [
        "      "
        + " | ".join(name.ljust(width) for name, width in zip(trail.threads, widths, strict=True))
        + " | changed"
    ]
    lines.append("      " + "-+-".join("-" * width for width in widths) + "-+--------")
    for mark, thread, text, changed in rows:
        cells = [(text if column == thread else "").ljust(width) for column, width in enumerate(widths)]
        lines.append(f"{mark} " + " | ".join(cells) + " | " + changed)
    if trail.loop is not None:
        lines.append("   >> repeats for ever")
    lines += [f"      {who} waits for ever: {what}" for who, what in trail.blocked]
    lines.append(f"   => {verdict}")
    return "\n".join(line.rstrip() for line in lines)


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
