"""The server at full load for minutes: its memory must stay flat, and its answers as quick as they were.

    python benchmarks/soak.py [--minutes 10] [--vcpus 64] [--streams 100] [--kick-ms 10] [--merge-ms 100]
                              [--mode precise] [--streams-of vm]
    python benchmarks/soak.py --mixed [--minutes 10]

One server, as shipped, whose vCPUs run x86 code on server-side threads; clients read event streams, kick and resume,
merge and split two slots under the guests. Prints figures for each part and a verdict: latencies of the last third of
the time against the first, memory against the middle one, because until then the history of calls and the ring of
events fill up, which have a limit. Exit status 1 if memory or latency has grown.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from harness.mixed import Mixed
from harness.served import answer, request

HERE = Path(__file__).parent
LOW, PAGE, WINDOW = 0x10000, 0x1000, 0x20000
ENTRY, STACK = 0x1000, 0xF000
# 1: mov eax, [20000]; mov [21ff0], eax; dec ecx; jnz 1b; out 10, al; mov ecx, 20000; jmp 1b
CODE = "a100000200" + "a3f01f0200" + "49" + "75f3" + "e610" + "b9204e0000" + "ebea"
MEMORY_GROWTH, LATENCY_GROWTH = 1.05, 1.5
FLOOR_MS = 20.0  # growth below this is the machine's
PARTS = 10
CHUNK = 1 << 18
TIMEOUT_S = 30.0


@dataclass
class Part:
    """What was seen in one part of the time: latencies in milliseconds, memory in MB."""

    kicks: list[float] = field(default_factory=list)
    merges: list[float] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    rss: list[float] = field(default_factory=list)
    streamed: int = 0

    def line(self, number: int) -> str:
        """For the table."""
        ms = " ".join(f"{p50:8.1f} {p95:8.1f}" for p50, p95 in map(quantiles, (self.kicks, self.merges, self.health)))
        rss = statistics.median(self.rss) if self.rss else 0.0
        return f"{number:>4} {len(self.kicks):>7} {len(self.merges):>7} {ms} {rss:>8.1f} {self.streamed / 1e6:>9.1f}"


COLUMNS = ("kick p50", "p95", "merge50", "p95", "health50", "p95", "RSS MB", "streamed")
HEADER = f"{'part':>4} {'kicks':>7} {'merges':>7} " + " ".join(f"{name:>8}" for name in COLUMNS)


def quantiles(values: list[float]) -> tuple[float, float]:
    """(median, 95th percentile); zeros of nothing."""
    if not values:
        return 0.0, 0.0
    ordered = sorted(values)
    return ordered[len(ordered) // 2], ordered[len(ordered) * 95 // 100]


class Soak:
    """One server process and everything that is done to it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.seconds = options.minutes * 60
        self.parts = [Part() for _ in range(PARTS)]
        self.started = 0.0
        self.kick_lock = asyncio.Lock()
        self.base = 0  # host address of what the guests read

    @property
    def part(self) -> Part:
        """The present part of the time."""
        share = (time.monotonic() - self.started) / self.seconds
        return self.parts[min(PARTS - 1, int(share * PARTS))]

    @property
    def over(self) -> bool:
        return time.monotonic() - self.started >= self.seconds

    async def run(self) -> None:
        """Load the server until the time is up."""
        with serving() as (url, process):
            async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S) as client:
                await self.set_up(client)
            self.started = time.monotonic()
            links = [await Link.to(url) for _ in range(3)]
            jobs = [self.kicking(links[0]), self.merging(links[1]), self.probing(links[2]), self.measuring(process.pid)]
            jobs += [self.reading(url, number) for number in range(self.options.streams)]
            await asyncio.gather(*jobs, self.telling())

    async def set_up(self, client: httpx.AsyncClient) -> None:
        """Make the VM, its memory and its guests."""
        body = {"id": "soak", "vcpus": self.options.vcpus, "engine": "x86", "mode": self.options.mode}
        (await client.post("/vms", json=body)).raise_for_status()
        memory = await client.post("/vms/soak/host-memory", json={"size": 2 * PAGE})
        self.base = int(memory.raise_for_status().json()["userspace_addr"], 16)
        slots = self.backed([slot(1, WINDOW, PAGE), slot(2, WINDOW + PAGE, PAGE)])
        body = {"operations": slots, "protect": "none"}
        (await client.post("/vms/soak/memory-transaction", json=body)).raise_for_status()
        script: list[dict[str, Any]] = [
            {"op": "arena", "args": {"name": "A", "size": LOW}},
            {"op": "write_host", "args": {"arena": "A", "offset": ENTRY, "hex": CODE}},
            {
                "op": "set_memory_region",
                "args": {"slot": 0, "flags": 0, "gpa": 0, "size": LOW, "host": {"arena": "A", "offset": 0}},
            },
        ]
        for vcpu in range(self.options.vcpus):
            registers = {"rip": ENTRY, "rsp": STACK, "rflags": 2, "rcx": 1000}
            script += [
                {"op": "set_sregs", "args": {"vcpu": vcpu, "preset": "prot32"}},
                {"op": "set_regs", "args": {"vcpu": vcpu, "regs": registers}},
                {"op": "start_thread", "args": {"vcpu": vcpu}},
            ]
        answer = await client.post("/vms/soak/script", json=script)
        failed = [one for one in answer.raise_for_status().json()["results"] if one["ret"]]
        if failed:
            raise RuntimeError(f"the set-up failed: {failed[0]}")

    async def every(self, ms: float) -> AsyncIterator[None]:
        """A beat until the time is up; one that is late is not made up for."""
        while not self.over:
            started = time.monotonic()
            yield
            await asyncio.sleep(max(0.0, ms / 1e3 - (time.monotonic() - started)))

    async def kicking(self, link: Link) -> None:
        async for _ in self.every(self.options.kick_ms):
            async with self.kick_lock:
                self.part.kicks.append(await link.timed("POST", "/vms/soak/kick"))
                await link.timed("POST", "/vms/soak/resume")

    async def merging(self, link: Link) -> None:
        merged = False
        async for _ in self.every(self.options.merge_ms):
            gone = [deleted(1)] if merged else [deleted(1), deleted(2)]
            made = [slot(1, WINDOW, PAGE), slot(2, WINDOW + PAGE, PAGE)] if merged else [slot(1, WINDOW, 2 * PAGE)]
            body = {"operations": [*gone, *self.backed(made)], "protect": "kick"}
            async with self.kick_lock:
                self.part.merges.append(await link.timed("POST", "/vms/soak/memory-transaction", body))
            merged = not merged

    def backed(self, slots: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [one | {"userspace_addr": self.base + one["guest_phys_addr"] - WINDOW} for one in slots]

    async def probing(self, link: Link) -> None:
        async for _ in self.every(100):
            self.part.health.append(await link.timed("GET", "/healthz"))

    async def measuring(self, pid: int) -> None:
        async for _ in self.every(1000):
            self.part.rss.append(rss_mb(pid))

    async def reading(self, url: str, number: int) -> None:
        """One event stream, of the VM or of one vCPU, read as fast as it comes."""
        whose = "" if self.options.streams_of == "vm" else f"/vcpu/{number % self.options.vcpus}"
        loop = asyncio.get_running_loop()
        reader = Reader(self)
        transport, _ = await loop.create_connection(lambda: reader, *address(url))
        transport.write(request("GET", f"/vms/soak{whose}/events"))
        left_s = self.started + self.seconds - time.monotonic()
        done, _ = await asyncio.wait({reader.closed}, timeout=max(0.0, left_s))
        if done:
            raise RuntimeError("the server closed a stream")
        transport.close()

    async def telling(self) -> None:
        """Print each part when it is over."""
        print(HEADER, flush=True)
        for number, part in enumerate(self.parts, 1):
            await asyncio.sleep(max(0.0, self.started + self.seconds * number / PARTS - time.monotonic()))
            print(part.line(number), flush=True)


class Link:
    """A connection for one call at a time, as light as can be: what is measured is the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def to(cls, url: str) -> Link:
        return cls(*await asyncio.open_connection(*address(url)))

    async def timed(self, method: str, path: str, body: Any = None) -> float:
        """Milliseconds until the answer, which must be a good one."""
        content = b"" if body is None else json.dumps(body).encode()
        started = time.perf_counter()
        self.writer.write(request(method, path, content))
        await asyncio.wait_for(answer(self.reader), TIMEOUT_S)
        return (time.perf_counter() - started) * 1e3


class Reader(asyncio.BufferedProtocol):
    """Counts what a stream sends; all streams share one buffer, so that reading costs as little as it can."""

    buffer = bytearray(CHUNK)

    def __init__(self, soak: Soak) -> None:
        self.soak = soak
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.soak.part.streamed += nbytes

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set_result(None)


def address(url: str) -> tuple[str, int]:
    """Host and port."""
    host, port = re.findall(r"//([^:/]+):(\d+)", url)[0]
    return host, int(port)


def slot(slot_id: int, gpa: int, size: int) -> dict[str, Any]:
    """A slot of the API."""
    return {"slot": slot_id, "flags": 0, "guest_phys_addr": gpa, "memory_size": size}


def deleted(slot_id: int) -> dict[str, Any]:
    """A slot that goes."""
    return slot(slot_id, 0, 0) | {"userspace_addr": 0}


def rss_mb(pid: int) -> float:
    """Resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


@contextlib.contextmanager
def serving():
    """A server of its own: (URL, process)."""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    command = [sys.executable, "-m", "kickstand", "serve", "--ephemeral", "--port", "0", "--no-default-vm"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        if process.stdout is None or not process.stdout.readline():
            raise RuntimeError("the server did not start")
        yield process.stdout.readline().strip().rstrip("/"), process
    finally:
        process.terminate()
        process.wait()


def pace(parts: list[Part], seconds: float) -> str:
    """How often the vCPUs were kicked: a merge is a kick, too."""
    kicks = sum(len(part.kicks) + len(part.merges) for part in parts)
    return f"a kick every {seconds * 1e3 / max(1, kicks):.1f} ms"


def verdict(parts: list[Part]) -> list[str]:
    """What has grown from the first third of the time to the last; the first part warms up."""
    used = parts[1:]
    third = max(1, len(used) // 3)
    first, middle, last = used[:third], used[third:-third] or used[:third], used[-third:]
    grown = []
    before, after = (statistics.median([value for part in some for value in part.rss]) for some in (middle, last))
    print(f"memory: {before:.1f} MB in the middle third, {after:.1f} MB in the last")
    if after > before * MEMORY_GROWTH:
        grown.append("memory")
    for name in ("kicks", "merges", "health"):
        before, after = (
            quantiles([value for part in some for value in getattr(part, name)])[1] for some in (first, last)
        )
        print(f"{name}: p95 {before:.1f} ms in the first third, {after:.1f} ms in the last")
        if after > before * LATENCY_GROWTH and after - before > FLOOR_MS:
            grown.append(name)
    return grown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--vcpus", type=int, default=64)
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--kick-ms", type=float, default=10.0)
    parser.add_argument("--merge-ms", type=float, default=100.0)
    parser.add_argument("--streams-of", choices=("vm", "vcpu"), default="vm", help="whose events a stream shows")
    parser.add_argument("--mode", choices=("precise", "fast"), default="precise")
    parser.add_argument(
        "--mixed", action="store_true", help="VMs that come and go, snapshots, explorations, clients that leave"
    )
    options = parser.parse_args()
    if options.mixed:
        return Mixed(options.minutes).run()
    soak = Soak(options)
    asyncio.run(soak.run())
    print(pace(soak.parts, soak.seconds))
    grown = verdict(soak.parts)
    print("verdict: " + (f"grown: {', '.join(grown)}" if grown else "flat"))
    return bool(grown)


if __name__ == "__main__":
    sys.exit(main())
