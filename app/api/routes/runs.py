"""KVM_RUN as a long poll. A client that goes away is a signal to the vCPU's thread.

The hot path: the body is read here rather than by the framework, and the client is watched only if the run parks.
"""

from __future__ import annotations

import asyncio
import errno
import re
from typing import Any

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from kickstand.api.context import context_of, disconnected, machine_of
from kickstand.api.edge.problems import invalid, wrong_media_type
from kickstand.api.edge.replies import reply
from kickstand.api.operations import VCPU, Operations
from kickstand.api.shapes import vcpus as shapes
from kickstand.core.errors import KvmError
from kickstand.core.run.run_page import Cause
from kickstand.runtime.machine import Machine
from kickstand.runtime.runs import DEFAULT_RUN_MS
from kickstand.runtime.runs import Run as Running

router = Operations("vcpus", *VCPU)
BODY = {"required": False, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Run"}}}}
NOTHING_ASKED = shapes.Run()
LONGEST = 1 << 15  # bytes
INTEGER = re.compile(r"-?[0-9]{1,18}")


@router.post("/{id}/run", answer=shapes.RunDone, ioctl=Machine.start_run, body=BODY, direct=True)
async def run(request: Request) -> Response:
    """Run a vCPU until it leaves KVM_RUN. EINTR and EAGAIN are ordinary answers; `Kickstand-Errno` repeats them."""
    vcpu_id = request.path_params["id"]
    if not INTEGER.fullmatch(vcpu_id):
        return invalid(request.scope, [{"type": "int_parsing", "loc": ("path", "id"), "msg": "not an integer"}])
    content = await request.body()
    if content and not is_json(request):
        return wrong_media_type(request)
    if len(content) > LONGEST:
        raise HTTPException(413, f"a run's body has at most {LONGEST} bytes: no access takes a longer reply")
    asked = shapes.Run.model_validate_json(content) if content else NOTHING_ASKED
    context = context_of(request)
    context.admit_run()
    running = machine_of(request).start_run(
        int(vcpu_id),
        reply=asked.reply,
        immediate_exit=asked.immediate_exit,
        timeout_ms=_timeout(asked, context.settings.limits.run_timeout_ms),
        nowait=asked.nowait,
    )
    if not running.task.done():
        await _park(request, running)
    answer = await running.result()
    return reply(answer, headers={"Kickstand-Errno": answer["errno"]} if answer["errno"] else None)


def _timeout(asked: shapes.Run, longest: int) -> int:
    if asked.timeout_ms is None:
        return min(DEFAULT_RUN_MS, longest)
    if asked.timeout_ms > longest:
        raise KvmError(errno.EINVAL, "KVM_RUN", f"timeout_ms is at most {longest} (run_timeout_ms)", field="timeout_ms")
    return asked.timeout_ms


async def _park(request: Request, running: Running) -> None:
    """Wait for the run to leave, and make it leave when the client has gone."""
    gone = asyncio.create_task(disconnected(request))
    try:
        either: set[asyncio.Future[Any]] = {running.task, gone}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not running.task.done():
            running.signal(Cause.CLIENT_DISCONNECT)
    finally:
        gone.cancel()


def is_json(request: Request) -> bool:
    """The content type says JSON."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return media_type == "application/json" or (media_type.startswith("application/") and media_type.endswith("+json"))
