"""Pages for people, and the schema that one of them is made from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastapi import Path as InPath
from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, HTMLResponse, Response

from kickstand.api.edge import errnos
from kickstand.api.edge.replies import reply
from kickstand.api.operations import JSON, PAGE, ROOT, Operations

STATIC = Path(__file__).parents[1] / "static"
DASHBOARD = Path(__file__).parents[2] / "dashboard"
router = Operations("system", *ROOT)
ErrnoName = Annotated[str, InPath(description="An errno's name, as in a problem's `type`.", max_length=32)]


@router.get("/", answer=PAGE)
async def get_root() -> Response:
    """Show the dashboard; a page of links where it is not installed."""
    page = DASHBOARD / "index.html"
    return FileResponse(page if page.is_file() else STATIC / "index.html", media_type="text/html")


@router.get("/docs", answer=PAGE)
async def get_docs() -> Response:
    """Show the API as a page, made from `/openapi.json` without anything from elsewhere."""
    return FileResponse(STATIC / "docs.html", media_type="text/html")


@router.get("/openapi.json", answer=JSON)
async def get_openapi(request: Request) -> Response:
    """Answer this schema, from which clients can be generated."""
    return reply(request.app.openapi())


@router.get("/problems", answer=PAGE)
async def list_problems() -> Response:
    """Show every errno with what it means here."""
    return HTMLResponse(errnos.index())


@router.get("/problems/{errno}", answer=PAGE)
async def get_problem(errno: ErrnoName) -> Response:
    """Explain an errno, and what to do: where the `type` of a problem leads."""
    number = errnos.number_of(errno)
    if number is None:
        raise HTTPException(404)
    return HTMLResponse(errnos.page(number))
