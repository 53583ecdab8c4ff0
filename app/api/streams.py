"""Live event streams: a snapshot at one sequence number, then every event after it, without a hole.

A stream is three things that can end it: its client, a write that never finishes, and the server. Whichever
it is, both tasks of the stream are over when ``__call__`` returns.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Annotated, Any

from fastapi import Depends, Header, Query, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kickstand.api.context import TheContext, TheMachine, context_of
from kickstand.api.edge.replies import written
from kickstand.api.hub import NDJSON, SSE, Hub, Sleeper, View, Wire, in_lines
from kickstand.api.operations import ROOT, STREAM, VCPU, VM, Operations
from kickstand.api.shapes.values import VcpuId
from kickstand.runtime.events import to_json
from kickstand.runtime.machine import Machine

ABORT = "kickstand.abort"  # ASGI extension of our server: drop the connection, whatever is still buffered


async def _resume(
    after: Annotated[
        str | None, Query(description="The id of the last event seen; what came after it follows.")
    ] = None,
    last_event_id: Annotated[str | None, Header(description="As `after`, which it wins over.")] = None,
) -> str | None:
    return last_event_id or after


Resume = Annotated[str | None, Depends(_resume)]


class Stream:
    """What one client has been told so far, and what comes next.

    ``describe`` gives the state for a snapshot, as it is when it is called, with iterators for what is long; ``gone``
    says that there is nothing left to report about.
    """

    def __init__(
        self, hub: Hub, view: View, wire: Wire, describe: Callable[[], dict[str, Any]], gone: Callable[[], bool]
    ) -> None:
        self.hub = hub
        self.view = view
        self.wire = wire
        self.describe = describe
        self.gone = gone
        self.seq = 0

    async def opening(self, resume: str | None) -> bytes:
        """The first bytes: nothing but the preamble for a client that can go on, else a snapshot."""
        if resume is None:
            return self.wire.preamble() + await self.snapshot()
        point = self.hub.resume_point(resume)
        if isinstance(point, int):
            self.seq = point
            return self.wire.preamble()
        snapshot = self.snapshot()
        return self.wire.preamble() + self.gap({"reason": point, "after": resume[:64]}, self.seq) + await snapshot

    async def replay(self) -> AsyncIterator[bytes]:
        """What was kept since the client's last event, up to where the ring goes on; each hole is told.

        After a hole there is a snapshot at the end, because what happened in it is not known.
        """
        holes = False
        while self.hub.archive is not None and self.hub.behind(self.seq):
            past = await self.hub.archive.read(self.seq)
            lost = self.hub.log.seq - self.seq if past is None else past.lost
            if lost:
                holes = True
                end = self.seq + lost
                yield self.gap({"reason": "lost", "count": lost, "from": self.seq + 1, "to": end}, end)
            if past is None:
                break
            self.seq = past.records[-1].seq
            yield self.hub.join(self.view, self.wire, past.records)
        if holes:
            yield await self.snapshot()

    def snapshot(self) -> Awaitable[bytes]:
        """The whole state now; events go on from here, however long it takes until it is encoded."""
        snapshot, self.seq = self.hub.snapshot(self.view, self.wire, self.seq, self._take)
        return asyncio.shield(snapshot)

    def _take(self) -> Coroutine[Any, Any, bytes]:
        seq = self.hub.log.seq
        return self._encoded("snapshot", self._told(self.describe(), seq), f"{self.hub.log.epoch}-{seq}")

    async def _encoded(self, name: str, members: dict[str, Any], event_id: str) -> bytes:
        return self.wire.event(name, event_id, await written(members)).encode()

    def gap(self, why: dict[str, Any], end: int) -> bytes:
        """Events up to ``end`` are missing. It has no id, so that a client that leaves now will learn of it again."""
        return self._control("gap", why, end, None)

    async def following(self) -> bytes:
        """What has happened since, as far as one write goes."""
        seq = self.seq
        if self.hub.behind(seq):
            self.hub.gaps += 1
            snapshot = self.snapshot()
            count = self.hub.missed(self.view, seq, self.seq)
            return (
                self.gap({"reason": "slow", "count": count, "from": seq + 1, "to": self.seq}, self.seq) + await snapshot
            )
        joined, self.seq = self.hub.chunk(self.view, self.wire, seq)
        return joined

    def bye(self) -> bytes:
        """The last event of a stream that the server ends."""
        reason = "shutdown" if self.hub.closed else "destroyed"
        return self._control("bye", {"reason": reason}, self.seq, f"{self.hub.log.epoch}-{self.seq}")

    @property
    def ending(self) -> bool:
        """Nothing more will come."""
        return self.hub.closed or self.gone()

    def _control(self, name: str, members: dict[str, Any], seq: int, event_id: str | None) -> bytes:
        return self.wire.event(name, event_id, to_json(self._told(members, seq))).encode()

    def _told(self, members: dict[str, Any], seq: int) -> dict[str, Any]:
        return members | {"seq": seq, "vm": self.view.vm, "vcpu": self.view.vcpu, "t_ns": self.hub.log.elapsed_ns}


class EventStream(Response):
    """Sends a stream to its client, each write in bounded time."""

    def __init__(self, stream: Stream, resume: str | None) -> None:
        super().__init__(None, 200, {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}, stream.wire.media_type)
        del self.headers["content-length"]
        self.stream = stream
        self.resume = resume
        self.loop = asyncio.get_running_loop()
        self.sending_since: float | None = None  # the loop's time at which a write that is not finished began

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write until the client goes, stops reading, or the server ends the stream."""
        self.stream.hub.streams += 1
        try:
            await self._serve(scope, receive, send)
        finally:
            self.stream.hub.streams -= 1

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer = asyncio.create_task(self._write(send))
        watcher = asyncio.create_task(_until_disconnected(receive))
        try:
            while not await self._ended(writer, watcher):
                if self._stuck:
                    writer.cancel()
                    await _abort(scope, watcher)
                    break
        finally:
            writer.cancel()
            watcher.cancel()
            ended = await asyncio.gather(writer, watcher, return_exceptions=True)
        for outcome in ended:
            if isinstance(outcome, Exception):
                raise outcome

    async def _ended(self, *tasks: asyncio.Task[None]) -> bool:
        """Wait for one of the tasks, for as long as a write may take."""
        limit = self.stream.hub.settings.write_timeout_s
        done, _ = await asyncio.wait(tasks, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)

    @property
    def _stuck(self) -> bool:
        limit = self.stream.hub.settings.write_timeout_s
        return self.sending_since is not None and self.loop.time() - self.sending_since >= limit

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        sleeper = Sleeper(self.stream.hub)
        try:
            await self._send(send, await self.stream.opening(self.resume))
            async for past in self.stream.replay():
                await self._send(send, past)
            await self._follow(send, sleeper)
        finally:
            sleeper.close()

    async def _follow(self, send: Send, sleeper: Sleeper) -> None:
        stream, loop = self.stream, self.loop
        heartbeat_s = stream.hub.settings.heartbeat_s
        due = loop.time() + heartbeat_s
        while True:
            await sleeper.wait(stream.seq, due)
            ending = stream.ending
            data = await stream.following()
            if ending and stream.seq == stream.hub.log.seq:
                await self._send(send, data + stream.bye(), more=False)
                return
            if not data and loop.time() >= due:
                data = stream.wire.heartbeat(stream.seq, stream.hub.log.elapsed_ns)
            if data:
                await self._send(send, data)
                due = loop.time() + heartbeat_s

    async def _send(self, send: Send, data: bytes, *, more: bool = True) -> None:
        self.sending_since = self.loop.time()
        await send({"type": "http.response.body", "body": data, "more_body": more})
        self.sending_since = None


async def _until_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _abort(scope: Scope, watcher: asyncio.Task[None]) -> None:
    """Cut off a client that does not read, if the server can."""
    abort = scope.get("extensions", {}).get(ABORT)
    if abort is not None:
        abort()
        await asyncio.wait({watcher}, timeout=1)


def _stream(
    request: Request,
    resume: str | None,
    view: View,
    state: Callable[[], dict[str, Any]],
    gone: Callable[[], bool] = lambda: False,
) -> EventStream:
    context = context_of(request)
    context.hub.admit(context.settings.limits.streams)
    wire = NDJSON if in_lines(request.headers.get("accept", "")) else SSE
    return EventStream(Stream(context.hub, view, wire, state, gone), resume)


def _gone(request: Request, machine: Machine) -> Callable[[], bool]:
    machines = context_of(request).registry.machines
    return lambda: machines.get(machine.id) is not machine


every = Operations("events", *ROOT)
of_vm = Operations("events", *VM)
of_vcpu = Operations("events", *VCPU)


@every.get("/events", answer=STREAM)
async def stream_all(request: Request, context: TheContext, resume: Resume) -> Response:
    """Stream the events of every VM."""
    registry = context.registry
    return _stream(
        request, resume, View(), lambda: {"epoch": registry.log.epoch, "vms": iter(list(registry.describe()))}
    )


@of_vm.get("/events", answer=STREAM)
async def stream_vm(request: Request, machine: TheMachine, resume: Resume) -> Response:
    """Stream the events of one VM."""
    view = View(machine.id)
    return _stream(request, resume, view, lambda: machine.shape() | {"locks": machine.locks()}, _gone(request, machine))


@of_vcpu.get("/{id}/events", answer=STREAM)
async def stream_vcpu(request: Request, id: VcpuId, machine: TheMachine, resume: Resume) -> Response:
    """Stream the events of one vCPU."""
    machine.vcpu(id)
    view = View(machine.id, id)
    return _stream(
        request, resume, view, lambda: machine.describe_vcpu(id) | {"epoch": machine.log.epoch}, _gone(request, machine)
    )
