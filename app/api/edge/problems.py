"""Failures as ``application/problem+json`` (RFC 9457), and the only table from errno to HTTP status.

Every failure leaves through here, those of the framework and of the guard included.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from itertools import islice
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

from kickstand.core.errors import KvmError, errno_name

MEDIA_TYPE = "application/problem+json"
REQUEST_ID = "kickstand.request_id"
INTERNAL = errno.ENOTRECOVERABLE
MOST_ERRORS = 20  # that one answer tells
TOLD = 3  # of them in the detail
UNKNOWN = "extra_forbidden"
LONGEST_TEXT = 300
LONGEST_DETAIL = 2_000
ID_DIGITS = 10  # of a vCPU that may exist

STATUS = {
    errno.EINTR: 200,
    errno.EPERM: 403,
    errno.EACCES: 403,
    errno.ENOENT: 404,
    errno.ENODEV: 404,
    errno.ENXIO: 404,
    errno.EEXIST: 409,
    errno.EBUSY: 409,
    errno.EIO: 410,
    errno.E2BIG: 413,
    errno.EINVAL: 422,
    errno.EFAULT: 422,
    errno.ENOTTY: 501,
    errno.EOPNOTSUPP: 501,
    errno.EAGAIN: 503,
    errno.ETIMEDOUT: 504,
    errno.ENOSPC: 507,
    errno.EROFS: 507,
    errno.ENOMEM: 507,
    errno.EMFILE: 503,
    errno.ENFILE: 503,
}
# What a failure that HTTP itself knows would be as an ioctl.
HTTP_ERRNO = {
    400: errno.EINVAL,
    401: errno.EACCES,
    403: errno.EACCES,
    404: errno.ENOENT,
    405: errno.ENOTTY,
    408: errno.ETIMEDOUT,
    413: errno.E2BIG,
    415: errno.EINVAL,
    422: errno.EINVAL,
    503: errno.EAGAIN,
}
RETRYABLE = frozenset({errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ETIMEDOUT})
RAN_OUT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EROFS})

logger = logging.getLogger("kickstand.api")
_STEP = re.compile(r"[^.\[\]]+")


def failure(
    scope: Scope,
    status: int,
    code: int,
    detail: str,
    *,
    ioctl: str | None = None,
    kind: str = "about:blank",
    errors: Sequence[Mapping[str, str]] = (),
    extra: Mapping[str, object] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Build the response for one failed request; ``extra`` adds members, ``kind`` is the problem's type."""
    vm, vcpu = _concerns(scope)
    body: dict[str, Any] = {
        "type": kind,
        "title": HTTPStatus(status).phrase if kind == "about:blank" else os.strerror(code),
        "status": status,
        "detail": short(detail, LONGEST_DETAIL),
        "instance": scope.get(REQUEST_ID, ""),
        "errno": errno_name(code),
        "errno_value": code,
        "ioctl": ioctl or _ioctl(scope),
        "vm": vm,
        "vcpu": vcpu,
        "retryable": code in RETRYABLE,
    }
    if errors:
        body["errors"] = list(errors)
    content = json.dumps({**(extra or {}), **body}, separators=(",", ":"), default=str) + "\n"
    own = {"Kickstand-Errno": errno_name(code)} | (
        {"Retry-After": "1"} if status == HTTPStatus.SERVICE_UNAVAILABLE else {}
    )
    return Response(content, status, {**own, **(headers or {})}, MEDIA_TYPE)


def http_failure(scope: Scope, status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """A failure of HTTP rather than of an ioctl."""
    return failure(scope, status, HTTP_ERRNO.get(status, INTERNAL), detail, headers=headers)


def kvm_failure(scope: Scope, error: KvmError) -> Response:
    """An ioctl failed. EINTR is an ordinary answer, as everywhere."""
    status = STATUS.get(error.errno, 500)
    if error.errno == errno.EINTR:
        answer = {"ret": -1, "errno": "EINTR", "errno_value": error.errno, "ioctl": error.ioctl, "detail": error.detail}
        return Response(f"{json.dumps(answer)}\n", status, {"Kickstand-Errno": "EINTR"}, "application/json")
    in_body = error.field is not None and status != HTTPStatus.NOT_FOUND
    errors = [{"pointer": pointer(error.field or ""), "message": short(error.detail)}] if in_body else []
    kind = f"/problems/{errno_name(error.errno).lower()}"
    ioctl = error.ioctl if error.ioctl.startswith("KVM_") else _ioctl(scope) or error.ioctl
    return failure(scope, status, error.errno, error.detail, ioctl=ioctl, kind=kind, errors=errors, extra=error.extra)


def invalid(scope: Scope, found: Iterable[Mapping[str, Any]]) -> Response:
    """The request breaks rules of the schema; each is named with the field it is about."""
    first = sorted(islice(found, MOST_ERRORS), key=lambda error: error["type"] != UNKNOWN)  # what was given explains
    errors = [_schema_error(error) for error in first]
    told = "; ".join(error["message"] for error in errors[:TOLD])
    return failure(scope, 422, errno.EINVAL, told, kind="/problems/einval", errors=errors)


def internal(scope: Scope, error: Exception) -> Response:
    """Something is wrong with the server: the log has it, the client learns only under which id."""
    instance = scope.get(REQUEST_ID, "")
    logger.error("request %s failed", instance, exc_info=error)
    return http_failure(scope, 500, f"an internal error; the server's log has it under {instance}")


def short(text: str, longest: int = LONGEST_TEXT) -> str:
    """A text that may quote what was given, whose length is its sender's choice."""
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def pointer(path: str) -> str:
    """Turn the core's path of a field (``operations.0.flags``, ``program[2][1]``) into a JSON pointer."""
    steps = _STEP.findall(path)
    if steps and steps[0] == "program" and "[" in path:
        steps = steps[1:]  # the body is the program itself
    return "".join(f"/{step}" for step in steps)


def _schema_error(error: Mapping[str, Any]) -> dict[str, str]:
    where, *given = error["loc"] or ("body",)
    steps = [short(str(step)) for step in given]
    if error["type"] == "json_invalid":
        reason = error.get("ctx", {}).get("error", "")
        return {"pointer": "", "message": f"the body is not JSON: {reason}"}
    if where not in ("body", "path", "query", "header"):
        where, steps = "body", [short(str(where)), *steps]
    field = ".".join(steps) or where
    rule = "there is no such field" if error["type"] == UNKNOWN else str(error["msg"])
    message = f"{field}: {short(rule.removeprefix('Value error, '))}"
    found = {"pointer": "".join(f"/{step}" for step in steps), "message": message}
    return found if where == "body" else {**found, "in": where}


def _ioctl(scope: Scope) -> str | None:
    extra: dict[str, Any] = getattr(scope.get("route"), "openapi_extra", None) or {}
    return extra.get("x-ioctl")


def _concerns(scope: Scope) -> tuple[str | None, int | None]:
    """The VM and the vCPU that a request names."""
    path = scope.get("path", "")
    given = scope.get("path_params", {})
    scoped = path == "/vm" or path.startswith(("/vm/", "/vcpu"))
    vcpu = str(given.get("id", ""))
    vcpu_id = int(vcpu) if vcpu.isdecimal() and len(vcpu) <= ID_DIGITS else None
    return given.get("vm", "default" if scoped else None), vcpu_id


async def _on_kvm_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, KvmError)
    return kvm_failure(request.scope, error)


async def _on_validation(request: Request, error: Exception) -> Response:
    if isinstance(error, RequestValidationError):
        if isinstance(error.body, bytes):
            return wrong_media_type(request)
        return invalid(request.scope, error.errors())
    assert isinstance(error, ValidationError)
    return invalid(request.scope, error.errors())


def wrong_media_type(request: Request) -> Response:
    """The body is something else than JSON."""
    given = request.headers.get("content-type", "no content type")
    detail = f"the body must be application/json, not {given} (curl: --json, or -H 'Content-Type: application/json')"
    return http_failure(request.scope, 415, detail, {"Accept": "application/json"})


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status, path = error.status_code, request.url.path
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = _allowed(request)
        return http_failure(request.scope, status, f"{path} takes {allowed}, not {request.method}", {"Allow": allowed})
    detail = f"there is no {path}" if status == HTTPStatus.NOT_FOUND else str(error.detail)
    return http_failure(request.scope, status, detail, error.headers)


async def _on_os_error(request: Request, error: Exception) -> Response:
    """The system has run out of something."""
    assert isinstance(error, OSError | MemoryError)
    code = errno.ENOMEM if isinstance(error, MemoryError) else error.errno
    if code not in STATUS or code not in RAN_OUT:
        return internal(request.scope, error)
    return kvm_failure(request.scope, KvmError(code, "request", f"the server has run out: {os.strerror(code)}"))


async def _on_departed(request: Request, _error: Exception) -> Response:
    return http_failure(request.scope, 503, "the client is gone")  # nobody reads it; the log counts it


def _allowed(request: Request) -> str:
    """The methods that some route has for this path."""
    methods: set[str] = set()
    for route in request.app.routes:
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE:
            methods |= route.methods or set()
    if "GET" in methods:
        methods.add("HEAD")
    return ", ".join(sorted(methods))


def install(app: FastAPI) -> None:
    """Register the handlers. What nobody handles reaches the guard, which answers with ``internal``."""
    app.add_exception_handler(KvmError, _on_kvm_error)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(ValidationError, _on_validation)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(OSError, _on_os_error)
    app.add_exception_handler(MemoryError, _on_os_error)
    app.add_exception_handler(ClientDisconnect, _on_departed)
