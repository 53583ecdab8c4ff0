"""Requests made from the OpenAPI schema, valid and not: no internal error, every answer as described."""

import asyncio
import contextlib
import os
import threading

import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from kickstand.core.memslots import Region
from kickstand.settings import Limits
from tests.api.live import live

EXAMPLES = int(os.environ.get("KICKSTAND_SCHEMA_EXAMPLES", "2"))  # of each operation; more, by hand, find more
ENGINE = os.environ.get("KICKSTAND_SCHEMA_ENGINE", "script")
PROMISED = {501, 503, 504, 507}  # failures of 5xx that are the API's own
RAM = 0x10000
load_all_checks()
CONFORMANCE = CHECKS.get_by_names(
    ["status_code_conformance", "content_type_conformance", "response_schema_conformance"]
)
LIMITS = Limits(vms=8, memory_per_vm=1 << 20, run_timeout_ms=20, explorations=0, body=1 << 20)
"""No call waits for long, and none takes much."""


class Client:
    """A session with a server on a loop of its own: the generator is not written for asyncio."""

    PATIENCE_S = 20

    def __init__(self, limits=LIMITS):
        self.session = requests.Session()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.serving = live(limits=limits, allow_reset=True, engine=ENGINE)
        self.server = self.run(self.serving.__aenter__())
        self.url = self.server.url

    def run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def call(self, method, path, **options):
        return self.session.request(method, self.url + path, timeout=self.PATIENCE_S, **options)

    def close(self):
        self.session.close()
        self.run(self.serving.__aexit__(None, None, None))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture(scope="module")
def client():
    made = Client()
    yield made
    made.close()


async def prepare(server):
    """The default VM with something in it, whatever the last request has left."""
    await server.context.reset()
    machine = server.registry.get("default")
    arena = machine.memory.allocate(RAM, "ram")
    await machine.set_user_memory_region(Region(0, 1, 0, RAM, arena.base))


def aim(case):
    """Most requests are for what is there."""
    parameters = case.path_parameters or {}
    if "vm" in parameters and len(str(parameters["vm"])) % 4:
        parameters["vm"] = "default"
    if "id" in parameters and isinstance(parameters["id"], int):
        parameters["id"] %= 5
    if "userspace_addr" in parameters and len(str(parameters["userspace_addr"])) % 2:
        parameters["userspace_addr"] = "0x7f0000000000"


def check(client, case):
    """Send it. ``AssertionError``: an answer that is not as promised."""
    aim(case)
    client.run(prepare(client.server))
    response = case.call(base_url=client.url, session=client.session, timeout=20)
    what = f"{case.as_curl_command()}: {response.status_code} {response.content[:500]}"
    assert response.status_code < 500 or response.status_code in PROMISED, what
    if response.status_code >= 400:
        assert response.headers["content-type"] == ["application/problem+json"], what
        assert response.json()["errno"], what
    case.validate_response(response, checks=CONFORMANCE)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_every_operation_answers_as_its_schema_says(client, mode):
    schema = schemathesis.openapi.from_dict(client.call("GET", "/openapi.json").json())
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path.endswith("/events"):
            continue  # answers that do not end

        @settings(
            max_examples=EXAMPLES,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def answers(case):
            check(client, case)

        with contextlib.suppress(hypothesis.errors.Unsatisfiable):  # nothing of it can be wrong
            answers()
