"""A server in this process on a real socket, and clients that read its streams."""

import asyncio
import contextlib
import json
from dataclasses import dataclass

import httpx

from kickstand.api.context import Context
from kickstand.main import Server, bind, create_app
from kickstand.settings import Settings

WAIT_S = 10


@dataclass
class Live:
    """A running server, with its insides."""

    server: Server
    context: Context
    port: int

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    @property
    def registry(self):
        return self.context.registry

    def client(self, **options):
        """A client that may park as many calls as it likes."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        return httpx.AsyncClient(base_url=self.url, timeout=WAIT_S, limits=limits, **options)


@contextlib.asynccontextmanager
async def live(**settings):
    """Serve with ``settings`` until the block ends, as ``Server.serve`` does but without its ticks and signals."""
    chosen = Settings(**({"port": 0} | settings))
    app = create_app(chosen)
    listener = bind(chosen)
    listener.setblocking(False)
    server = Server(app)
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup(sockets=[listener])
    here = Live(server, app.state.context, listener.getsockname()[1])
    try:
        yield here
    finally:
        if server.started:
            await server.shutdown(sockets=[listener])


async def until(condition, what="it"):
    """Give other tasks turns until ``condition`` holds."""
    loop = asyncio.get_running_loop()
    end = loop.time() + WAIT_S
    while not condition():
        assert loop.time() < end, f"{what} did not happen"
        await asyncio.sleep(0)


async def ready(client):
    """Ask until the server is ready: on a busy machine it may have been late, which it says for a moment."""
    async with asyncio.timeout(WAIT_S):
        while (await client.get("/readyz")).status_code != 200:
            pass


class Events:
    """What a stream has sent, event by event."""

    def __init__(self, lines, *, ndjson):
        self._lines = lines
        self._ndjson = ndjson
        self.comments = []

    async def next(self):
        """The next event: ``{"id", "event", "data"}``."""
        async with asyncio.timeout(WAIT_S):
            return await (self._next_json() if self._ndjson else self._next_sse())

    async def _next_json(self):
        return json.loads(await anext(self._lines))

    async def _next_sse(self):
        found = {"id": None, "event": "message"}
        async for line in self._lines:
            name, _, value = line.partition(": ")
            if not line and "data" in found:
                return found
            if line.startswith(":"):
                self.comments.append(line)
            elif line:
                found[name] = json.loads(value) if name == "data" else value
        raise EOFError("the stream has ended")

    async def until(self, name, **members):
        """All events up to the first of this name whose data has these members."""
        seen = []
        while True:
            event = await self.next()
            seen.append(event)
            if event["event"] == name and members.items() <= event["data"].items():
                return seen

    async def rest(self):
        """All events up to the end of the stream."""
        seen = []
        with contextlib.suppress(EOFError, StopAsyncIteration):
            while True:
                seen.append(await self.next())
        return seen


@contextlib.asynccontextmanager
async def events(client, path, *, ndjson=False, **options):
    """Open a stream."""
    headers = options.pop("headers", {}) | ({"Accept": "application/x-ndjson"} if ndjson else {})
    async with client.stream("GET", path, headers=headers, **options) as response:
        assert response.status_code == 200, await response.aread()
        yield Events(response.aiter_lines(), ndjson=ndjson)


def assert_problem(response, status, errno):
    """The response is a complete problem with this status and errno; return it."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    problem = response.json()
    assert (response.status_code, problem["status"], problem["errno"]) == (status, status, errno), problem
    wanted = {
        "type",
        "title",
        "status",
        "detail",
        "instance",
        "errno",
        "errno_value",
        "ioctl",
        "vm",
        "vcpu",
        "retryable",
    }
    assert wanted <= set(problem)
    assert problem["instance"] == response.headers["x-request-id"]
    assert response.headers["kickstand-errno"] == errno
    return problem


def seqs(seen):
    return [event["data"]["seq"] for event in seen]
