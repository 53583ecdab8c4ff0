"""Explorations over HTTP: jobs in processes of their own, verdicts on the event stream."""

from __future__ import annotations

import asyncio

import pytest


async def finished(client, job):
    async with asyncio.timeout(60):
        while job["state"] == "running":
            await asyncio.sleep(0.05)
            job = (await client.get(f"/explorations/{job['id']}")).json()
    return job


@pytest.mark.slow
async def test_a_job_decides_its_cells_and_says_so_on_the_events(client, server):
    asked = {"variants": ["none", "sticky"], "behaviours": ["careless"], "properties": ["spurious_mmio"]}
    before = server.registry.log.seq
    answer = await client.post("/explorations", json=asked)
    assert answer.status_code == 202
    job = await finished(client, answer.json())
    assert answer.headers["location"] == f"/explorations/{job['id']}"
    assert (job["state"], job["error"]) == ("done", None)
    verdicts = {cell["variant"]: cell["verdict"] for cell in job["cells"]}
    assert verdicts == {"none": "violated", "sticky": "holds"}
    torn = next(cell for cell in job["cells"] if cell["variant"] == "none")
    assert torn["token"].startswith("ks2:")
    assert torn["counterexample"]["steps"]
    names = [record.name for record in server.registry.log.since(before)[0]]
    assert names.count("exploration_cell") == 2
    listed = (await client.get("/explorations")).json()["explorations"]
    assert "cells" not in next(one for one in listed if one["id"] == job["id"]) or listed
    assert (await client.delete(f"/explorations/{job['id']}")).status_code == 204
    assert (await client.get(f"/explorations/{job['id']}")).status_code == 404


@pytest.mark.slow
async def test_a_job_that_runs_is_ended_by_delete_and_the_server_goes_on(client):
    job = (await client.post("/explorations", json={"vcpus": 3, "variants": ["sticky"]})).json()
    assert (await client.delete(f"/explorations/{job['id']}")).status_code == 204
    assert (await client.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"scenario": "/etc/passwd"}, "scenario"),
        ({"variants": ["nobody"]}, "nobody"),
        ({"behaviours": ["rude"]}, "rude"),
        ({"properties": ["luck"]}, "luck"),
        ({"vcpus": 5}, "vcpus"),
        ({"strategy": "guess"}, "guess"),
    ],
)
async def test_what_cannot_be_explored_is_refused_by_name(client, body, field):
    answer = await client.post("/explorations", json=body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert field in answer.text


async def test_more_states_than_the_server_gives_are_refused(client):
    answer = await client.post("/explorations", json={"max_states": 10**12})
    assert (answer.status_code, answer.json()["errno"]) == (413, "E2BIG")
