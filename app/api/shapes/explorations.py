"""Explorations: what to explore, and what was found."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from kickstand.api.shapes.values import Body, Count

Names = Annotated[list[Annotated[str, Field(max_length=256)]], Field(max_length=64)]


class Explore(Body):
    """What to explore; an empty list means all."""

    scenario: str = "merge"
    variants: Names = Field(default_factory=list)
    behaviours: Names = Field(default_factory=list)
    vcpus: int = Field(default=1, ge=1, le=4)
    vmms: int = Field(default=1, ge=1, le=2)
    properties: Names = Field(default_factory=list)
    strategy: str = Field(default="states", examples=["states", "random", "pct"])
    max_states: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, json_schema_extra={"minimum": -(2**63), "maximum": 2**63 - 1})

    def asked(self) -> dict[str, Any]:
        """What was given, and the defaults."""
        return self.model_dump(exclude_none=True)


class Progress(BaseModel):
    """How far a job is."""

    cells_done: Count
    cells: Count
    search: dict[str, Any] | None


class Exploration(BaseModel):
    """A job."""

    id: str
    state: Literal["running", "done", "failed", "cancelled"]
    asked: dict[str, Any]
    progress: Progress
    error: str | None
    cells: list[dict[str, Any]] = Field(default_factory=list)


class Explorations(BaseModel):
    """All jobs, without their cells."""

    explorations: list[Exploration]
