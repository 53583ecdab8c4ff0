"""The outermost layer: who may talk to this server, how much they may send, and what every answer carries.

A pure ASGI application around the framework. It checks the Host (against DNS rebinding), where a browser says
that a request comes from (a web page must not be able to kick), and the token if there is one.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
from collections.abc import Iterable, Mapping
from itertools import count

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kickstand.api.edge import logs, problems
from kickstand.api.edge.sessions import Sessions

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
WILDCARD = frozenset({"0.0.0.0", "::"})  # noqa: S104  compared with, not bound to
SAFE_METHODS = frozenset({"GET", "HEAD"})
# What a browser loads before it has a session: pages without data, and the way to get a session.
OPEN = frozenset({"/", "/docs", "/problems", "/healthz", "/session"})
OPEN_PREFIXES = ("/static/", "/dashboard/", "/problems/")
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (
        b"content-security-policy",
        b"default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    ),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.:-]{1,64}")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_.:-]+?)(?::\d{1,5})?")


SMALL = 1 << 16  # bytes: a body that needs no place of its own
DIGITS = 18  # of a length
STARTED = "kickstand.started"
RawHeaders = Mapping[bytes, bytes]


class Guard:
    """Checks requests before the application sees them, and completes its responses.

    ``hosts`` are the names, besides loopback, that this server is reached by.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Iterable[str],
        max_body: int,
        bodies: int,
        larger: Mapping[str, int],
        sessions: Sessions,
    ) -> None:
        self.app = app
        given = {host.lower().strip("[]") for host in hosts}
        self.hosts = LOOPBACK | given
        self.any_address = bool(given & WILDCARD)
        self.max_body = max_body
        self.room = bodies  # bytes that the bodies of all requests under way may still take
        self.larger = larger  # paths whose bodies may be larger, because they are not kept in memory
        self.sessions = sessions
        self._prefix = secrets.token_hex(4)
        self._numbers = count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer why not."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers: RawHeaders = dict(scope["headers"])
        request_id = self._request_id(headers)
        scope[problems.REQUEST_ID] = request_id
        logs.request_id.set(request_id)  # in the task of this request
        send = _completed(scope, send, request_id)
        taken = self._taken(scope, headers)
        refusal = self._refusal(scope, headers) or self._check_room(scope, taken)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        self.room -= taken
        try:
            await self.app(scope, self._bounded(scope, headers, receive), send)
        except Exception as error:
            if STARTED in scope:
                raise
            await problems.internal(scope, error)(scope, receive, send)
        finally:
            self.room += taken

    def _request_id(self, headers: RawHeaders) -> str:
        given = headers.get(b"x-request-id")
        if given is not None and _REQUEST_ID.fullmatch(given):
            return given.decode()
        return f"{self._prefix}-{next(self._numbers)}"

    # -- checks ------------------------------------------------------------------------------------------

    def _refusal(self, scope: Scope, headers: RawHeaders) -> Response | None:
        """The answer to a request that must not pass, or None."""
        return (
            self._check_host(scope, headers)
            or self._check_origin(scope, headers)
            or self._check_token(scope)
            or self._check_length(scope, headers)
        )

    def _check_host(self, scope: Scope, headers: RawHeaders) -> Response | None:
        given = headers.get(b"host")
        if given is None or [name for name, _ in scope["headers"]].count(b"host") > 1:
            return problems.http_failure(scope, 400, "a request has exactly one Host header")
        host = given.decode("latin-1")
        if self._knows(host):
            return None
        return problems.http_failure(scope, 403, f"Host {host!r} is not a name of this server (see --allow-host)")

    def _knows(self, host: str) -> bool:
        host = host.lower()
        if host.strip("[]") in self.hosts:
            return True
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1].strip("[]")
        return name in self.hosts or (self.any_address and _is_address(name))

    def _check_origin(self, scope: Scope, headers: RawHeaders) -> Response | None:
        if scope["method"] in SAFE_METHODS or same_origin(scope, headers):
            return None
        return problems.http_failure(scope, 403, "a page of another origin may not send this request")

    def _check_token(self, scope: Scope) -> Response | None:
        path: str = scope["path"]
        if not self.sessions.required or path in OPEN or path.startswith(OPEN_PREFIXES):
            return None
        if self.sessions.admits(Headers(scope=scope)):
            return None
        detail = "this server wants its token: Authorization: Bearer TOKEN, or a session of the browser"
        return problems.http_failure(scope, 401, detail, {"WWW-Authenticate": "Bearer"})

    # -- the size of a body ------------------------------------------------------------------------------

    def _check_length(self, scope: Scope, headers: RawHeaders) -> Response | None:
        length = headers.get(b"content-length")
        limit = self._limit(scope)
        if length is None or (length.isdigit() and len(length) <= DIGITS and int(length) <= limit):
            return None
        return problems.http_failure(scope, 413, _too_large(limit), {"Connection": "close"})

    def _taken(self, scope: Scope, headers: RawHeaders) -> int:
        """How much memory the body may take; small ones are not counted."""
        length = headers.get(b"content-length", b"0")
        if scope["path"] in self.larger or len(length) > DIGITS or not length.isdigit():
            return 0
        size = self.max_body if b"transfer-encoding" in headers else int(length)
        return size if size > SMALL else 0

    def _check_room(self, scope: Scope, taken: int) -> Response | None:
        if taken <= self.room or not taken:
            return None
        detail = "other requests' bodies take all the room that there is for them (bodies); try again"
        return problems.http_failure(scope, 503, detail, {"Connection": "close"})

    def _limit(self, scope: Scope) -> int:
        return self.larger.get(scope["path"], self.max_body)

    def _bounded(self, scope: Scope, headers: RawHeaders, receive: Receive) -> Receive:
        """Count the bytes of a body whose length was not declared."""
        if b"transfer-encoding" not in headers:
            return receive
        limit = self._limit(scope)
        return _counted(receive, limit, _too_large(limit))


def _too_large(limit: int) -> str:
    return f"the body is larger than the limit of {limit} bytes"


def same_origin(scope: Scope, headers: RawHeaders) -> bool:
    """False if a browser says that another site's page makes this request."""
    if headers.get(b"sec-fetch-site", b"same-origin") != b"same-origin":
        return False
    origin = headers.get(b"origin")
    return origin is None or origin == b"%b://%b" % (scope["scheme"].encode(), headers[b"host"])


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _counted(receive: Receive, limit: int, detail: str) -> Receive:
    taken = 0

    async def counting() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > limit:
            raise HTTPException(413, detail, {"Connection": "close"})
        return message

    return counting


def _completed(scope: Scope, send: Send, request_id: str) -> Send:
    """Add the headers that every response has, and note that there is one."""
    own = (*SECURITY_HEADERS, (b"x-request-id", request_id.encode()))

    async def completed(message: Message) -> None:
        if message["type"] == "http.response.start":
            scope[STARTED] = True
            message["headers"] = [*message.get("headers", ()), *own]
        await send(message)

    return completed
