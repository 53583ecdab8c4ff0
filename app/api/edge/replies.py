"""How answers are sent: as they are, without a model in the way, and with a newline at the end for terminals."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

TURN_S = 0.005  # for how long a long answer is made in one turn of the loop
NUMBERS = 16_384  # of a list that are written in one turn
PIECE = 1 << 18  # bytes of an answer that are sent in one turn
_encode = json.JSONEncoder(separators=(",", ":")).encode  # made once: making one costs more than using it


class LongResponse(Response):
    """A body of many MB, sent a piece a turn: in one go, the copies on its way hold the loop, and a slow reader all."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. A client that reads slowly is waited for, piece by piece; one that is gone ends it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for start in range(0, len(self.body), PIECE):
            await send({"type": "http.response.body", "body": self.body[start : start + PIECE], "more_body": True})
            await asyncio.sleep(0)
        await send({"type": "http.response.body"})


def reply(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Send ``content`` as JSON."""
    return Response(f"{_encode(content)}\n", status, headers, "application/json")


async def reply_long(
    content: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Send an object that may be large, as ``written``."""
    return LongResponse(f"{await written(content)}\n", status, headers, "application/json")


async def reply_list(name: str, items: Iterable[Any], **rest: Any) -> Response:
    """Send ``{name: [items...], **rest}``, likewise."""
    return await reply_long({name: iter(items), **rest})


async def written(content: Mapping[str, Any]) -> str:
    """``content`` as JSON. An iterator in it is a list whose items are made now, while others have their turns."""
    return await _Writer().text(content)


class _Writer:
    """One long text under way."""

    def __init__(self) -> None:
        self._due = time.monotonic() + TURN_S

    async def text(self, value: Any) -> str:
        if isinstance(value, Iterator):
            return f"[{','.join([await self.text(item) for item in value])}]"
        if isinstance(value, dict) and any(isinstance(member, Iterator) for member in value.values()):
            members = [f"{_encode(name)}:{await self.text(member)}" for name, member in value.items()]
            return f"{{{','.join(members)}}}"
        if time.monotonic() >= self._due:
            await asyncio.sleep(0)
            self._due = time.monotonic() + TURN_S
        return _encode(value)


async def reply_numbers(name: str, numbers: Sequence[int]) -> Response:
    """Send ``{name: [numbers...]}``, likewise."""
    pieces: list[str] = []
    for start in range(0, len(numbers), NUMBERS):
        pieces.append(",".join(map(str, numbers[start : start + NUMBERS])))
        await asyncio.sleep(0)
    return LongResponse(f'{{"{name}":[{",".join(pieces)}]}}\n', 200, None, "application/json")


def done(seq: int, **members: Any) -> Response:
    """An ioctl succeeded and has nothing to tell."""
    return reply({"ret": 0, "errno": None, "seq": seq, **members})


def nothing() -> Response:
    """204."""
    return Response(None, 204)
