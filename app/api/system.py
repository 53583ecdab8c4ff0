"""The server itself: what it can do, how it is, its pages, sessions, reset."""

from __future__ import annotations

import importlib
from dataclasses import asdict
from functools import cache
from pathlib import Path

from fastapi import Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response

from app.api import answers, schemas
from app.api.context import TheContext
from app.api.metrics import registry_of
from app.api.operations import PAGE, ROOT, TEXT, Operations
from app.api.replies import nothing, reply
from app.api.sessions import COOKIE
from app.core import uapi
from app.core.variants import summary, variants
from app.guests.engines import engines

STATIC = Path(__file__).parent / "static"
DASHBOARD = Path(__file__).parents[1] / "dashboard"
# What the explorer has built in; used while the explorer is not there to be asked.
SCENARIOS = (
    "merge",
    "split",
    "grow",
    "shrink",
    "toggle_readonly",
    "dirty_log",
    "hotplug",
    "two_vms",
    "pending_io",
    "other_ioctl",
    "stuck_fault",
)
PROPERTIES = (
    "missing_slot",
    "spurious_mmio",
    "deadlock",
    "bounded_busy",
    "lost_exit",
    "livelock",
    "kick_returns",
    "progress",
    "resume_runs",
    "dirty_kept",
    "closed_window",
    "no_bystander",
)
router = Operations("system", *ROOT)


@router.get("/kvm", answer=answers.KvmInfo, ioctl="KVM_CHECK_EXTENSION")
async def get_kvm(context: TheContext) -> Response:
    """Answer KVM_GET_API_VERSION and every KVM_CHECK_EXTENSION, and name what this server has."""
    return reply(
        {
            "api_version": uapi.API_VERSION,
            "capabilities": {cap.kernel_name: value for cap, value in uapi.CAPABILITIES.items()},
            "limits": asdict(context.settings.limits),
            "variants": [{"name": name, "summary": summary(found)} for name, found in variants().items()],
            "engines": [{"name": name, "available": not why, "reason": why or None} for name, why in engines().items()],
            "scenarios": _names("scenarios", SCENARIOS),
            "properties": _names("properties", PROPERTIES),
        }
    )


@cache
def _names(module: str, known: tuple[str, ...]) -> list[str]:
    """What the explorer calls its scenarios or properties."""
    try:
        return list(getattr(importlib.import_module(f"app.explore.{module}"), module.upper()))
    except (ImportError, AttributeError):
        return list(known)


@router.get("/healthz", answer=answers.Health)
async def healthz() -> Response:
    """Answer at all."""
    return reply({"status": "ok"})


@router.get("/readyz", answer=answers.Health)
async def readyz(context: TheContext) -> Response:
    """Answer 200 while new work is taken, 503 while the server stops, is late, or its journal cannot be written."""
    why_not = context.not_ready()
    if why_not:
        raise HTTPException(503, why_not)
    return reply({"status": "ready"})


@router.get("/metrics", answer=TEXT)
async def metrics(context: TheContext) -> Response:
    """Prometheus metrics, named after KVM's statistics."""
    return Response(generate_latest(registry_of(context)), 200, None, CONTENT_TYPE_LATEST)


@router.post("/reset", status=204)
async def reset(context: TheContext) -> Response:
    """Drop everything and be as at the start; only with `--allow-reset`."""
    await context.reset()
    return nothing()


@router.post("/session", status=204)
async def create_session(request: Request, context: TheContext, body: schemas.Session) -> Response:
    """Exchange the one-time code of the printed URL for the cookie of a session."""
    session = context.sessions.exchange(body.code)
    if session is None:
        raise HTTPException(403, "the code is wrong, or was used already")
    response = nothing()
    secure = request.url.scheme == "https"
    response.set_cookie(COOKIE, session, httponly=True, samesite="strict", secure=secure)
    return response


@router.get("/", answer=PAGE)
async def get_root() -> Response:
    """The dashboard; a page of links where it is not installed."""
    page = DASHBOARD / "index.html"
    return FileResponse(page if page.is_file() else STATIC / "index.html", media_type="text/html")


@router.get("/docs", answer=PAGE)
async def get_docs() -> Response:
    """The API as a page, made from `/openapi.json` without anything from elsewhere."""
    return FileResponse(STATIC / "docs.html", media_type="text/html")
