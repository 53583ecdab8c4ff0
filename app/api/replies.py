"""How answers are sent: as they are, without a model in the way."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

_encode = json.JSONEncoder(separators=(",", ":")).encode  # made once: making one costs more than using it


def reply(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Send ``content`` as JSON."""
    return Response(_encode(content), status, headers, "application/json")


def done(seq: int, **members: Any) -> Response:
    """An ioctl succeeded and has nothing to tell."""
    return reply({"ret": 0, "errno": None, "seq": seq, **members})


def nothing() -> Response:
    """204."""
    return Response(None, 204)
