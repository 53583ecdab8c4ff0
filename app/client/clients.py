"""The two clients over httpx, and what a refusal is."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import TYPE_CHECKING, Any, Self

from kickstand.client.calls import Calls, Json, given

if TYPE_CHECKING:
    import httpx

DEFAULT_URL = "http://127.0.0.1:8000"


class KickstandError(Exception):
    """The server refused: ``errno`` is the symbolic name (``"EEXIST"``), ``problem`` the whole RFC 9457 object."""

    def __init__(self, problem: Json) -> None:
        self.problem = problem
        self.status: int = problem.get("status", 0)
        self.errno: str | None = problem.get("errno")
        super().__init__(f"{self.errno or self.status}: {problem.get('detail') or problem.get('title')}")


def _problem(response: httpx.Response) -> KickstandError:
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        problem = {"status": response.status_code, "title": response.reason_phrase, "detail": response.text[:200]}
    return KickstandError(problem)


def _options(url: str, token: str | None, timeout: float | None) -> dict[str, Any]:
    import httpx  # noqa: PLC0415  help and usage errors need no connection

    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return {
        "base_url": url,
        "headers": headers,
        "timeout": httpx.Timeout(timeout, connect=5),
        "limits": httpx.Limits(max_connections=None, max_keepalive_connections=64),
    }


class Client(Calls[Json, bytes]):
    """The synchronous client. ``timeout`` in seconds bounds each answer; None (the default) waits for KVM_RUN."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        vm: str = "default",
        token: str | None = None,
        uds: str | None = None,
        timeout: float | None = None,
    ) -> None:
        super().__init__(vm)
        import httpx  # noqa: PLC0415  help and usage errors need no connection

        self.http = httpx.Client(
            transport=httpx.HTTPTransport(uds=uds) if uds else None, **_options(url, token, timeout)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self.http.close()

    def _json(self, method: str, path: str, body: object = None, **params: object) -> Json:
        return _answer(self.http.request(method, path, **_sent(body), params=params or None))  # type: ignore[arg-type]  # scalars

    def _bytes(self, method: str, path: str, content: bytes | None = None, **params: object) -> bytes:
        return _checked(self.http.request(method, path, **_sent(content), params=params or None)).content  # type: ignore[arg-type]  # scalars

    def events(self, after: str | None = None) -> Iterator[Json]:
        """Yield the VM's events, ``{"id", "event", "data"}``: a snapshot, then everything after it, until ``bye``."""
        with self.http.stream("GET", self._vm("/events"), **_streaming(after)) as response:
            if response.is_error:
                response.read()
                raise _problem(response)
            for line in response.iter_lines():
                if line.strip():
                    yield json.loads(line)


class AsyncClient(Calls[Awaitable[Json], Awaitable[bytes]]):
    """The asynchronous client; cancelling an awaited ``run`` is a signal to that vCPU's thread."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        vm: str = "default",
        token: str | None = None,
        uds: str | None = None,
        timeout: float | None = None,
    ) -> None:
        super().__init__(vm)
        import httpx  # noqa: PLC0415  help and usage errors need no connection

        transport = httpx.AsyncHTTPTransport(uds=uds) if uds else None
        self.http = httpx.AsyncClient(transport=transport, **_options(url, token, timeout))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self.http.aclose()

    async def _json(self, method: str, path: str, body: object = None, **params: object) -> Json:
        return _answer(await self.http.request(method, path, **_sent(body), params=params or None))  # type: ignore[arg-type]  # scalars

    async def _bytes(self, method: str, path: str, content: bytes | None = None, **params: object) -> bytes:
        return _checked(await self.http.request(method, path, **_sent(content), params=params or None)).content  # type: ignore[arg-type]  # scalars

    async def events(self, after: str | None = None) -> AsyncIterator[Json]:
        """Yield the VM's events, as ``Client.events``."""
        async with self.http.stream("GET", self._vm("/events"), **_streaming(after)) as response:
            if response.is_error:
                await response.aread()
                raise _problem(response)
            async for line in response.aiter_lines():
                if line.strip():
                    yield json.loads(line)


def _sent(body: object) -> dict[str, Any]:
    """A request's body: bytes as they are, everything else as JSON."""
    if isinstance(body, bytes):
        return {"content": body, "headers": {"Content-Type": "application/octet-stream"}}
    return {} if body is None else {"json": body}


def _checked(response: httpx.Response) -> httpx.Response:
    if response.is_error:
        raise _problem(response)
    return response


def _answer(response: httpx.Response) -> Json:
    """The JSON of an answer; ``{}`` for an empty one."""
    if not _checked(response).content:
        return {}
    try:
        answer: Json = response.json()
    except ValueError:
        detail = "the answer is no JSON: this is no Kickstand server, or something stands between"
        raise KickstandError({"status": response.status_code, "detail": detail}) from None
    return answer


def _streaming(after: str | None) -> dict[str, Any]:
    return {"headers": {"Accept": "application/x-ndjson"}, "params": given(after=after), "timeout": None}
