"""The application factory and the server process.

The framework's server waits for connections before it tells the application to stop, so open streams would keep
it alive for ever. ``Server`` ends them first.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import socket
import stat
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.middleware.gzip import GZipMiddleware
from starlette.staticfiles import StaticFiles

from kickstand import __version__
from kickstand.api import streams
from kickstand.api.context import Context
from kickstand.api.edge import logs, problems
from kickstand.api.edge.bodies import JsonRoute
from kickstand.api.edge.guard import Guard
from kickstand.api.edge.head import Head
from kickstand.api.openapi import build
from kickstand.api.protocol import Config, Protocol, Watch
from kickstand.api.routes import (
    explorations,
    irqchip,
    memory,
    models,
    pages,
    runs,
    script,
    snapshots,
    system,
    trace,
    vcpus,
    vms,
)
from kickstand.core.errors import KvmError
from kickstand.core.variants import variant
from kickstand.guests.engines import engine_factory
from kickstand.runtime.registry import Registry
from kickstand.settings import Settings, SettingsError

BACKSTOP_S = 3
KEEP_ALIVE_S = 75  # longer than clients keep idle connections, so that none sends into one that is closing
CUT_OFF_S = 0.5  # how long clients may take to read the last words
BACKLOG = 256  # connections that wait to be accepted, and that are accepted in one turn of the loop
SEND_BUFFER = 256 << 10  # bounds what the kernel keeps for a client that does not read
OPEN_FILES = 65_536
COLLECT = (50_000, 20, 50)  # thresholds of the three generations: little here is left behind in a cycle
HERE: dict[str, str] = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  where a browser finds "every address"
ROUTERS = (
    runs.router,
    vcpus.router,
    models.router,
    models.system,
    snapshots.all_vms,
    snapshots.of_vm,
    vms.one_vm,
    irqchip.of_vm,
    irqchip.of_vcpu,
    vms.all_vms,
    memory.router,
    script.router,
    trace.router,
    explorations.router,
    streams.of_vcpu,
    streams.of_vm,
    streams.every,
    system.router,
    pages.router,
)


def create_app(settings: Settings | None = None) -> FastAPI:
    """Build the application. Nothing runs until its lifespan starts; the schema needs no more than this."""
    context = Context(settings or Settings())

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncGenerator[None]:
        await context.start()
        try:
            yield
        finally:
            await context.stop()

    app = FastAPI(
        title="Kickstand",
        version=__version__,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        telemetry={"auto_configure": False, "tracing": False, "metrics": False, "logs": False},
    )
    app.state.context = context
    app.router.route_class = JsonRoute
    problems.install(app)
    for router in ROUTERS:
        router.register(app)
    build.install(app)
    app.mount("/static", StaticFiles(directory=pages.STATIC))
    if pages.DASHBOARD.is_dir():
        app.mount("/dashboard", GZipMiddleware(StaticFiles(directory=pages.DASHBOARD)))
    hosts = (*context.settings.allowed_hosts, context.settings.host)
    limits = context.settings.limits
    larger = {"/vms/restore": limits.snapshot}
    app.add_middleware(Head)
    app.add_middleware(
        Guard, hosts=hosts, max_body=limits.body, bodies=limits.bodies, larger=larger, sessions=context.sessions
    )
    return app


class Server(uvicorn.Server):
    """A server that ends its streams and parked runs before it waits for connections."""

    def __init__(self, app: FastAPI, ready: Callable[[], None] | None = None) -> None:
        self.context: Context = app.state.context
        self.ready = ready
        self.watch: Watch | None = None
        config = Config(
            app,
            http=Protocol,
            ws="none",
            lifespan="on",
            log_config=None,  # ours, where a server logs at all
            access_log=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_graceful_shutdown=BACKSTOP_S,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        settings = self.context.settings
        super().__init__(config.admit(settings.requests, settings.limits.connections))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say when connections are accepted."""
        try:
            await self.context.start()  # here, where what is wrong is a sentence and not a framework's traceback
        except SettingsError:
            self.should_exit = True  # the context remembers why
            return
        await super().startup(sockets)
        self.watch = Watch(self)
        if self.ready is not None and self.started:
            self.ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End what waits, then everything else; who has not read the last words by then is cut off."""
        if self.watch is not None:
            self.watch.stop()
        await self.context.stop()
        cut_off = asyncio.get_running_loop().call_later(CUT_OFF_S, self._cut_off)
        try:
            await super().shutdown(sockets)
        finally:
            cut_off.cancel()
            if self.context.settings.uds is not None:
                self.context.settings.uds.unlink(missing_ok=True)  # now: the signal is raised again right after

    def _cut_off(self) -> None:
        for connection in tuple(self.server_state.connections):
            transport: Any = connection.transport
            transport.abort()


class Beside(Server):
    """A server that is not the process's main business: it runs on a loop of somebody else's, and takes no signals."""

    def __init__(self, settings: Settings, ready: Callable[[str], None]) -> None:
        logs.install()
        self._ready = ready
        self._listener = bind(settings)
        self._accepting = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        super().__init__(create_app(settings), self._accepting.set)
        sessions = self.context.sessions
        self._url = url_of(settings, self._listener, sessions.code() if sessions.required else None)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Leave signals to whoever the process belongs to."""
        yield

    @property
    def registry(self) -> Registry:
        """The machines that clients see."""
        return self.context.registry

    async def begin(self) -> None:
        """Start to serve; once connections are accepted, ``ready`` is given the URL, and it returns."""
        self._task = asyncio.create_task(self.serve(sockets=[self._listener]))
        accepting = asyncio.create_task(self._accepting.wait())
        await asyncio.wait({self._task, accepting}, return_when=asyncio.FIRST_COMPLETED)
        if self._task.done():
            accepting.cancel()
            await self._task
        _collect_rarely()
        self._ready(self._url)

    async def end(self) -> None:
        """Stop serving, as at SIGTERM."""
        self.should_exit = True
        if self._task is not None:
            await self._task
        self._listener.close()


def bind(settings: Settings) -> socket.socket:
    """Make the listening socket: TCP, or a UNIX socket that only this user may use.

    ``SettingsError`` if the address cannot be had.
    """
    if settings.uds is not None:
        return _bind_uds(settings.uds)
    try:
        info = socket.getaddrinfo(settings.host.strip("[]"), settings.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(*info[:3])  # without the protocol, asyncio would leave Nagle's algorithm on
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        listener.bind(info[4])
    except OSError as error:
        raise SettingsError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}") from error
    return listener


def _bind_uds(path: Path) -> socket.socket:
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(os.fspath(path))
        path.chmod(0o600)  # nobody can connect before it listens
    except OSError as error:
        listener.close()
        raise SettingsError(f"cannot listen on {path}: {error.strerror or error}") from error
    return listener


def _remove_stale(path: Path) -> None:
    """Remove the socket of a server that is gone; leave everything else alone."""
    if not path.exists() or not stat.S_ISSOCK(path.stat().st_mode):
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()


def url_of(settings: Settings, listener: socket.socket, code: str | None) -> str:
    """The address to click on; with a token it carries a code that works once."""
    if settings.uds is not None:
        return f"unix:{settings.uds}"
    host, port = listener.getsockname()[:2]
    host = str(HERE.get(host, host))
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/" + (f"#code={code}" if code else "")


def announce(url: str, context: Context) -> None:
    """Print the address, alone on its line so that a terminal makes it a link, and what a user asks next."""
    lines = ["Kickstand serves", url, f"state: {_kept(context)}"]
    if context.settings.uds is None:
        lines.append(f"docs:  {url.partition('#')[0]}docs")
    sys.stdout.write("\n".join([*lines, "stop:  Ctrl-C"]) + "\n")
    sys.stdout.flush()


def _kept(context: Context) -> str:
    """Where state is kept, and what was there."""
    if context.state_dir is None:
        return "none is kept (--ephemeral)"
    return f"{context.state_dir}" + (f", restored {', '.join(context.restored)}" if context.restored else "")


def serve(settings: Settings, *, ready: Callable[[str, Context], None] = announce) -> None:
    """Serve until SIGTERM or SIGINT. ``ready`` gets the URL once connections are accepted, and the server's state.

    ``SettingsError`` if the settings cannot be served.
    """
    _check_names(settings)
    _raise_file_limit()
    app = create_app(settings)
    logs.install()
    app.state.context.open()
    sessions = app.state.context.sessions
    listener = bind(settings)
    url = url_of(settings, listener, sessions.code() if sessions.required else None)
    _collect_rarely()
    try:
        server = Server(app, partial(ready, url, app.state.context))
        server.run(sockets=[listener])
        if app.state.context.refused is not None:
            raise app.state.context.refused
    finally:
        listener.close()


def _check_names(settings: Settings) -> None:
    """Find out now, rather than at the start of the lifespan, that the default VM cannot be made."""
    try:
        variant(settings.variant)
        engine_factory(settings.engine, "precise")
    except KvmError as error:
        raise SettingsError(error.detail) from error


def _collect_rarely() -> None:
    """A full collection walks all events that are kept, which stops everybody for a twentieth of a second."""
    gc.freeze()
    gc.set_threshold(*COLLECT)


def _raise_file_limit() -> None:
    """Every parked run and every stream is an open file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
