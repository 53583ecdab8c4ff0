"""Mixed traffic for ``soak.py --mixed``: VMs come and go with everything that can be done to them, and clients leave.

Beside the server a program under ``exec --serve`` makes and closes VMs of its own (``churn.py``) while clients kick
them. Level is: memory and descriptors of both, and the time that /healthz takes, in the last third of the time as in
the third before it. Before that the rings of events are filled, which have a limit: what grows is something else then.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from kickstand.runtime.events import CAPACITY

HERE = Path(__file__).parent
PARTS = 12
WORKERS = 3
LEAVES = 0.1  # of all clients, before their answer is there
SIZE = 8 << 20
PAGE = 4096
MEMORY_GROWTH, MORE_FILES, LATENCY_GROWTH, FLOOR_MS = 1.05, 8, 1.5, 20.0
PROGRAM = [["write", 0, 1], ["out", 1, 1], ["read", 4096]]


@dataclass
class Part:
    """What was seen in one part of the time."""

    calls: int = 0
    left: int = 0
    health: list[float] = field(default_factory=list)
    rss: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    exec_vms: int = 0
    exec_rss: list[float] = field(default_factory=list)
    exec_files: list[int] = field(default_factory=list)

    def note(self, server: int, supervisor: int) -> None:
        """How much memory and how many descriptors both processes have now."""
        self.rss.append(resident_mb(server))
        self.files.append(open_files(server))
        self.exec_rss.append(resident_mb(supervisor))
        self.exec_files.append(open_files(supervisor))


def resident_mb(pid: int) -> float:
    """Memory of its own: pages of files come and go as the machine likes."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(re.findall(r"RssAnon:\s+(\d+)", status)[0]) / 1024


def open_files(pid: int) -> int:
    """How many descriptors a process has."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


class Mixed:
    """A server with a state directory, and its clients."""

    def __init__(self, minutes: float) -> None:
        self.seconds = minutes * 60
        self.parts = [Part() for _ in range(PARTS)]
        self.random = random.Random(1)
        self.began = 0.0

    @property
    def part(self) -> Part:
        """The one that is under way."""
        return self.parts[min(PARTS - 1, int((time.monotonic() - self.began) / self.seconds * PARTS))]

    @property
    def over(self) -> bool:
        """The time is up."""
        return time.monotonic() - self.began >= self.seconds

    def run(self) -> int:
        """Soak; 1 if something has grown."""
        with tempfile.TemporaryDirectory() as state, contextlib.ExitStack() as stack:
            served = ["serve", "--state", state, "--port", "0", "--no-default-vm"]
            server, url = stack.enter_context(_running(served, "stdout"))
            program = ["exec", "--serve", "--", sys.executable, str(HERE / "churn.py")]
            supervisor, exec_url = stack.enter_context(_running(program, "stderr"))
            asyncio.run(self._all(url, server.pid, exec_url, supervisor.pid))
        return self._verdict()

    async def _all(self, url: str, server: int, exec_url: str, supervisor: int) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=16)
        async with (
            httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client,
            httpx.AsyncClient(base_url=exec_url, timeout=60) as other,
        ):
            await asyncio.gather(self._warm(client), _filled(other))
            self.began = time.monotonic()
            works = [self._vms(client, number) for number in range(WORKERS)]
            works += [self._explore(client), self._streams(client), self._look(client, server, supervisor)]
            await asyncio.gather(*works, self._program(other), self._streams(other))

    async def _warm(self, client: httpx.AsyncClient) -> None:
        """A VM that does nothing but leave the guest, until the ring of events is full."""
        programs = [[["out", 1, 1]]] * 4
        await client.post("/vms", json={"id": "warm", "vcpus": 4, "programs": programs})
        for vcpu in range(4):
            await client.post(f"/vms/warm/vcpu/{vcpu}/start", json={"behaviour": "well"})
        await _filled(client)
        await client.delete("/vms/warm")

    async def _program(self, client: httpx.AsyncClient) -> None:
        """Kick whatever VM the program has at the moment; it may be gone by then."""
        seen: set[str] = set()
        while not self.over:
            for vm in (await client.get("/vms")).json()["vms"]:
                self.part.exec_vms += vm["id"] not in seen
                seen.add(vm["id"])
                for call in ("kick", "resume"):
                    await client.post(f"/vms/{vm['id']}/{call}")
            await asyncio.sleep(0.05)

    async def _ask(self, client: httpx.AsyncClient, method: str, path: str, **body: Any) -> httpx.Response:
        """Ask; one client in ten leaves before the answer is there."""
        self.part.calls += 1
        asking = asyncio.ensure_future(client.request(method, path, **body))
        if self.random.random() < LEAVES:
            await asyncio.wait({asking}, timeout=self.random.random() * 0.01)
            if not asking.done():
                self.part.left += 1
                asking.cancel()
                with contextlib.suppress(asyncio.CancelledError, httpx.HTTPError):
                    await asking
                return httpx.Response(499)
        answer = await asking
        if answer.status_code in (500, 501):
            raise RuntimeError(f"{method} {path}: {answer.text}")
        return answer

    async def _vms(self, client: httpx.AsyncClient, worker: int) -> None:
        number = 0
        while not self.over:
            number += 1
            vm = f"/vms/w{worker}-{number}"
            variant = self.random.choice(["sticky", "holds", "accel_blocker"])
            await client.post("/vms", json={"id": vm[5:], "vcpus": 3, "variant": variant, "programs": [PROGRAM] * 3})
            try:
                await self._life(client, vm)
            finally:
                for name in (vm, f"{vm}-copy"):
                    await client.delete(name)

    async def _life(self, client: httpx.AsyncClient, vm: str) -> None:
        made = await client.post(f"{vm}/host-memory", json={"size": SIZE, "name": "ram", "fill": "5a"})
        ram = made.json()["userspace_addr"]
        region = {"guest_phys_addr": 0, "memory_size": SIZE, "userspace_addr": ram, "flags": 1}
        await client.put(f"{vm}/memory-regions/0", json=region)
        merge = [{**region, "slot": 0, "memory_size": 0}, {**region, "slot": 0}]
        for vcpu in range(2):
            await self._ask(client, "POST", f"{vm}/vcpu/{vcpu}/start", json={"behaviour": "well"})
        for _ in range(10):
            await self._ask(client, "POST", f"{vm}/memory-transaction", json={"operations": merge, "protect": "kick"})
            await self._ask(client, "GET", f"{vm}/dirty-log/0")
            await self._ask(client, "POST", f"{vm}/vcpu/2/run", json={"timeout_ms": 5})
            await self._ask(client, "POST", f"{vm}/kick", json={"timeout_ms": 2_000})
            await self._ask(client, "POST", f"{vm}/resume")
            await self._ask(client, "GET", vm)
        await self._ask(client, "POST", f"{vm}/script", json=[{"op": "hash_host", "args": {"arena": "ram"}}])
        image = await self._ask(client, "POST", f"{vm}/snapshot")
        if image.is_success:
            await self._ask(client, "POST", f"/vms/restore?id={vm[5:]}-copy", content=image.content)

    async def _explore(self, client: httpx.AsyncClient) -> None:
        while not self.over:
            asked = {"variants": ["sticky"], "behaviours": ["well"], "max_states": 20_000}
            started = await client.post("/explorations", json=asked)
            if started.is_success:
                job = f"/explorations/{started.json()['id']}"
                while not self.over and (await client.get(job)).json()["state"] == "running":
                    await asyncio.sleep(0.5)
                await client.delete(job)
            await asyncio.sleep(2)

    async def _streams(self, client: httpx.AsyncClient) -> None:
        while not self.over:
            with contextlib.suppress(httpx.HTTPError, TimeoutError):
                async with asyncio.timeout(3):
                    async with client.stream("GET", "/events") as stream:
                        async for _ in stream.aiter_bytes():
                            pass

    async def _look(self, client: httpx.AsyncClient, server: int, supervisor: int) -> None:
        while not self.over:
            began = time.monotonic()
            await client.get("/healthz")
            part = self.part
            part.health.append((time.monotonic() - began) * 1e3)
            part.note(server, supervisor)
            await asyncio.sleep(0.1)

    def _verdict(self) -> int:
        print("part   calls    left  health p50   p95 ms   rss MB  files  exec VMs   rss MB  files")
        for number, part in enumerate(self.parts):
            p50, p95 = statistics.median(part.health), statistics.quantiles(part.health, n=20)[-1]
            rss, files, exec_rss, exec_files = (
                statistics.median(values) for values in (part.rss, part.files, part.exec_rss, part.exec_files)
            )
            print(
                f"{number:>4} {part.calls:>7} {part.left:>7} {p50:>11.1f} {p95:>8.1f} {rss:>8.1f} {files:>6.0f}"
                f" {part.exec_vms:>9} {exec_rss:>8.1f} {exec_files:>6.0f}"
            )
        third = PARTS // 3
        middle, last = self.parts[third : 2 * third], self.parts[2 * third :]
        grown = [name for name, limit, floor in WATCHED if _grown(name, limit, floor, middle, last)]
        print("verdict: " + (f"grown: {', '.join(grown)}" if grown else "level"))
        return bool(grown)


WATCHED = (
    ("rss", MEMORY_GROWTH, 4.0),
    ("files", 1.0, MORE_FILES),
    ("exec_rss", MEMORY_GROWTH, 4.0),
    ("exec_files", 1.0, MORE_FILES),
    ("health", LATENCY_GROWTH, FLOOR_MS),
)


async def _filled(client: httpx.AsyncClient) -> None:
    """Return once there were as many events as the ring of a server holds."""
    seq = 0
    while seq < CAPACITY:
        await asyncio.sleep(0.5)
        vms = (await client.get("/vms")).json()["vms"]
        seq = max([seq, *(vm["seq"] for vm in vms)])


@contextlib.contextmanager
def _running(arguments: list[str], says: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``kickstand`` with these arguments, and the address that it says."""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    command = [sys.executable, "-m", "kickstand", *arguments]
    process = subprocess.Popen(command, env=environment, text=True, **{says: subprocess.PIPE})
    try:
        found = (re.search(r"http://\S+", line) for line in getattr(process, says))
        yield process, next(url for url in found if url)[0].rstrip("/")
    finally:
        process.terminate()
        process.wait()


def _grown(name: str, limit: float, floor: float, middle: list[Part], last: list[Part]) -> bool:
    before, after = (
        statistics.median([value for part in some for value in getattr(part, name)]) for some in (middle, last)
    )
    print(f"{name}: {before:.1f} in the middle third, {after:.1f} in the last")
    return after > before * limit and after - before > floor
