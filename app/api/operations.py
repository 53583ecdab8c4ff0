"""One function, one operation, every path it has: how routes are declared here.

A route for VM ``default`` and the same route for a named VM are one function under two prefixes; the schema has the
operation once, under the last, and the others as its aliases. Routes are added flat and in the order given, because
the framework looks at them one by one: KVM_RUN comes first.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from kickstand.runtime.calls.ioctl import declaration

Endpoint = TypeVar("Endpoint", bound=Callable[..., Awaitable[Response]])

ALIASES = "x-aliases"
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
    if media_type == "application/x-ndjson":
        return {"$ref": "#/components/schemas/Event"}
    return {"type": "string"} | ({"format": "binary"} if media_type == "application/octet-stream" else {})


STREAM = Media(
    "Events without end: `snapshot` first, then every event after it. As NDJSON each line is one `Event`; as "
    "server-sent events its members are the fields `id`, `event` and `data`.",
    ("text/event-stream", "application/x-ndjson"),
)
BYTES = Media("Raw bytes.", ("application/octet-stream",))
TEXT = Media("Text.", ("text/plain",))
JSON = Media("The document.", ("application/json",))
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
    others: dict[int, str]
    direct: bool = False

    @property
    def description(self) -> str:
        """What it does, as its docstring says."""
        return inspect.cleandoc(self.endpoint.__doc__ or "")

    @property
    def summary(self) -> str:
        """The first sentence, up to where it goes into details."""
        return re.split(r"[.;:]\s|\.$", self.description.partition("\n\n")[0], maxsplit=1)[0].replace("\n", " ")

    def responses(self) -> dict[int | str, dict[str, Any]]:
        """What it answers besides the model."""
        found: dict[int | str, dict[str, Any]] = {status: {"description": why} for status, why in self.others.items()}
        if isinstance(self.answer, Media):
            found[self.status] = self.answer.response()
        return found


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
        ioctl: Callable[..., Any] | None = None,
        body: dict[str, Any] | None = None,
        others: dict[int, str] | None = None,
        direct: bool = False,
    ) -> Callable[[Endpoint], Endpoint]:
        """Declare a route: what it answers, the method of the ioctl it stands for, and a body that it reads itself.

        ``others``: further statuses that are no failures, with when they come; they have no body.
        ``direct``: a hot endpoint that takes the request alone is called without the framework's dependencies,
        which cost more than the rest of the call; the framework then only documents it.
        """
        extra: dict[str, Any] = {}
        declared = None if ioctl is None else declaration(ioctl)
        if declared is not None:
            extra["x-ioctl"] = declared.name
        if body is not None:
            extra["requestBody"] = body

        def decorate(endpoint: Endpoint) -> Endpoint:
            self.declared.append(Operation(method, path, endpoint, status, answer, extra, others or {}, direct))
            return endpoint

        return decorate

    def register(self, app: FastAPI) -> None:
        """Add the routes to ``app``."""
        *aliases, documented = self.prefixes
        for operation in self.declared:
            for prefix in aliases:
                _add(app, prefix, operation, self.tag)
            _add(app, documented, operation, self.tag, {ALIASES: [prefix + operation.path for prefix in aliases]})


def _add(app: FastAPI, prefix: str, operation: Operation, tag: str, own: dict[str, Any] | None = None) -> None:
    name = operation.endpoint.__name__
    model = operation.answer if isinstance(operation.answer, type) else None
    if operation.direct:
        app.router.routes.append(DirectRoute(prefix + operation.path, operation))
    app.add_api_route(
        prefix + operation.path,
        operation.endpoint,
        methods=[operation.method],
        name=name,
        operation_id=name,
        tags=[tag],
        summary=operation.summary,
        description=operation.description,
        status_code=operation.status,
        response_model=model,
        # for the schema: endpoints make their own
        response_class=Response if model is None else JSONResponse,
        responses=operation.responses(),
        openapi_extra={**operation.extra, **(own or {})},
        include_in_schema=own is not None,
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
