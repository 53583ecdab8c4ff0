"""POST /vm/snapshot and POST /vms/restore: a machine as a file, and back, here or on another server."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from typing import IO, Annotated

from fastapi import Query, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from kickstand.api.context import TheContext, TheMachine
from kickstand.api.edge.replies import reply_long
from kickstand.api.operations import BYTES, ROOT, VM, Operations
from kickstand.api.shapes.vms import Vm
from kickstand.core.errors import KvmError
from kickstand.journal import snapshot
from kickstand.runtime.driver.tasks import to_the_end

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
    return _FileAnswer(file, headers)


class _FileAnswer(StreamingResponse):
    """A file's content; the file is closed with the answer, however far it came."""

    def __init__(self, file: IO[bytes], headers: dict[str, str]) -> None:
        super().__init__(_pieces(file), 200, headers, "application/octet-stream")
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await snapshot.close(self._file)


async def _pieces(file: IO[bytes]) -> AsyncIterator[bytes]:
    while piece := await to_the_end(asyncio.to_thread(file.read, PIECE)):
        yield piece


@all_vms.post("/vms/restore", answer=Vm, status=201, body=RAW)
async def restore_snapshot(request: Request, context: TheContext, new_id: NewId = None) -> Response:
    """Make a VM from a snapshot's bytes. It comes up kicked; a file that is not whole changes nothing."""
    try:
        file = tempfile.TemporaryFile(dir=context.state_dir)  # noqa: SIM115
        try:
            async for piece in request.stream():
                await asyncio.to_thread(file.write, piece)  # a disk may take its time, and guests run meanwhile
            file.seek(0)
            machine = await snapshot.bring_back(context.registry, file, new_id)
        finally:
            await snapshot.close(file)
    except OSError as error:
        raise KvmError(snapshot.lacking(error), "restore", f"no room for the file: {error.strerror}") from error
    return await reply_long(machine.shape(), 201, {"Location": f"/vms/{machine.id}"})
