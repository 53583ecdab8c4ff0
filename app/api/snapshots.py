"""POST /vm/snapshot and POST /vms/restore: a machine as a file, and back, here or on another server."""

from __future__ import annotations

import asyncio
import errno
import tempfile
from collections.abc import AsyncIterator
from typing import IO, Annotated

from fastapi import Query, Request
from starlette.responses import Response, StreamingResponse

from app.api import answers
from app.api.context import TheContext, TheMachine
from app.api.operations import BYTES, ROOT, VM, Operations
from app.api.replies import reply
from app.core.errors import KvmError
from app.journal import snapshot

PIECE = 1 << 18
of_vm = Operations("snapshots", *VM)
all_vms = Operations("snapshots", *ROOT)
RAW = {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
NewId = Annotated[str | None, Query(alias="id", description="Its name; by default the one it had.")]


@of_vm.post("/snapshot", answer=BYTES)
async def take_snapshot(context: TheContext, machine: TheMachine) -> Response:
    """Take a consistent image of a running VM: kick, copy registers and memory, resume."""
    file = await snapshot.take(machine, context.state_dir)
    size = file.seek(0, 2)
    file.seek(0)
    headers = {"Content-Disposition": f'attachment; filename="{machine.id}.kicksnap"', "Content-Length": str(size)}
    return StreamingResponse(_pieces(file), 200, headers, "application/octet-stream")


async def _pieces(file: IO[bytes]) -> AsyncIterator[bytes]:
    with file:
        while piece := await asyncio.to_thread(file.read, PIECE):
            yield piece


@all_vms.post("/vms/restore", answer=answers.VmShape, status=201, body=RAW)
async def restore_snapshot(request: Request, context: TheContext, new_id: NewId = None) -> Response:
    """Make a VM from a snapshot's bytes. It comes up kicked; a file that is not whole changes nothing."""
    try:
        with tempfile.TemporaryFile(dir=context.state_dir) as file:
            async for piece in request.stream():
                await asyncio.to_thread(file.write, piece)  # a disk may take its time, and guests run meanwhile
            file.seek(0)
            machine = await snapshot.bring_back(context.registry, file, new_id)
    except OSError as error:
        raise KvmError(errno.ENOSPC, "restore", f"no room for the file: {error.strerror}") from error
    return reply(machine.describe(), 201, {"Location": f"/vms/{machine.id}"})
