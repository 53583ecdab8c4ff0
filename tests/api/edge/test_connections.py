"""Whoever connects and says nothing, or too little, is sent away; whoever is one too many is told so."""

import asyncio
import errno
import json
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

from kickstand.api.edge import logs
from kickstand.settings import Limits, RequestSettings
from tests.api.live import assert_problem, live, until

pytestmark = [pytest.mark.slow, pytest.mark.alone]  # each has a server of its own, whose patience is short
QUICK = RequestSettings(first_s=0.4, head_s=0.4, body_s=0.4, slowest=1_000)


async def connect(server, *pieces):
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    for piece in pieces:
        writer.write(piece)
    await writer.drain()
    return reader, writer


async def end_of(reader):
    async with asyncio.timeout(10):
        return await reader.read()


@pytest.mark.parametrize(
    "pieces",
    [
        (),
        (b"GET /healthz HT",),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: ",),
        (b"POST /vms HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{",),
        (b"POST /vms HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET /hea"),
    ],
    ids=["silence", "half a line", "half a head", "half a body", "half a chunk", "half a second request"],
)
async def test_a_request_that_does_not_arrive_is_answered_408_and_cut_off(pieces):
    async with live(requests=QUICK) as server:
        reader, writer = await connect(server, *pieces)
        answer = await end_of(reader)
        assert answer.split(b"\r\n\r\n")[-2].split(b"\r\n")[0].endswith(b"408 Request Timeout"), answer
        problem = json.loads(answer.split(b"\r\n\r\n")[-1])
        assert (problem["status"], problem["errno"]) == (408, "ETIMEDOUT")
        writer.close()
        await until(lambda: not server.server.server_state.connections, "the connection is gone")


async def test_a_body_that_drips_is_cut_off_and_one_that_is_only_long_is_not():
    async with live(requests=QUICK) as server, server.client() as client:
        memory = (await client.post("/vm/host-memory", json={"size": 1 << 20})).json()["userspace_addr"]
        head = f"PUT /vm/host-memory/{memory} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20000\r\n\r\n".encode()
        reader, writer = await connect(server, head)
        began, cut = time.monotonic(), asyncio.create_task(end_of(reader))
        while not cut.done():
            writer.write(b"x")
            await asyncio.sleep(0.05)
            assert time.monotonic() - began < 8
        assert b" 408 " in await cut
        writer.close()
        reader, writer = await connect(server, head)
        for _ in range(10):  # 20,000 bytes in a second, five times as long as a body may be silent
            writer.write(bytes(2_000))
            await asyncio.sleep(0.1)
        assert b" 204 " in await reader.readline()
        writer.close()


async def test_runs_that_park_and_streams_outlive_the_time_that_requests_have():
    async with live(requests=QUICK, vcpus=1) as server, server.client() as client:
        run = asyncio.create_task(client.post("/vcpu/0/run", json={"timeout_ms": 1_500}))
        async with client.stream("GET", "/events") as stream:
            lines = stream.aiter_lines()
            assert await anext(lines)
            assert (await run).json()["cause"] == "poll_timeout"
            await client.post("/vm/kick")
            async with asyncio.timeout(5):
                async for line in lines:
                    if "kvm_kick_all" in line:
                        break


async def test_a_connection_too_many_is_told_so_and_the_others_go_on():
    async with live(limits=Limits(connections=3)) as server:
        there = [await connect(server) for _ in range(3)]
        await until(lambda: len(server.server.server_state.connections) == 3, "all are connected")
        reader, writer = await connect(server)
        answer = await end_of(reader)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert "(connections)" in json.loads(answer.split(b"\r\n\r\n")[1])["detail"]
        for held, asking in there:
            asking.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b" 200 " in await held.readline()
            asking.close()
        writer.close()
        await until(lambda: not server.server.server_state.connections, "all are gone")
        async with server.client() as client:
            assert (await client.get("/healthz")).status_code == 200


async def test_a_lack_of_descriptors_is_called_by_its_name(monkeypatch):
    async with live() as server, server.client() as client:

        def none_left(*_args, **_kwargs):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        monkeypatch.setattr("tempfile.TemporaryFile", none_left)
        assert_problem(await client.post("/vm/snapshot"), 503, "EMFILE")
        assert_problem(await client.post("/vms/restore", content=b"x"), 503, "EMFILE")
        monkeypatch.setattr(server.registry, "describe", none_left)
        problem = assert_problem(await client.get("/vms"), 503, "EMFILE")
        assert problem["retryable"]


def test_the_same_complaint_is_told_some_times_a_second_and_then_counted():
    seldom = logs.Seldom()

    def passes(at, text="out of %s"):
        record = logging.LogRecord("asyncio", logging.ERROR, "", 0, text, ("resources",), None)
        record.created = at
        return seldom.filter(record), getattr(record, "fields", {})

    told = [passes(100.0)[0] for _ in range(1_000)]
    assert sum(told) == logs.A_SECOND
    assert passes(100.5, "another")[0]
    assert passes(101.5) == (True, {"left_out": 1_000 - logs.A_SECOND})


def test_a_server_that_has_no_descriptors_left_stays_quiet_and_comes_back(tmp_path):
    """40 descriptors, 60 connections: every line of the log is JSON, there are few, and afterwards all is well."""
    log = tmp_path / "log"
    command = [sys.executable, "-m", "kickstand", "serve", "--port", "0", "--ephemeral"]

    def few():
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))

    with log.open("w") as error:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=error, text=True, preexec_fn=few)  # noqa: PLW1509
    try:
        url = next(line.strip() for line in process.stdout if line.startswith("http"))
        host = httpx.URL(url).host, httpx.URL(url).port
        held = []
        for _ in range(60):
            made = socket.create_connection(host)
            held.append(made)
        time.sleep(1.0)
        for made in held:
            made.close()
        with httpx.Client(base_url=url, timeout=10) as client:
            assert client.get("/healthz").status_code == 200
            held = [socket.create_connection(host) for _ in range(20)]
            assert client.get("/vm").status_code == 200
        for made in held:
            made.sendall(b"\x16\x03nonsense\r\n\r\n")
            made.close()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)
        process.stdout.close()
    lines = log.read_text().splitlines()
    assert len(lines) < 50
    for line in lines:
        assert json.loads(line)["level"]
