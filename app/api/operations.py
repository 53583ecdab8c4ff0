"""One function, one operation, every path it has: how routes are declared here.

A route for VM ``default`` and the same route for a named VM are one function under two prefixes. Routes are added
flat and in the order given, because the framework looks at them one by one: KVM_RUN comes first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

Endpoint = TypeVar("Endpoint", bound=Callable[..., Awaitable[Response]])

ROOT = ("",)
VM = ("/vm", "/vms/{vm}")
VCPU = ("/vcpu", "/vms/{vm}/vcpu")


@dataclass(frozen=True, slots=True)
class Media:
    """An answer that is not a model: media types with what they hold."""

    description: str
    types: tuple[str, ...]

    def response(self) -> dict[str, Any]:
        """The OpenAPI response object."""
        content = {media_type: {"schema": _schema(media_type)} for media_type in self.types}
        return {"description": self.description, "content": content}


def _schema(media_type: str) -> dict[str, Any]:
    if media_type == "application/json":
        return {}
    return {"type": "string"} | ({"format": "binary"} if media_type == "application/octet-stream" else {})


STREAM = Media(
    "Events without end: `snapshot` first, then every event after it. As NDJSON a line is `{id, event, data}`.",
    ("text/event-stream", "application/x-ndjson"),
)
BYTES = Media("Raw bytes.", ("application/octet-stream",))
TEXT = Media("Text.", ("text/plain",))
PAGE = Media("A page.", ("text/html",))
NOTHING = None


@dataclass(frozen=True, slots=True)
class Operation:
    """A declared route, not yet under a prefix."""

    method: str
    path: str
    endpoint: Callable[..., Awaitable[Response]]
    status: int
    answer: type[BaseModel] | Media | None
    extra: dict[str, Any]
    direct: bool = False


class Operations:
    """The operations of one router, for one tag and one or more prefixes."""

    def __init__(self, tag: str, *prefixes: str) -> None:
        self.tag = tag
        self.prefixes = prefixes
        self.declared: list[Operation] = []

    def get(self, path: str, **options: Any) -> Callable[[Endpoint], Endpoint]:
        """Declare a GET; options as ``declare``."""
        return self.declare("GET", path, **options)

    def put(self, path: str, **options: Any) -> Callable[[Endpoint], Endpoint]:
        """Declare a PUT; options as ``declare``."""
        return self.declare("PUT", path, **options)

    def post(self, path: str, **options: Any) -> Callable[[Endpoint], Endpoint]:
        """Declare a POST; options as ``declare``."""
        return self.declare("POST", path, **options)

    def delete(self, path: str, **options: Any) -> Callable[[Endpoint], Endpoint]:
        """Declare a DELETE; options as ``declare``."""
        return self.declare("DELETE", path, **options)

    def declare(
        self,
        method: str,
        path: str,
        *,
        answer: type[BaseModel] | Media | None = NOTHING,
        status: int = 200,
        ioctl: str | None = None,
        body: dict[str, Any] | None = None,
        direct: bool = False,
    ) -> Callable[[Endpoint], Endpoint]:
        """Declare a route: what it answers, the ioctl it stands for, and a body that it reads itself.

        ``direct``: a hot endpoint that takes the request alone is called without the framework's dependencies,
        which cost more than the rest of the call; the framework then only documents it.
        """
        extra: dict[str, Any] = {}
        if ioctl is not None:
            extra["x-ioctl"] = ioctl
        if body is not None:
            extra["requestBody"] = body

        def decorate(endpoint: Endpoint) -> Endpoint:
            self.declared.append(Operation(method, path, endpoint, status, answer, extra, direct))
            return endpoint

        return decorate

    def register(self, app: FastAPI) -> None:
        """Add the routes to ``app``."""
        for operation in self.declared:
            for prefix in self.prefixes:
                _add(app, prefix, operation, self.tag)


def _add(app: FastAPI, prefix: str, operation: Operation, tag: str) -> None:
    name = operation.endpoint.__name__
    model = operation.answer if isinstance(operation.answer, type) else None
    other = {operation.status: operation.answer.response()} if isinstance(operation.answer, Media) else None
    if operation.direct:
        app.router.routes.append(DirectRoute(prefix + operation.path, operation))
    app.add_api_route(
        prefix + operation.path,
        operation.endpoint,
        methods=[operation.method],
        name=name,
        operation_id=f"{name}_of_vm" if "{vm}" in prefix else name,
        tags=[tag],
        status_code=operation.status,
        response_model=model,
        response_class=Response if other or model is None else JSONResponse,  # for the schema: endpoints make their own
        responses=other,  # type: ignore[arg-type]  # the keys are statuses
        openapi_extra=operation.extra or None,
    )


class DirectRoute(Route):
    """A route that is served as it is; the framework's twin behind it is only documentation."""

    def __init__(self, path: str, operation: Operation) -> None:
        super().__init__(path, operation.endpoint, methods=[operation.method], include_in_schema=False)
        self.openapi_extra = operation.extra  # where failures look the ioctl up

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve, and say which route it is, as the framework's own routes do."""
        scope["route"] = self
        await super().handle(scope, receive, send)
