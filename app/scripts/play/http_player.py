"""Plays traces on a server: one VM of its own per trace, its operations in as few requests as the limits allow."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Any, Self
from urllib.parse import quote

import httpx

from kickstand.scripts.language.parse import Operation, plain
from kickstand.scripts.language.presets import special_registers
from kickstand.scripts.language.script import Trace
from kickstand.scripts.play.backends import vm_options
from kickstand.scripts.play.forms import Result

BATCH = 1_000  # operations in one request
BATCH_BYTES = 4 << 20  # of hex in one request, roughly
TIMEOUT_S = 120.0


class ServerError(Exception):
    """The server refused a request that a replay needs; the text is its problem's."""


class OverHttp:
    """A server at ``url``. ``token`` is sent as bearer; ``transport`` is for servers in this process or on a socket."""

    def __init__(
        self,
        url: str,
        engine: str | None = None,
        variant: str | None = None,
        *,
        token: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.name = url
        self._engine = engine
        self._variant = variant
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.AsyncClient(base_url=url, headers=headers, transport=transport, timeout=TIMEOUT_S)

    async def play(self, trace: Trace) -> AsyncGenerator[Result, None]:
        options = vm_options(trace, self._engine, self._variant)
        if not options.pop("seed"):
            created = await self._post("/vms", options)
        else:
            created = await self._post("/vms", options | {"seed": trace.vm.seed})
        path = f"/vms/{quote(created['id'], safe='')}"
        try:
            for batch in _batches(trace):
                answer = await self._post(f"{path}/script", batch)
                for result in answers(answer):
                    yield result
        finally:
            await self._client.delete(path)

    async def _post(self, path: str, body: object) -> Any:
        try:
            response = await self._client.post(path, json=body)
        except httpx.HTTPError as error:
            raise ServerError(f"{self.name}: {error}") from error
        if response.is_error:
            raise ServerError(problem(response))
        return response.json()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        await self._client.aclose()


def _batches(trace: Trace) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    size = 0
    for operation in trace.operations:
        weight = len(getattr(operation.args, "hex", ""))
        if batch and (len(batch) == BATCH or size + weight > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(_portable(trace, operation))
        size += weight
    if batch:
        yield batch


def answers(body: object) -> list[Result]:
    """The results in the answer to POST ``/vm/script``: a list, or an object with ``results``."""
    results = body.get("results") if isinstance(body, dict) else body
    if not isinstance(results, list):
        raise ServerError("the answer to a script is no list of results")
    return results


def _portable(trace: Trace, operation: Operation) -> dict[str, Any]:
    """An operation that needs no preset of this side."""
    (value,) = plain([operation])
    value.pop("result", None)
    args = value["args"]
    if args.get("preset") is not None:
        value["args"] = {
            "vcpu": args["vcpu"],
            "changes": special_registers(trace.presets, args["preset"], args.get("changes", {})),
        }
    return value


def problem(response: httpx.Response) -> str:
    """One line for a refused request."""
    try:
        body = response.json()
    except ValueError:
        body = None
    detail = body.get("detail") if isinstance(body, Mapping) else None
    request = response.request
    return f"{request.method} {request.url.path}: {response.status_code} {detail or response.reason_phrase}"
