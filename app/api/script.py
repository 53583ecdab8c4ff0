"""POST /vm/script: a list of ioctl-script operations in one request, answered in order."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request
from pydantic import RootModel
from starlette.responses import Response, StreamingResponse

from app.api import answers
from app.api.context import Context, TheContext, TheMachine, while_connected
from app.api.hub import NDJSON
from app.api.operations import VM, Operations
from app.api.replies import reply
from app.core.errors import KvmError
from app.runtime.durable import inside
from app.runtime.events import to_json
from app.runtime.machine import Machine
from app.scripts.errors import ScriptError
from app.scripts.player import play_script as played
from app.scripts.script import ScriptLimits

router = Operations("script", *VM)
logger = logging.getLogger("kickstand.api")
Result = dict[str, Any]


class Script(RootModel[list[Any] | dict[str, Any]]):
    """A list of operations ``{"op", "args"}``, or an object with that list as ``operations``."""

    @property
    def path(self) -> str:
        """Where in the body the list is."""
        return "operations." if isinstance(self.root, dict) else ""

    def __len__(self) -> int:
        """How many operations it has."""
        listed: Any = self.root.get("operations", []) if isinstance(self.root, dict) else self.root
        return len(listed) if hasattr(listed, "__len__") else 0


@router.post("/script", answer=answers.ScriptDone)
async def play_script(request: Request, context: TheContext, machine: TheMachine, body: Script) -> Response:
    """Play operations in order. With `Accept: application/x-ndjson` each result is sent when it is there."""
    results = _results(context, machine, body)
    if NDJSON.media_type not in request.headers.get("accept", ""):
        answers_in_order = await while_connected(request, _as_one_call(machine, results))
        return reply({"results": answers_in_order, "seq": machine.log.seq})
    first = await while_connected(request, _next(results))  # what is wrong with the script is still a problem
    return StreamingResponse(_lines(first, results), media_type=NDJSON.media_type)


async def _results(context: Context, machine: Machine, body: Script) -> AsyncIterator[Result]:
    """Every operation is checked before the first is played. E2BIG: too many; EINVAL: what, and where."""
    limits = context.settings.limits
    if len(body) > limits.script_operations:
        detail = f"a script has at most {limits.script_operations} operations (script_operations), not {len(body)}"
        raise KvmError(errno.E2BIG, "script", detail)
    bounds = ScriptLimits(operations=limits.script_operations, memory=limits.memory_per_vm, read=limits.body)
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
    machine.admit("script")
    token = inside.set(True)
    try:
        return await _all(results)
    finally:
        inside.reset(token)
        await machine.committed()


async def _all(results: AsyncIterator[Result]) -> list[Result]:
    return [result async for result in results]


async def _lines(first: Result | None, results: AsyncIterator[Result]) -> AsyncIterator[bytes]:
    """One line a result; a failure midway is a last line of its own."""
    try:
        if first is not None:
            yield _line(first)
        async for result in results:
            yield _line(result)
            await asyncio.sleep(0)  # a stream that never suspends would lock the server
    except KvmError as error:
        yield _line({"ret": -1, "errno": errno.errorcode.get(error.errno), "detail": error.detail})
    except Exception:
        logger.exception("a script's operation failed")
        yield _line({"ret": -1, "errno": None, "detail": "an internal error; see the server's log"})


def _line(result: Result) -> bytes:
    return f"{to_json(result)}\n".encode()
