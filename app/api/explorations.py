"""Explorations: run the explorer as a job and read its verdicts."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field
from starlette.responses import Response

from app.api.context import TheContext
from app.api.operations import ROOT, Operations
from app.api.replies import nothing, reply
from app.api.schemas import Body

router = Operations("explorations", *ROOT)


class Explore(Body):
    """What to explore; an empty list means all."""

    scenario: str = Field(default="merge", description="One of GET /kvm's scenarios.")
    variants: list[str] = Field(default_factory=list)
    behaviours: list[str] = Field(default_factory=list, description="well, careless")
    vcpus: int = Field(default=1, ge=1, le=4)
    vmms: int = Field(default=1, ge=1, le=2)
    properties: list[str] = Field(default_factory=list)
    strategy: str = Field(default="states", description="states (exhaustive), random or pct")
    max_states: int | None = Field(default=None, ge=1)
    seed: int = 0

    def asked(self) -> dict[str, Any]:
        """What was given, and the defaults."""
        return self.model_dump(exclude_none=True)


class Exploration(BaseModel):
    """A job: ``state`` is running, done, failed or cancelled; ``cells`` as ``kickstand explore --json`` prints them."""

    id: str
    state: str
    asked: dict[str, Any]
    progress: dict[str, Any]
    error: str | None
    cells: list[dict[str, Any]] = Field(default_factory=list)


class Explorations(BaseModel):
    """All jobs, without their cells."""

    explorations: list[Exploration]


@router.post("/explorations", answer=Exploration, status=202)
async def start_exploration(context: TheContext, body: Explore | None = None) -> Response:
    """Start the explorer in a process of its own; progress and verdicts are also on ``/events``."""
    jobs = await context.jobs()
    job = jobs.start((body or Explore()).asked())
    return reply(job.describe(), 202, {"Location": f"/explorations/{job.id}"})


@router.get("/explorations", answer=Explorations)
async def list_explorations(context: TheContext) -> Response:
    """List the jobs."""
    return reply({"explorations": [job.describe(cells=False) for job in context.explorations.values()]})


@router.get("/explorations/{exploration}", answer=Exploration)
async def get_exploration(context: TheContext, exploration: str) -> Response:
    """Describe one job: how far it is, and each cell that is decided, counterexamples included."""
    return reply(context.exploration(exploration).describe())


@router.delete("/explorations/{exploration}", status=204)
async def delete_exploration(context: TheContext, exploration: str) -> Response:
    """End a job if it runs, and forget it."""
    job = context.exploration(exploration)
    await (await context.jobs()).remove(job)
    return nothing()
