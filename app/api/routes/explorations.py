"""Explorations: run the explorer as a job and read its verdicts."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path
from starlette.responses import Response

from kickstand.api.context import TheContext
from kickstand.api.edge.replies import nothing, reply
from kickstand.api.operations import ROOT, Operations
from kickstand.api.shapes.explorations import Exploration, Explorations, Explore

router = Operations("explorations", *ROOT)
JobId = Annotated[str, Path(description="The job's id.")]


@router.post("/explorations", answer=Exploration, status=202)
async def start_exploration(context: TheContext, body: Explore | None = None) -> Response:
    """Start the explorer in a process of its own; progress and verdicts are also on ``/events``."""
    jobs = await context.jobs()
    job = await jobs.start((body or Explore()).asked())
    return reply(job.describe(), 202, {"Location": f"/explorations/{job.id}"})


@router.get("/explorations", answer=Explorations)
async def list_explorations(context: TheContext) -> Response:
    """List the jobs."""
    return reply({"explorations": [job.describe(cells=False) for job in context.explorations.values()]})


@router.get("/explorations/{exploration}", answer=Exploration)
async def get_exploration(context: TheContext, exploration: JobId) -> Response:
    """Describe one job: how far it is, and each cell that is decided, counterexamples included."""
    return reply(context.exploration(exploration).describe())


@router.delete("/explorations/{exploration}", status=204)
async def delete_exploration(context: TheContext, exploration: JobId) -> Response:
    """End a job if it runs, and forget it."""
    job = context.exploration(exploration)
    await (await context.jobs()).remove(job)
    return nothing()
