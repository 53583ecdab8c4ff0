"""How the schema is made: the framework's, with each operation once, every field told, and failures as they are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from kickstand import __version__
from kickstand.api.edge.problems import MEDIA_TYPE, STATUS
from kickstand.api.edge.sessions import COOKIE
from kickstand.api.openapi.examples import EXAMPLES
from kickstand.api.openapi.examples import PARAMETERS as FILLED_IN
from kickstand.api.openapi.words import DESCRIPTION, TAGS, WORDS
from kickstand.api.operations import ALIASES
from kickstand.api.shapes import events, programs, scripts
from kickstand.api.shapes.system import Problem
from kickstand.api.shapes.vcpus import Run
from kickstand.core.errors import errno_name

REF = "#/components/schemas/"
PARAMETERS = {
    "vm": {"description": "The VM's id.", "schema": {"type": "string"}},
    "id": {"description": "The vCPU's id.", "schema": {"type": "integer", "minimum": 0, "maximum": 2**32 - 1}},
}
SERVERS: list[dict[str, Any]] = [
    {"url": "/", "description": "The server that this schema comes from."},
    {
        "url": "http://{host}:{port}",
        "description": "`kickstand serve`.",
        "variables": {
            "host": {"default": "127.0.0.1", "description": "Where it listens (--host)."},
            "port": {"default": "8000", "description": "Its port (--port)."},
        },
    },
]
SECURITY = {
    "token": {
        "type": "http",
        "scheme": "bearer",
        "description": "The token of `--token-file`. A server on loopback without one lets everybody in.",
    },
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": COOKIE,
        "description": "A browser's session, got by `POST /session` for the code of the printed URL.",
    },
}
_PARAMETER = re.compile(r"\{(\w+)\}")
Schema = dict[str, Any]


def install(app: FastAPI) -> None:
    """Make ``app.openapi`` answer the whole schema; it is built once."""

    def openapi() -> Schema:
        if app.openapi_schema is None:
            app.openapi_schema = build(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # as the framework's documentation does it


def build(app: FastAPI) -> Schema:
    """Build the schema; the same routes give the same schema, byte for byte."""
    schema = get_openapi(
        title="Kickstand",
        version=__version__,
        description=DESCRIPTION,
        routes=app.routes,
        license_info={"name": "GPL-2.0-or-later", "identifier": "GPL-2.0-or-later"},
        servers=SERVERS,
        tags=[{"name": name, "description": text} for name, text in TAGS.items()],
        separate_input_output_schemas=False,
    )
    for path, operation in operations(schema):
        _name_parameters(path, operation)
        _document_failures(operation)
        _complete_body(operation)
    schema["security"] = [{}, *({name: []} for name in SECURITY)]
    schema["components"] = {
        "responses": {"Problem": _problem_response()},
        "schemas": _components(schema["components"]["schemas"]),
        "securitySchemes": SECURITY,
    }
    _drop_unused(schema)
    schema["paths"] |= _aliases(schema)
    return schema


def operations(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """Every operation with its path."""
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            if method in ("get", "put", "post", "delete"):
                yield path, operation


def _aliases(schema: Schema) -> Schema:
    """The short paths of VM ``default``: each says whose alias it is, and has no operations of its own."""
    return {
        alias: {
            "summary": f"Alias of {path.replace('{vm}', 'default')}",
            "description": f"`{alias}` is `{path}` of the VM `default`: the same operations, bodies and answers.",
            "x-alias-of": path,
        }
        for path, operation in operations(schema)
        for alias in operation.get(ALIASES, ())
    }


# -- operations --------------------------------------------------------------------------------------------


def _name_parameters(path: str, operation: Schema) -> None:
    """Declare parameters of the path that endpoints get at by themselves, and take the noise from the others."""
    declared: list[Schema] = operation.get("parameters", [])
    known = {parameter["name"] for parameter in declared if parameter["in"] == "path"}
    missing: list[Schema] = [
        {"name": name, "in": "path", "required": True, **PARAMETERS[name]}
        for name in _PARAMETER.findall(path)
        if name not in known
    ]
    for parameter in declared:
        parameter["schema"] = _plain(parameter["schema"])
    for parameter in (named := [*missing, *declared]):
        if parameter["in"] == "path":
            parameter["example"] = FILLED_IN[parameter["name"]]
    if named:
        operation["parameters"] = named


def _document_failures(operation: Schema) -> None:
    responses = operation["responses"]
    responses.pop("422", None)  # the framework's own shape, which is never sent
    for statuses in ("4XX", "5XX"):
        responses[statuses] = {"$ref": "#/components/responses/Problem"}


def _complete_body(operation: Schema) -> None:
    """A body that may be left out is not required, and never null; every body has an example."""
    body = operation.get("requestBody")
    if body is None:
        return
    body.setdefault("required", False)
    for media_type, content in body["content"].items():
        content["schema"] = _without_null(_plain(content["schema"]))
        if media_type == "application/json":
            content["examples"] = EXAMPLES[operation["operationId"]]
        else:
            content["example"] = "hello"


def _plain(schema: Schema) -> Schema:
    """A schema without the title that the framework makes of a name, and without what only repeats it."""
    kept = {name: value for name, value in schema.items() if name != "title"}
    if isinstance(kept.get("default"), list):  # all of a long table, as a default
        kept.pop("default")
    if "anyOf" in kept and {"type": "null"} in kept["anyOf"]:
        kept = _without_null(kept)
    return kept


def _without_null(schema: Schema) -> Schema:
    choices = [choice for choice in schema.get("anyOf", ()) if choice != {"type": "null"}]
    rest = {name: value for name, value in schema.items() if name != "anyOf"}
    return rest | choices[0] if len(choices) == 1 else rest | ({"anyOf": choices} if choices else {})


def _problem_response() -> Schema:
    table = ", ".join(f"{errno_name(code)} {status}" for code, status in sorted(STATUS.items()) if status != 200)  # noqa: PLR2004
    return {
        "description": f"The call failed. Status by errno: {table}.",
        "headers": {"Kickstand-Errno": {"description": "The errno's name.", "schema": {"type": "string"}}},
        "content": {MEDIA_TYPE: {"schema": {"$ref": f"{REF}Problem"}}},
    }


# -- components --------------------------------------------------------------------------------------------


def _components(found: Schema) -> Schema:
    """Every shape by name: the framework's, ours that it does not see, and the unions that it cannot derive."""
    _, more = models_json_schema([(Problem, "serialization"), (Run, "validation")], ref_template=f"{REF}{{model}}")
    every = found | more["$defs"] | events.components() | scripts.components() | programs.components()
    return {name: _told(name, schema) for name, schema in sorted(every.items())}


def _drop_unused(schema: Schema) -> None:
    """Leave out shapes that nothing refers to: the framework's own errors, and names behind names."""
    shapes = schema["components"]["schemas"]
    used: set[str] = set()
    new = set(_references({"paths": schema["paths"], "responses": schema["components"]["responses"]}))
    while new:
        used |= new
        new = {name for known in new for name in _references(shapes[known])} - used
    for name in shapes.keys() - used:
        del shapes[name]


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, list):
        for item in schema:
            yield from _references(item)
    elif isinstance(schema, dict):
        for name, value in schema.items():
            if name == "$ref" and value.startswith(REF):
                yield value.removeprefix(REF)
            else:
                yield from _references(value)


def _told(component: str, schema: Schema) -> Schema:
    """A shape whose fields say what they mean, and which repeats nothing."""
    told = {name: value for name, value in schema.items() if name != "title"}
    if "description" in told:
        told["description"] = " ".join(told["description"].replace("``", "`").split())
    if "properties" in told:
        told["properties"] = {
            name: _untitled(value) | _meaning(component, name, value) for name, value in told["properties"].items()
        }
    return told


def _meaning(component: str, name: str, schema: Schema) -> Schema:
    if "description" in schema:
        return {}
    found = WORDS.get(f"{component}.{name}", WORDS.get(name))
    return {} if found is None else {"description": found}


def _untitled(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_untitled(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {name: _untitled(value) for name, value in schema.items() if name != "title" or not isinstance(value, str)}
