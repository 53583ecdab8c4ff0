"""Whoever leaves: one request to the application, given up at its n-th suspension, for every n.

A call can be left in three ways: its task is cancelled while it waits (a timeout, a server that stops), it is cancelled
just when what it waited for has come, or its client closes the connection.
"""

import asyncio
import json
import types
from dataclasses import dataclass, field

WAYS = ("cancelled", "cancelled_late", "disconnected")


@types.coroutine
def _counted(work, at, leave):
    """Perform ``work``, and call ``leave`` with what it waits for at its ``at``-th suspension."""
    answer, error, suspensions = None, None, 0
    while True:
        try:
            waits_for = work.send(answer) if error is None else work.throw(error)
        except StopIteration as stop:
            return stop.value
        suspensions += 1
        if suspensions == at:
            leave(waits_for)
        answer = error = None
        try:
            answer = yield waits_for
        except BaseException as thrown:
            error = thrown


@dataclass
class Departure:
    """One request, left at a suspension. ``reached``: it has so many; ``status``: of its answer, if one was begun."""

    app: object
    method: str
    path: str
    body: object = None
    at: int = 0
    way: str = "cancelled"
    reached: bool = False
    status: int | None = None
    answer: bytes = b""
    _gone: asyncio.Event = field(default_factory=asyncio.Event)
    _task: asyncio.Task | None = None

    async def perform(self):
        """Send it, leave it, and return once it is over."""
        self._task = asyncio.current_task()
        task = self._task = asyncio.create_task(self._run())
        await asyncio.wait({task})
        if not task.cancelled() and task.exception() is not None:
            raise task.exception()
        return self

    async def _run(self):
        await _counted(self.app(self._scope(), self._receiver(), self._send), self.at, self._leave)

    def _leave(self, waits_for):
        self.reached = True
        if self.way == "disconnected":
            self._gone.set()
        elif self.way == "cancelled":
            self._task.cancel()
        elif waits_for is None:
            asyncio.get_running_loop().call_soon(self._task.cancel)
        else:
            waits_for.add_done_callback(lambda _: self._task.cancel())

    @property
    def content(self):
        """The body's bytes."""
        if isinstance(self.body, bytes):
            return self.body
        return b"" if self.body is None else json.dumps(self.body).encode()

    def _scope(self):
        path, _, query = self.path.partition("?")
        kind = b"application/octet-stream" if isinstance(self.body, bytes) else b"application/json"
        headers = [(b"host", b"localhost"), (b"content-length", str(len(self.content)).encode())]
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [*headers, (b"content-type", kind)],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
        }

    def _receiver(self):
        messages = iter([{"type": "http.request", "body": self.content, "more_body": False}])

        async def receive():
            for message in messages:
                return message
            await self._gone.wait()
            return {"type": "http.disconnect"}

        return receive

    async def _send(self, message):
        self.status = message.get("status", self.status)
        self.answer += message.get("body", b"")
        await asyncio.sleep(0)  # a socket may be full
