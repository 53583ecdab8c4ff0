"""One server for all tests of this folder; each test has a VM of its own."""

import itertools

import pytest
import pytest_asyncio

from tests.api.live import live

numbers = itertools.count(1)


def pytest_collection_modifyitems(items):
    """Coroutine tests here share the loop that the server runs on."""
    shared = pytest.mark.asyncio(loop_scope="session")
    for item in items:
        if "/tests/api/" in str(item.path) and pytest_asyncio.is_async_test(item):
            item.add_marker(shared, append=False)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def server():
    async with live(allow_reset=True) as running:
        yield running


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def client(server):
    async with server.client() as made:
        yield made


@pytest_asyncio.fixture(loop_scope="session")
async def machine(server):
    """A VM with two vCPUs that spin."""
    made = await server.registry.create(f"t{next(numbers)}", vcpus=2)
    yield made
    if made.id in server.registry.machines:
        await server.registry.destroy(made.id)


@pytest.fixture
def vm(machine):
    """The path of ``machine``."""
    return f"/vms/{machine.id}"
