"""The server itself: what it can do, sessions, health, and the shape of every failure."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from kickstand.api.shapes.values import Body, Count, EngineName, Number


class Session(Body):
    """The one-time code of the URL's fragment."""

    code: Annotated[str, Field(max_length=256)]


class VariantInfo(BaseModel):
    """A variant of the proposal."""

    name: str
    summary: str


class EngineInfo(BaseModel):
    """A guest engine, and why it cannot be used here, if so."""

    name: EngineName
    available: bool
    reason: str | None


class KvmInfo(BaseModel):
    """KVM_GET_API_VERSION, KVM_CHECK_EXTENSION for every capability, and what this server has."""

    api_version: Literal[12]
    capabilities: dict[str, Count]
    limits: dict[str, Count]
    variants: list[VariantInfo]
    engines: list[EngineInfo]
    scenarios: list[str]
    properties: list[str]


class Health(BaseModel):
    """The server answers."""

    status: Literal["ok", "ready"]


class FieldError(BaseModel):
    """One broken rule."""

    pointer: str
    message: str
    in_: Literal["path", "query", "header"] | None = Field(default=None, alias="in")


class Problem(BaseModel):
    """Every failure (RFC 9457)."""

    type: str = Field(json_schema_extra={"format": "uri-reference"}, examples=["/problems/einval"])
    title: str
    status: int = Field(ge=400, le=599)
    detail: str
    instance: str
    errno: str = Field(pattern="^E[A-Z0-9]+$", examples=["EINVAL"])
    errno_value: Count
    ioctl: str | None
    vm: str | None
    vcpu: Number | None
    retryable: bool
    errors: list[FieldError] | None = None
