"""ASGI applications on one event loop in a thread of their own, whose CPU time is the server's alone; plain clients."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import uvicorn

from kickstand.api.protocol import Config
from kickstand.main import KEEP_ALIVE_S, Protocol, Server, bind, create_app
from kickstand.settings import Settings

CLIENTS = 16


class Served:
    """A loop that serves applications; ``clock`` is the CPU time of its thread in ns."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self._clock = time.pthread_getcpuclockid(self._thread.ident)
        self._servers: list[tuple[uvicorn.Server, socket.socket]] = []

    def clock(self) -> int:
        """CPU time of the serving thread in ns."""
        return time.clock_gettime_ns(self._clock)

    def run(self, work: Any) -> Any:
        """Run a coroutine on the serving loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def kickstand(self, settings: Settings) -> tuple[int, Any]:
        """Serve Kickstand; returns its port and its context."""
        app = create_app(settings)
        app.state.context.open()
        return self.run(self._start(Server(app))), app.state.context

    def app(self, app: Any) -> int:
        """Serve any application with the same server under the same options; returns its port."""
        config = Config(
            app,
            http=Protocol,
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="on",
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        settings = Settings()
        return self.run(self._start(uvicorn.Server(config.admit(settings.requests, settings.limits.connections))))

    async def _start(self, server: uvicorn.Server) -> int:
        listener = bind(Settings(port=0))  # as the product binds: a bare socket would keep Nagle's algorithm on
        listener.setblocking(False)
        server.config.load()
        server.lifespan = server.config.lifespan_class(server.config)
        await server.startup(sockets=[listener])
        self._servers.append((server, listener))
        return int(listener.getsockname()[1])

    def until(self, done: Callable[[], bool]) -> None:
        """Wait for something on the serving loop."""
        end = time.monotonic() + 30
        while not done():
            assert time.monotonic() < end
            time.sleep(0.01)

    def close(self) -> None:
        """Stop serving."""
        for server, listener in self._servers:
            server.force_exit = True  # whoever is still connected is not waited for
            self.run(server.shutdown(sockets=[listener]))
            self.run(server.lifespan.shutdown())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()


@contextlib.contextmanager
def served() -> Iterator[Served]:
    """A loop for the block."""
    here = Served()
    try:
        yield here
    finally:
        here.close()


def request(method: str, path: str, body: bytes = b"") -> bytes:
    """The bytes of a request."""
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def answer(reader: asyncio.StreamReader) -> bytes:
    """The body of the next answer; its status must be 2xx."""
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 2"), head
    at = head.lower().index(b"content-length:") + len(b"content-length:")
    return await reader.readexactly(int(head[at : head.index(b"\r", at)]))


class Clients:
    """Connections that stay open, each with one request at a time."""

    def __init__(self, port: int, clients: int = CLIENTS) -> None:
        self.loop = asyncio.new_event_loop()
        self._links = self.loop.run_until_complete(self._connect(port, clients))

    async def _connect(self, port: int, clients: int) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        return [await asyncio.open_connection("127.0.0.1", port) for _ in range(clients)]

    def send(self, requests: Sequence[bytes], times: int) -> bytes:
        """Send ``times`` requests in all, client n the n-th of ``requests``; returns one of the answers."""
        return self.loop.run_until_complete(self._send(requests, times))

    async def _send(self, requests: Sequence[bytes], times: int) -> bytes:
        each = times // len(self._links)
        loads = (requests[number % len(requests)] for number in range(len(self._links)))
        done = await asyncio.gather(*(_ask(*link, load, each) for link, load in zip(self._links, loads, strict=True)))
        return done[0]


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, load: bytes, times: int) -> bytes:
    body = b""
    for _ in range(times):
        writer.write(load)
        body = await answer(reader)
    return body
