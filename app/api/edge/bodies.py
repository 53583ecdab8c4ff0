"""How JSON comes in: bounded before it is read, because the parser lets nobody else run until it is done.

What a text costs is how many values it has, not how long it is: a string of megabytes takes no longer than ten
thousand numbers. So both have a limit, and the second is counted first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.responses import Response

from kickstand.settings import Limits

MEMBERS = 1_024  # of one object: a VM's programs are by vCPU
PIECE = 1 << 18  # bytes in which values are counted: a text that has too many is not looked through to its end


def check_text(content: bytes, limits: Limits) -> None:
    """Refuse (413) a text that is too long or has too many values."""
    if len(content) > limits.json:
        raise HTTPException(413, f"a body that is JSON has at most {limits.json} bytes (json)")
    check_values(content, limits.json_values)


def check_values(content: bytes, limit: int) -> None:
    """Refuse (413) a text with more than ``limit`` values: each has a comma before it, or begins what holds it."""
    if len(content) <= limit:
        return
    values = 0
    for start in range(0, len(content), PIECE):
        piece = content[start : start + PIECE]
        values += piece.count(b",") + piece.count(b"[") + piece.count(b"{")
        if values > limit:
            raise HTTPException(413, f"the body has more than {limit} JSON values, which is the limit (json_values)")


def check_shape(value: Any) -> None:
    """Refuse (413) an object with more members than any of ours has: each would be an error of its own.

    Looked at are the body, what it holds, and what lists in it hold: nothing below has members of its own.
    """
    held: list[Any] = [value, *value.values()] if isinstance(value, dict) else [value]
    lists = [member for one in held if isinstance(one, list) for member in one]
    if max((len(one) for one in (*held, *lists) if isinstance(one, dict)), default=0) > MEMBERS:
        raise HTTPException(413, f"an object of the body has more than {MEMBERS} members")


class _JsonRequest(Request):
    """A request whose body is bounded and read by a parser of twice the speed."""

    async def json(self) -> Any:
        """The body's value. ``JSONDecodeError``: it is none."""
        content = await self.body()
        check_text(content, self.app.state.context.settings.limits)
        try:
            value = from_json(content, allow_inf_nan=False)
        except ValueError as error:
            raise json.JSONDecodeError(str(error), "", 0) from None
        if len(content) > MEMBERS and content.count(b":") > MEMBERS:
            check_shape(value)
        return value


class JsonRoute(APIRoute):
    """A route that reads JSON as above."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The framework's, with another request."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_JsonRequest(request.scope, request.receive))

        return handle
