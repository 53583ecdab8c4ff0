"""pytest fixtures: a server on a free port, and virtual machines in the test's own event loop.

pytest loads this file whenever it starts in an environment with Kickstand. So nothing heavy is imported here: the
server is, in the first test that asks for it.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from kickstand.client import Client
    from kickstand.runtime.machine import Machine

MachineFactory = Callable[..., AbstractAsyncContextManager["Machine"]]
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class KickstandServer:
    """A server, and a client of its VM ``default`` (4 vCPUs, ``sticky``, engine ``script``)."""

    url: str
    client: Client


@pytest.fixture
def kickstand_server(_kickstand_url: str) -> Generator[KickstandServer]:
    """A Kickstand server on a free port of 127.0.0.1, as new: what a test leaves in it is dropped after the test.

    It keeps nothing on disk and runs on a thread of the test's process. Runs that a test left parked end with EIO.
    """
    from kickstand.client import Client  # noqa: PLC0415

    with Client(_kickstand_url) as client:
        yield KickstandServer(_kickstand_url, client)
    with Client(_kickstand_url) as client:  # the test may have closed its own
        client.reset()


@pytest.fixture
def kickstand_vm() -> MachineFactory:
    """Make virtual machines in the running event loop: no server, no socket, no thread.

    ``async with kickstand_vm(vcpus=2, variant="holds", programs=[...]) as vm:`` takes the options of
    ``Registry.create`` (one vCPU by default) and gives its ``Machine``, whose methods are the ioctls; they raise
    ``KvmError``. At the end of the block the VM is destroyed: runs that are parked in it end with EIO.
    """
    return _machine


@pytest.fixture(scope="session")
def _kickstand_url() -> Generator[str]:
    """One server for all tests, because making the application takes longer than most tests."""
    with _serving() as url:
        yield url


@contextmanager
def _serving() -> Generator[str]:
    from kickstand.main import Server, bind, create_app  # noqa: PLC0415
    from kickstand.settings import Settings  # noqa: PLC0415

    settings = Settings(port=0, allow_reset=True)
    ready = threading.Event()
    with bind(settings) as listener:
        server = Server(create_app(settings), ready.set)
        thread = threading.Thread(target=server.run, args=([listener],), name="kickstand", daemon=True)
        thread.start()
        while not ready.wait(POLL_S):
            if not thread.is_alive():
                raise RuntimeError("the Kickstand server did not start; its traceback is above")
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@asynccontextmanager
async def _machine(*, vcpus: int = 1, **options: Any) -> AsyncGenerator[Machine]:
    from kickstand.runtime.registry import Registry  # noqa: PLC0415

    registry = Registry()
    try:
        yield await registry.create(vcpus=vcpus, **options)
    finally:
        await registry.reset()
