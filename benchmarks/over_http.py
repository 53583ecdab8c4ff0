"""KVM_RUN over HTTP: one request a call against a route that does nothing, and a thousand operations a request."""

from __future__ import annotations

import json
from typing import Annotated

from fastapi import FastAPI, Path
from harness import Ratio, at_least, at_most, compare, report
from harness.served import CLIENTS, Clients, Served, request, served

from kickstand.api.shapes.vcpus import Run, RunDone
from kickstand.settings import Settings

REQUESTS = 40 * CLIENTS
OPERATIONS = 1_000
PROGRAMS = [["out", 1, 1]]
ANSWER = {
    "ret": 0,
    "errno": None,
    "exit_reason": "KVM_EXIT_IO",
    "exit_reason_value": 2,
    "io": {"direction": "out", "size": 1, "port": 1, "count": 1, "data": "01"},
    "cause": None,
    "kick_id": None,
    "run_ns": 41_000,
    "seq": 12,
}


def nothing_done() -> FastAPI:
    """The same route with the same body and answer, as one writes it with FastAPI, doing nothing."""
    app = FastAPI(telemetry={"auto_configure": False, "tracing": False, "metrics": False, "logs": False})

    @app.post("/vcpu/{id}/run")
    async def run(id: Annotated[int, Path()], body: Run | None = None) -> RunDone:  # noqa: ARG001
        return ANSWER  # type: ignore[return-value]  # validated by the framework

    return app


def one_by_one(here: Served, port: int) -> Ratio:
    """POST /vcpu/{id}/run, with and without a body."""
    theirs, ours = Clients(here.app(nothing_done())), Clients(port)
    loads = [request("POST", f"/vcpu/{vcpu}/run", b'{"timeout_ms":1000}') for vcpu in range(CLIENTS)]
    return compare(
        "POST /vcpu/{id}/run",
        "FastAPI route that does nothing",
        lambda: ours.send(loads, REQUESTS),
        lambda: theirs.send(loads, REQUESTS),
        goal=at_most(1.25),
        clock=here.clock,
    )


def in_a_script(here: Served, port: int) -> Ratio:
    """The same operation, a thousand a request: operations per CPU second."""
    ours, single = Clients(port, 1), Clients(port, 1)
    operations = [{"op": "run", "args": {"vcpu": 0}}] * OPERATIONS
    load = [request("POST", "/vm/script", json.dumps(operations).encode())]
    alone = [request("POST", "/vcpu/0/run")]
    return compare(
        "POST /vm/script, operations per CPU second",
        "POST /vcpu/{id}/run, one by one",
        lambda: ours.send(load, 1),
        lambda: single.send(alone, OPERATIONS // 4),
        goal=at_least(20),
        scale=4,
        faster=True,
        clock=here.clock,
    )


def main() -> list[Ratio]:
    """Both rows."""
    with served() as here:
        port, context = here.kickstand(Settings(vcpus=CLIENTS))
        machine = context.registry.get("default")
        for vcpu in range(CLIENTS):
            here.run(machine.set_program(vcpu, PROGRAMS))
        return [one_by_one(here, port), in_a_script(here, port)]


if __name__ == "__main__":
    report(main())
