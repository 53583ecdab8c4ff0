"""POST /vm/script: a list of ioctl-script operations in one request, answered in order."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request
from starlette.responses import Response, StreamingResponse

from kickstand.api.context import Context, TheContext, TheMachine, while_connected
from kickstand.api.edge.replies import reply_list
from kickstand.api.hub import NDJSON, in_lines
from kickstand.api.operations import VM, Operations
from kickstand.api.shapes.scripts import Script, ScriptDone
from kickstand.core.errors import KvmError
from kickstand.guests.host_memory import MOST_ARENAS
from kickstand.runtime.calls.durable import kept_as_one
from kickstand.runtime.events import to_json
from kickstand.runtime.machine import Machine
from kickstand.scripts.language.errors import ScriptError
from kickstand.scripts.language.script import ScriptLimits
from kickstand.scripts.play.player import play_script as played

LONGEST_READ = 1 << 20  # bytes: a longer answer takes too long to be written in one turn
LONGEST_ANSWER = 4 << 20  # bytes that one answer may have read: it is put together in one turn
UNBOUNDED = 1 << 62
AHEAD = 16  # lines that wait for a client who reads slowly; each may be as long as LONGEST_READ
router = Operations("script", *VM)
logger = logging.getLogger("kickstand.api")
Result = dict[str, Any]


@router.post("/script", answer=ScriptDone)
async def play_script(request: Request, context: TheContext, machine: TheMachine, body: Script) -> Response:
    """Play operations in order. With `Accept: application/x-ndjson` each result is sent when it is there."""
    lines = in_lines(request.headers.get("accept", ""))
    results = _results(context, machine, body, reads=UNBOUNDED if lines else LONGEST_ANSWER)
    if not lines:
        answers_in_order = await while_connected(request, _as_one_call(machine, results))
        return await reply_list("results", answers_in_order, seq=machine.log.seq)
    first = await while_connected(request, _next(results))  # what is wrong with the script is still a problem
    return StreamingResponse(_lines(first, results), media_type=NDJSON.media_type)


async def _results(context: Context, machine: Machine, body: Script, *, reads: int) -> AsyncIterator[Result]:
    """Every operation is checked before the first is played. E2BIG: too many; EINVAL: what, and where."""
    limits = context.settings.limits
    if len(body) > limits.script_operations:
        detail = f"a script has at most {limits.script_operations} operations (script_operations), not {len(body)}"
        raise KvmError(errno.E2BIG, "script", detail)
    bounds = ScriptLimits(
        operations=limits.script_operations,
        memory=limits.memory_per_vm,
        arenas=MOST_ARENAS,
        read=min(LONGEST_READ, limits.body),
        reads=reads,
    )
    try:
        async for result in played(machine, body.root, bounds):
            yield result
    except ScriptError as error:
        steps = (body.path + str(error.operation) if error.operation is not None else body.path, error.field)
        raise KvmError(errno.EINVAL, "script", str(error), field=".".join(filter(None, steps))) from error


async def _next(results: AsyncIterator[Result]) -> Result | None:
    return await anext(results, None)


async def _as_one_call(machine: Machine, results: AsyncIterator[Result]) -> list[Result]:
    """Play it, and keep its outcome once rather than after every operation."""
    async with kept_as_one(machine, "script"):
        return [result async for result in results]


async def _lines(first: Result | None, results: AsyncIterator[Result]) -> AsyncIterator[bytes]:
    """One line a result; those that come in one turn of the loop go out together."""
    ahead: asyncio.Queue[bytes] = asyncio.Queue(AHEAD)
    playing = asyncio.create_task(_play(first, results, ahead))
    try:
        while line := await ahead.get():
            lines = [line]
            while line and not ahead.empty():
                lines.append(line := ahead.get_nowait())
            yield b"".join(lines)
            if not line:
                return
    finally:
        playing.cancel()
        await asyncio.wait([playing])


async def _play(first: Result | None, results: AsyncIterator[Result], ahead: asyncio.Queue[bytes]) -> None:
    """Put the lines into ``ahead``, an empty one at the end. A failure midway is a last line of its own."""
    try:
        if first is not None:
            await ahead.put(_line(first))
        async for result in results:
            await ahead.put(_line(result))
    except KvmError as error:
        await ahead.put(_line({"ret": -1, "errno": errno.errorcode.get(error.errno), "detail": error.detail}))
    except Exception:
        logger.exception("a script's operation failed")
        await ahead.put(_line({"ret": -1, "errno": None, "detail": "an internal error; see the server's log"}))
    await ahead.put(b"")


def _line(result: Result) -> bytes:
    return f"{to_json(result)}\n".encode()
