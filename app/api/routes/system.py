"""The server itself: what it can do, how it is, its pages, sessions, reset."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from functools import cache

from fastapi import Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.responses import Response

from kickstand.api.context import TheContext
from kickstand.api.edge.replies import nothing, reply
from kickstand.api.edge.sessions import COOKIE
from kickstand.api.metrics import registry_of
from kickstand.api.operations import ROOT, TEXT, Operations
from kickstand.api.shapes import system as shapes
from kickstand.core import uapi
from kickstand.core.variants import summary, variants
from kickstand.guests.engines import engines
from kickstand.runtime.registry import Registry

router = Operations("system", *ROOT)


@router.get("/kvm", answer=shapes.KvmInfo, ioctl=Registry.check_extension)
async def get_kvm(context: TheContext) -> Response:
    """Answer KVM_GET_API_VERSION and every KVM_CHECK_EXTENSION, and name what this server has."""
    return reply(
        {
            "api_version": uapi.API_VERSION,
            "capabilities": {cap.kernel_name: value for cap, value in uapi.CAPABILITIES.items()},
            "limits": asdict(context.settings.limits),
            "variants": [{"name": name, "summary": summary(found)} for name, found in variants().items()],
            "engines": [{"name": name, "available": not why, "reason": why or None} for name, why in engines().items()],
            **await asyncio.to_thread(_explored),
        }
    )


@cache
def _explored() -> dict[str, list[str]]:
    """What the explorer calls its scenarios and properties; loaded when first asked for."""
    from kickstand.explore.search.properties import PROPERTIES  # noqa: PLC0415
    from kickstand.explore.world.scenarios import SCENARIOS  # noqa: PLC0415

    return {"scenarios": list(SCENARIOS), "properties": list(PROPERTIES)}


@router.get("/healthz", answer=shapes.Health)
async def healthz() -> Response:
    """Answer as long as the server runs."""
    return reply({"status": "ok"})


@router.get("/readyz", answer=shapes.Health)
async def readyz(context: TheContext) -> Response:
    """Answer 200 while new work is taken, 503 while the server stops, is late, or its journal cannot be written."""
    why_not = context.not_ready()
    if why_not:
        raise HTTPException(503, why_not)
    return reply({"status": "ready"})


@router.get("/metrics", answer=TEXT)
async def metrics(context: TheContext) -> Response:
    """Answer Prometheus metrics, named after KVM's statistics."""
    return Response(generate_latest(registry_of(context)), 200, None, CONTENT_TYPE_LATEST)


@router.post("/reset", status=204)
async def reset(context: TheContext) -> Response:
    """Drop everything and be as at the start; only with `--allow-reset`."""
    await context.reset()
    return nothing()


@router.post("/session", status=204)
async def create_session(request: Request, context: TheContext, body: shapes.Session) -> Response:
    """Exchange the one-time code of the printed URL for the cookie of a session."""
    session = context.sessions.exchange(body.code)
    if session is None:
        raise HTTPException(403, "the code is wrong, or was used already")
    response = nothing()
    secure = request.url.scheme == "https"
    response.set_cookie(COOKIE, session, httponly=True, samesite="strict", secure=secure)
    return response
