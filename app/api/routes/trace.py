"""``GET /vm/trace``: the recorded past as a file that other tools open.

What is to be told is looked at on the event loop; the file is written in a thread, because a full ring takes a third
of a second and nobody is to wait for that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from enum import StrEnum
from functools import partial
from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from kickstand.api.context import TheMachine
from kickstand.api.edge.replies import LongResponse
from kickstand.api.operations import VM, Media, Operations
from kickstand.runtime.machine import Machine
from kickstand.scripts.export import exporter
from kickstand.traces.chrome import chrome
from kickstand.traces.events import events
from kickstand.traces.ftrace import ftrace
from kickstand.traces.perfetto import perfetto
from kickstand.traces.recording import Recording, recording_of

LARGEST = 1_000_000
router = Operations("trace", *VM)


class Format(StrEnum):
    """Which tool is to open the file."""

    PERFETTO = "perfetto"
    CHROME = "chrome"
    FTRACE = "ftrace"
    SCRIPT = "script"
    EVENTS = "events"


TheFormat = Annotated[
    Format,
    Query(
        alias="format",
        description="perfetto, chrome (trace event JSON), ftrace, script, events (as streams have them).",
    ),
]
Limit = Annotated[int, Query(ge=1, le=LARGEST, description="Only the newest events.")]
Names = Annotated[
    str,
    Query(
        pattern=r"^[a-z_]*(,[a-z_]+)*$",
        max_length=1_000,
        description="Only events of these names, with commas between; not of a script.",
    ),
]
FILE = Media("The trace.", ("application/json", "application/x-ndjson", "text/plain", "application/octet-stream"))


@router.get("/trace", answer=FILE)
async def get_trace(
    machine: TheMachine, fmt: TheFormat = Format.CHROME, limit: Limit = LARGEST, names: Names = ""
) -> Response:
    """Export what is still recorded of one VM."""
    begin, media_type, suffix = FORMATS[fmt]
    chosen = frozenset(filter(None, names.split(",")))
    write = await begin(machine, limit, chosen)
    headers = {
        "Content-Disposition": f'attachment; filename="{machine.id}.{suffix}"',
        "Kickstand-Oldest": str(machine.log.whole_since(chosen)),  # from this event on none (of these names) is missing
    }
    return LongResponse(await asyncio.to_thread(write), 200, headers, media_type)


Begin = Callable[
    [Machine, int, frozenset[str]], Awaitable[Callable[[], bytes]]
]  # looks at the machine now; the file is made later


def recorded(writer: Callable[[Recording], bytes]) -> Begin:
    """Write what the event log has."""

    async def begin(machine: Machine, limit: int, names: frozenset[str]) -> Callable[[], bytes]:
        return partial(writer, await recording_of(machine, limit, names))

    return begin


async def script(machine: Machine, _limit: int, _names: frozenset[str]) -> Callable[[], bytes]:
    """Write what the call history has."""
    return exporter(machine)


FORMATS: dict[Format, tuple[Begin, str, str]] = {  # media type and suffix of the file
    Format.PERFETTO: (recorded(perfetto), "application/octet-stream", "pftrace"),
    Format.CHROME: (recorded(chrome), "application/json", "json"),
    Format.FTRACE: (recorded(ftrace), "text/plain; charset=utf-8", "ftrace.txt"),
    Format.EVENTS: (recorded(events), "application/x-ndjson", "events.jsonl"),
    Format.SCRIPT: (script, "application/x-ndjson", "jsonl"),
}
