"""What takes too long, or too much of a machine, for the suite: run by hand, prints figures.

python -m tests.api.edge.load stalled [SECONDS]   a stream reader that stalls under full load
python -m tests.api.edge.load sigterm             1,000 parked runs and 500 streams, 100 of them unread, and SIGTERM
python -m tests.api.edge.load drain [KICKS]       kicks of 1,000 clients parked in KVM_RUN, each on its own socket
"""

import asyncio
import json
import os
import resource
import signal
import statistics
import sys
import time
from pathlib import Path

import httpx

VCPUS = 8
RUNS, STREAMS, UNREAD = 1_000, 500, 100


class Process:
    """A server of its own."""

    @classmethod
    async def start(cls, vcpus):
        here = cls()
        command = [sys.executable, "-m", "kickstand", "serve", "--port", "0", "--ephemeral", "--vcpus", str(vcpus)]
        here.process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        while not (line := await here.process.stdout.readline()).startswith(b"http"):
            pass
        here.url = line.decode().strip()
        here.port = httpx.URL(here.url).port
        return here

    def resident(self):
        """MB."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 1e6

    def cpu(self):
        """Seconds."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def connect(self, method, path):
        """A request on a socket of its own."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 24)
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/x-ndjson\r\n"
        writer.write(f"{head}Content-Length: 0\r\n\r\n".encode())
        return reader, writer


async def kicks(client, seconds):
    """Kick and resume for so long; the drain times in ms."""
    drains, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        drains.append((await client.post("/vm/kick")).json()["drain_ns"] / 1e6)
        await client.post("/vm/resume")
        await asyncio.sleep(0.02)
    return drains


async def gaps(client):
    lines = (await client.get("/metrics")).text.splitlines()
    return int(float(next(line for line in lines if line.startswith("kickstand_stream_gaps_total")).split()[1]))


async def stalled(seconds):
    server = await Process.start(VCPUS)
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        for vcpu in range(VCPUS):
            await client.put(f"/vcpu/{vcpu}/program", json=[["out", 1, 1], ["compute", 1000]])
            await client.post(f"/vcpu/{vcpu}/start", json={"behaviour": "well"})
        while (await client.get("/vm")).json()["seq"] < 150_000:  # the ring is full
            await asyncio.sleep(0.1)
        alone = await kicks(client, seconds / 4)
        before, seq = server.resident(), (await client.get("/vm")).json()["seq"]
        reader, writer = await server.connect("GET", "/events")
        writer.transport.pause_reading()
        with_it = await kicks(client, seconds)
        after, events = server.resident(), (await client.get("/vm")).json()["seq"] - seq
        writer.transport.resume_reading()
        seen = []
        try:
            async with asyncio.timeout(10):
                while b'"event":"gap"' not in (line := await reader.readline()) and line:
                    seen.append(line)
        except (TimeoutError, OSError):
            line = b"none before the connection was cut off"
        figures = {
            "seconds": seconds,
            "events": events,
            "resident_mb": [round(before, 1), round(after, 1)],
            "kick_p50_ms": [round(statistics.median(alone), 2), round(statistics.median(with_it), 2)],
            "kick_p95_ms": [
                round(statistics.quantiles(alone, n=20)[-1], 2),
                round(statistics.quantiles(with_it, n=20)[-1], 2),
            ],
            "gaps": await gaps(client),
            "first_gap": line[:160].decode(),
        }
        print(json.dumps(figures))  # noqa: T201
        writer.close()
    server.process.terminate()
    await server.process.wait()


async def sigterm():
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    server = await Process.start(RUNS)
    runs = [await server.connect("POST", f"/vcpu/{number}/run") for number in range(RUNS)]
    streams = [await server.connect("GET", "/events") for _ in range(STREAMS)]
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        while len((await client.get("/vm/locks")).json()["readers"]) < RUNS:
            await asyncio.sleep(0.1)
        for _, writer in streams[:UNREAD]:
            writer.transport.pause_reading()
        ends = [asyncio.create_task(reader.read()) for reader, _ in (*runs, *streams[UNREAD:])]
        await asyncio.sleep(1)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu, begun = server.cpu(), time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        await server.process.wait()
        took = time.monotonic() - begun
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    answers = await asyncio.gather(*ends)
    figures = {
        "seconds": round(took, 2),
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime - cpu, 2),
        "answered": sum(b'"EINTR"' in answer for answer in answers[:RUNS]),
        "byes": sum(b'"event":"bye"' in answer for answer in answers[RUNS:]),
        "exit": server.process.returncode,
    }
    print(json.dumps(figures))  # noqa: T201


async def answer_of(reader):
    """The body of the next answer on a connection that stays open."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return json.loads(await reader.readexactly(int(length.split(b":")[1])))


async def drain(times):
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    server = await Process.start(RUNS)
    vcpus = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(RUNS)]
    drains, answered = [], []
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        for _ in range(times):
            for number, (_, writer) in enumerate(vcpus):
                writer.write(
                    f"POST /vcpu/{number}/run HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode()
                )
            while len((await client.get("/vm/locks")).json()["readers"]) < RUNS:
                await asyncio.sleep(0.1)
            answers = asyncio.gather(*(answer_of(reader) for reader, _ in vcpus))
            await asyncio.sleep(0.2)
            begun = time.monotonic()
            kick = (await client.post("/vm/kick")).json()
            assert kick["vcpus_stopped"] == RUNS
            assert all(answer["errno"] == "EINTR" for answer in await answers)
            answered.append((time.monotonic() - begun) * 1e3)
            drains.append(kick["drain_ns"] / 1e6)
            await client.post("/vm/resume")
    figures = {
        "clients": RUNS,
        "drain_ms": [round(drain, 1) for drain in drains],
        "drain_p50_ms": round(statistics.median(drains), 1),
        "all_answered_p50_ms": round(statistics.median(answered), 1),
    }
    print(json.dumps(figures))  # noqa: T201
    for _, writer in vcpus:
        writer.close()
    server.process.terminate()
    await server.process.wait()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["stalled", *seconds]:
            asyncio.run(stalled(float(seconds[0]) if seconds else 60))
        case ["drain", *times]:
            asyncio.run(drain(int(times[0]) if times else 12))
        case _:
            asyncio.run(sigterm())
