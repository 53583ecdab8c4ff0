"""Event fan-out to a hundred streams against sse-starlette with a queue a stream, and the memory of an idle stream."""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import Ratio, at_most, judged, measured, report
from harness.served import Served, served
from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from kickstand.api.hub import Hub
from kickstand.runtime.events import EventLog
from kickstand.settings import Limits, Settings

STREAMS = 100
RATE = 5_000  # events a second, as many as their tick lets share a wake-up
SECONDS = 1.0
PEER_RATE = 100  # what the peer keeps up with: its cost of one delivery is the same below saturation
ROUNDS = 3
IDLE, FIRST = 500, 50
EVENT = b"event: kvm_exit"
FIELDS = {"reason": "KVM_EXIT_IO", "entries": 12, "port": 1}


class Peer:
    """The same events by sse-starlette: a queue for each stream, an event object for each delivery."""

    def __init__(self) -> None:
        self.queues: set[asyncio.Queue[dict[str, Any]]] = set()
        self.seq = 0
        self.app = Starlette(routes=[Route("/events", self.stream)])

    async def stream(self, _request: Request) -> EventSourceResponse:
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.queues.add(queue)

        async def events() -> Any:
            try:
                while True:
                    yield await queue.get()
            finally:
                self.queues.discard(queue)

        return EventSourceResponse(events())

    def emit(self) -> None:
        """One event to everybody, encoded once."""
        self.seq += 1
        data = json.dumps({"seq": self.seq, "vm": "default", "vcpu": 0, "t_ns": time.monotonic_ns(), **FIELDS})
        event = {"id": f"0-{self.seq}", "event": "kvm_exit", "data": data}
        for queue in self.queues:
            queue.put_nowait(event)


async def produce(emit: Callable[[], object], rate: int, tick_s: float) -> int:
    """Emit for a while, in ticks; returns how many."""
    loop = asyncio.get_running_loop()
    each = max(1, round(rate * tick_s))
    ticks = round(SECONDS * rate / each)
    due = loop.time()
    for _ in range(ticks):
        for _ in range(each):
            emit()
        due += each / rate
        await asyncio.sleep(max(0, due - loop.time()))
    return ticks * each


class Readers:
    """Connections that read a stream and count its events."""

    def __init__(self, port: int, streams: int) -> None:
        self.loop = asyncio.new_event_loop()
        self.seen = 0
        self._tasks = [self.loop.create_task(self._read(port)) for _ in range(streams)]

    async def _read(self, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
        writer.write(b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        tail = b""
        try:
            while data := await reader.read(1 << 18):
                data = tail + data
                self.seen += data.count(EVENT)
                tail = data[1 - len(EVENT) :]  # one may lie across two reads
        finally:
            writer.close()

    def until(self, done: Callable[[], bool]) -> None:
        """Read until ``done``."""

        async def reading() -> None:
            while not done():
                await asyncio.sleep(0.01)

        self.loop.run_until_complete(reading())

    def close(self) -> None:
        """Hang up."""
        for task in self._tasks:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))


def per_delivery(here: Served, readers: Readers, emit: Callable[[], object], rate: int, tick_s: float) -> float:
    """CPU of the server for one event at one stream, in ns."""
    seen, started = readers.seen, here.clock()
    producing = asyncio.run_coroutine_threadsafe(produce(emit, rate, tick_s), here.loop)
    readers.until(producing.done)
    wanted = seen + STREAMS * producing.result()
    end = time.monotonic() + 10
    readers.until(lambda: readers.seen >= wanted or time.monotonic() > end)
    assert readers.seen == wanted, f"{readers.seen} of {wanted} deliveries"
    return (here.clock() - started) / (wanted - seen)


def fan_out(here: Served, port: int, hub: Hub, log: EventLog) -> list[Ratio]:
    """CPU of one delivery, theirs and ours alternating."""
    peer = Peer()
    theirs, ours = Readers(here.app(peer.app), STREAMS), Readers(port, STREAMS)
    theirs.until(lambda: len(peer.queues) == STREAMS)
    ours.until(lambda: hub.streams == STREAMS)
    rows = []
    try:
        for tick_ms, bound in ((10, 1 / 50), (1, 1 / 10)):
            ratios = []
            for _ in range(ROUNDS):
                us = per_delivery(
                    here, ours, lambda: log.emit("default", "kvm_exit", 0, dict(FIELDS)), RATE, tick_ms / 1_000
                )
                them = per_delivery(here, theirs, peer.emit, PEER_RATE, tick_ms / 1_000)
                ratios.append(us / them)
            note = f"{us / 1_000:.2f} us against {them / 1_000:.1f} us in the last round"
            row = f"event fan-out, {STREAMS} streams, ticks of {tick_ms} ms, CPU a delivery"
            rows.append(judged(row, "sse-starlette", ratios, at_most(bound), note=note))
    finally:
        ours.close()
        theirs.close()
    return rows


def resident() -> int:
    """Bytes of memory this process has."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def idle(here: Served, port: int, hub: Hub) -> Ratio:
    """Memory of a stream that waits, with its connection; its client is a bare socket."""
    here.until(lambda: hub.streams == 0)
    sockets = bare_clients(port, FIRST)  # what only the first ones cost
    here.until(lambda: hub.streams == FIRST)
    before = resident()
    sockets += bare_clients(port, IDLE - FIRST)
    here.until(lambda: hub.streams == IDLE)
    grown = resident() - before
    for link in sockets:
        link.close()
    return measured("memory per idle stream", grown / (IDLE - FIRST) / 1_000, "kB", at_most(32))


def bare_clients(port: int, count: int) -> list[socket.socket]:
    """Sockets that have asked for a stream: nearly no memory of this process."""
    links = []
    for _ in range(count):
        link = socket.create_connection(("127.0.0.1", port))
        link.sendall(b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        links.append(link)
    return links


def main() -> list[Ratio]:
    """All rows."""
    with served() as here:
        port, context = here.kickstand(Settings(limits=Limits(streams=2 * IDLE)))
        hub = context.hub
        return [*fan_out(here, port, hub, context.registry.log), idle(here, port, hub)]


if __name__ == "__main__":
    report(main())
