"""The schema: what the framework derives, completed by what it does not know."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, Field

from app import __version__
from app.api.problems import MEDIA_TYPE, STATUS
from app.core.errors import errno_name

DESCRIPTION = """A KVM you can curl: vCPU run loop, memory slots, and the ioctls
KVM_KICK_ALL_RUNNING_VCPUS and KVM_RESUME_ALL_KICKED_VCPUS, as a REST service.

`/vm/...` and `/vcpu/{id}/...` are VM `default`; every path exists for any VM under `/vms/{vm}`. Addresses and
registers are emitted as `"0x..."` and accepted as such or as integers. Every failure is `application/problem+json`
with an errno."""
PARAMETERS = {
    name: {"name": name, "in": "path", "required": True, "description": description, "schema": {"type": kind}}
    for name, description, kind in (("vm", "The VM's id.", "string"), ("id", "The vCPU's id.", "integer"))
}
_PARAMETER = re.compile(r"\{(\w+)\}")


class FieldError(BaseModel):
    """One broken rule."""

    pointer: str
    message: str
    in_: str | None = Field(default=None, alias="in")


class Problem(BaseModel):
    """Every failure (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    errno: str
    errno_value: int
    ioctl: str | None
    vm: str | None
    vcpu: int | None
    retryable: bool
    errors: list[FieldError] | None = None


def install(app: FastAPI) -> None:
    """Make ``app.openapi`` answer the whole schema; it is built once."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = build(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # as the framework's documentation does it


def build(app: FastAPI) -> dict[str, Any]:
    """Build the schema; the same routes give the same schema, byte for byte."""
    schema = get_openapi(
        title="Kickstand",
        version=__version__,
        description=DESCRIPTION,
        routes=app.routes,
        license_info={"name": "GPL-2.0-or-later", "identifier": "GPL-2.0-or-later"},
    )
    for path, operation in _operations(schema):
        _name_parameters(path, operation)
        _document_failures(operation)
    schemas = schema["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= problem.pop("$defs")
    schemas["Problem"] = problem
    schema["components"]["responses"] = {"Problem": _problem_response()}
    schema["components"]["schemas"] = dict(sorted(schemas.items()))
    return schema


def _operations(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in schema["paths"].items():
        for operation in methods.values():
            yield path, operation


def _name_parameters(path: str, operation: dict[str, Any]) -> None:
    """Declare parameters of the path that endpoints get at by themselves."""
    declared = operation.get("parameters", [])
    known = {parameter["name"] for parameter in declared if parameter["in"] == "path"}
    missing = [PARAMETERS[name] for name in _PARAMETER.findall(path) if name not in known]
    if missing:
        operation["parameters"] = [*missing, *declared]


def _document_failures(operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    responses.pop("422", None)  # the framework's own shape, which is never sent
    for statuses in ("4XX", "5XX"):
        responses[statuses] = {"$ref": "#/components/responses/Problem"}


def _problem_response() -> dict[str, Any]:
    table = ", ".join(f"{errno_name(code)} {status}" for code, status in sorted(STATUS.items()) if status != 200)  # noqa: PLR2004
    return {
        "description": f"The call failed. Status by errno: {table}.",
        "headers": {"Kickstand-Errno": {"description": "The errno's name.", "schema": {"type": "string"}}},
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
