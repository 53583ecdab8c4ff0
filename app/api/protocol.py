"""HTTP/1.1 as this server speaks it: how many may connect, and how long a request may take to arrive.

The rest is the framework's. Nobody who is slow, or says nothing at all, keeps a descriptor for ever; and while
descriptors are left for whoever works, a connection too many is told so.
"""

from __future__ import annotations

import asyncio
import resource
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from kickstand.api import streams
from kickstand.api.edge import problems
from kickstand.api.edge.guard import SECURITY_HEADERS
from kickstand.settings import RequestSettings

STATUS_LINES = {400: b"HTTP/1.1 400 Bad Request", 408: b"HTTP/1.1 408 Request Timeout"} | {
    503: b"HTTP/1.1 503 Service Unavailable"
}
LOOK_S = 0.5  # connections are looked at so often


class Config(uvicorn.Config):
    """The framework's configuration, with what ``Protocol`` needs to know."""

    requests: RequestSettings
    connections: int

    def admit(self, settings: RequestSettings, connections: int) -> Config:
        """Take the settings; a quarter of the descriptors stays free for everything else."""
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.requests = settings
        self.connections = connections if files == resource.RLIM_INFINITY else min(connections, files * 3 // 4)
        return self


class Protocol(HttpToolsProtocol):
    """One connection. It answers nonsense with a problem and lets a stream cut off a client that does not read.

    ``due``: when the bytes that are waited for must have come, in the loop's time; None while none are.
    """

    config: Config
    due: float | None = None
    _refused = False

    def connection_made(self, transport: Any) -> None:
        """Wait for the first request, or refuse one connection too many."""
        super().connection_made(transport)
        self.due = self.loop.time() + self.config.requests.first_s
        if len(self.connections) > self.config.connections:
            self._refused = True
            self._refuse(503, f"{self.config.connections} connections are open, which is the limit (connections)")

    def data_received(self, data: bytes) -> None:
        """Feed the parser; the clock of a request begins with its first byte."""
        if self._refused:
            return
        cycle: Any = self.cycle  # None before the first request
        if self.due is None and (cycle is None or not cycle.more_body):
            self.due = self.loop.time() + self.config.requests.head_s
        super().data_received(data)

    def on_message_begin(self) -> None:
        """Offer ``abort`` to the application."""
        super().on_message_begin()
        if self.due is None:
            self.due = self.loop.time() + self.config.requests.head_s
        abort: Any = self.transport.abort
        self.scope["extensions"] = {streams.ABORT: abort}

    def on_headers_complete(self) -> None:
        """The head is there: now the body has its time."""
        self.due = self.loop.time() + self.config.requests.body_s
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Every piece earns some time: a body may be long, but it must not drip."""
        settings = self.config.requests
        if self.due is not None:
            latest = self.loop.time() + settings.body_s
            self.due = min(latest, self.due + len(body) / settings.slowest)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """All of it is there."""
        self.due = None
        super().on_message_complete()

    def look(self, now: float) -> None:
        """Close a connection whose request does not come."""
        if self.due is None or now < self.due or self.transport.is_closing():
            return
        cycle: Any = self.cycle
        if self.flow.read_paused:  # the server is the slow one
            self.due = now + self.config.requests.body_s
        elif cycle is not None and not cycle.more_body and not cycle.response_complete:
            return  # what comes next has to wait for this answer
        elif cycle is not None and cycle.response_started and not cycle.response_complete:
            self.transport.abort()
        else:
            self._refuse(408, "the request did not arrive in time")

    def send_400_response(self, msg: str) -> None:
        """The bytes were not HTTP."""
        self._refuse(400, msg)

    def _refuse(self, status: int, detail: str) -> None:
        """Answer without the application, and close."""
        self.due = None
        response = problems.http_failure({"path": ""}, status, detail, {"Connection": "close"})
        headers = [*response.raw_headers, *SECURITY_HEADERS]
        lines = [STATUS_LINES[status], *(b"%b: %b" % header for header in headers), b"", bytes(response.body)]
        self.transport.write(b"\r\n".join(lines))
        self.transport.close()


class Watch:
    """Looks at all connections again and again: one timer, instead of some for each request."""

    def __init__(self, server: uvicorn.Server) -> None:
        self._state = server.server_state
        self._loop = asyncio.get_running_loop()
        self._next = self._loop.call_later(LOOK_S, self._look)

    def _look(self) -> None:
        now = self._loop.time()
        for connection in tuple(self._state.connections):
            if isinstance(connection, Protocol):
                connection.look(now)
        self._next = self._loop.call_later(LOOK_S, self._look)

    def stop(self) -> None:
        """Look no more."""
        self._next.cancel()
