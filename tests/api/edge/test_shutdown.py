"""The process: one URL, and SIGTERM within a second whatever waits."""

import asyncio
import json
import os
import signal
import socket
import sys
import time

import httpx
import pytest

from tests.stopwatch import stretch

pytestmark = pytest.mark.alone

PROGRAM = """
import sys
from pathlib import Path
from kickstand.main import serve
from kickstand.settings import Settings
serve(Settings(port=0, vcpus=20, token_file=Path(sys.argv[1]) if len(sys.argv) > 1 else None))
"""


async def start(*arguments):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    await process.stdout.readline()
    return process, (await process.stdout.readline()).decode().strip()


async def read_all(client, path):
    async with client.stream("GET", path, headers={"Accept": "application/x-ndjson"}) as response:
        return [json.loads(line) async for line in response.aiter_lines()]


@pytest.mark.slow
async def test_sigterm_ends_streams_parked_runs_and_idle_connections_within_a_second():
    process, url = await start()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=20, limits=limits) as client:
        streams = [asyncio.create_task(read_all(client, "/events")) for _ in range(10)]
        runs = [asyncio.create_task(client.post(f"/vcpu/{n}/run")) for n in range(20)]
        _, idle = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
        while (await client.get("/vm/locks")).json()["readers"] != list(range(20)):
            await asyncio.sleep(0)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        code = await process.wait()
        took = time.monotonic() - began
        ends = [events[-1] for events in await asyncio.gather(*streams)]
        answers = [response.json() for response in await asyncio.gather(*runs)]
        idle.close()
    assert took < stretch(), took
    assert code in (0, -signal.SIGTERM)
    assert {end["event"] for end in ends} == {"bye"}
    assert {(answer["errno"], answer["cause"]) for answer in answers} == {("EINTR", "signal")}
    assert await process.stderr.read() == b""


@pytest.mark.slow
async def test_sigterm_ends_a_busy_server_with_a_reader_that_does_not_read_within_a_second():
    process, url = await start()
    async with httpx.AsyncClient(base_url=url, timeout=20) as client:
        deaf = socket.create_connection(("127.0.0.1", httpx.URL(url).port))
        deaf.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for vcpu in range(2):
            await client.put(f"/vcpu/{vcpu}/program", json=[["out", 1, 1]])
            await client.post(f"/vcpu/{vcpu}/start")
        while (await client.get("/vm")).json()["seq"] < 20_000:
            pass
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        await process.wait()
        took = time.monotonic() - began
        deaf.close()
    assert took < stretch(), took
    assert await process.stderr.read() == b""


@pytest.mark.slow
async def test_with_a_token_the_printed_url_has_a_code_that_works(tmp_path):
    (tmp_path / "token").write_text("a-token-of-this-test")
    process, url = await start(os.fspath(tmp_path / "token"))
    base, _, code = url.partition("#code=")
    async with httpx.AsyncClient(base_url=base) as client:
        assert (await client.get("/vm")).status_code == 401
        assert (await client.post("/session", json={"code": code})).status_code == 204
        assert (await client.get("/vm")).status_code == 200
    process.terminate()
    await process.wait()
    assert "a-token-of-this-test" not in url
