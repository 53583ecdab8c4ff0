"""Kill the server with SIGKILL at random moments under mixed control calls, and look for every answered one.

    python tests/journal/kill9.py 200

Each client works on a VM of its own and knows what its last answer promised, and what the call it was in the middle of
would have changed. After the restart the VM must be the one or the other, nothing between. The event history is read
from the start: every number once, or within a gap that says so.
"""

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

PAGE = 4096
RAM = 16 * PAGE
CLIENTS = 4
ROOT = Path(__file__).resolve().parents[2]


class Server:
    """One life of the server."""

    def __init__(self, process, url):
        self.process = process
        self.url = url

    @classmethod
    async def start(cls, state):
        command = (sys.executable, "-m", "kickstand", "serve", "--port", "0", "--state", str(state), "--no-default-vm")
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
        async with asyncio.timeout(60):
            while not (line := await process.stdout.readline()).startswith(b"http"):
                assert line, "the server did not start"
        return cls(process, line.decode().strip())

    async def kill(self):
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()


@dataclass
class Promise:
    """What a VM must be: values by the path that shows them."""

    exists: bool = False
    regions: frozenset = frozenset()
    rax: dict = field(default_factory=dict)
    memory: dict = field(default_factory=dict)
    dirty: frozenset = frozenset()
    thread: bool = False

    def copy(self, **changes):
        new = Promise(**{**self.__dict__, "rax": dict(self.rax), "memory": dict(self.memory)})
        new.__dict__.update(changes)
        return new


class Client:
    """One VM and everything that was promised about it."""

    def __init__(self, name, rng):
        self.vm = f"/vms/{name}"
        self.name = name
        self.rng = rng
        self.known = Promise()
        self.asked = None  # what holds as well if the last call took effect without an answer
        self.calls = 0

    async def work(self, http):
        """Call until the server is gone."""
        while True:
            call, path, body, after = self.choose()
            self.asked = after
            answer = await http.request(call, self.vm + path if path is not None else "/vms", json=body)
            assert answer.status_code < 300, (call, path, body, answer.text)
            self.known, self.asked = after, None
            self.calls += 1
            await asyncio.sleep(0)

    def choose(self):
        known, rng = self.known, self.rng
        if not known.exists:
            body = {"id": self.name, "vcpus": 3, "programs": [[["write", PAGE, 1], ["spin"]], [["in", 96]], [["spin"]]]}
            return "POST", None, body, Promise(exists=True)
        if not known.memory:
            return "POST", "/host-memory", {"size": RAM, "name": "ram"}, known.copy(memory={"ram": RAM})
        if not known.regions:
            regions = frozenset({(0, 0, RAM // 2, 0), (1, RAM // 2, RAM // 2, RAM // 2)})
            return "POST", "/memory-transaction", {"operations": _operations(regions)}, known.copy(regions=regions)
        pick = rng.randrange(10)
        if pick < 3:
            return self._merge_or_split()
        if pick < 6:
            vcpu, value = rng.randrange(3), rng.randrange(1 << 32)
            return "PUT", f"/vcpu/{vcpu}/regs", {"rax": hex(value)}, known.copy(rax={**known.rax, vcpu: value})
        if pick == 6:
            return "POST", "/kick", {"timeout_ms": 5_000}, known
        if pick == 7:
            return "POST", "/resume", None, known
        if pick == 8:
            return "POST", "/vcpu/1/signal", None, known
        if rng.randrange(8) == 0:
            return "DELETE", "", None, Promise()
        action = "stop" if known.thread else "start"
        return "POST", f"/vcpu/2/{action}", None, known.copy(thread=not known.thread)

    def _merge_or_split(self):
        known = self.known
        if len(known.regions) == 2:
            regions = frozenset({(2, 0, RAM, 0)})
        else:
            regions = frozenset({(0, 0, RAM // 2, 0), (1, RAM // 2, RAM // 2, RAM // 2)})
        gone = [{"slot": slot, "memory_size": 0} for slot, *_ in sorted(known.regions)]
        body = {"operations": gone + _operations(regions), "protect": self.rng.choice(["kick", "list", "none"])}
        return "POST", "/memory-transaction", body, known.copy(regions=regions)

    async def check(self, http):
        """The VM is what was promised, or what the interrupted call would have made of it. Returns which."""
        found = await self.look(http)
        assert found in (self.known, self.asked), f"{self.vm}: {found} is neither {self.known} nor {self.asked}"
        half = found != self.known
        self.known, self.asked = found, None
        return half

    async def look(self, http):
        answer = await http.get(self.vm)
        if answer.status_code == 404:
            return Promise()
        vm = answer.json()
        assert vm["kicked"], f"{self.vm} did not come up kicked"
        base = 0x7F00_0000_0000
        regions = frozenset(
            (
                region["slot"],
                int(region["guest_phys_addr"], 16),
                region["memory_size"],
                int(region["userspace_addr"], 16) - base,
            )
            for region in vm["memory_regions"]
        )
        rax = {}
        for vcpu in vm["vcpus"]:
            value = int((await http.get(f"{self.vm}/vcpu/{vcpu['id']}/regs")).json()["rax"], 16)
            if value or vcpu["id"] in self.known.rax:
                rax[vcpu["id"]] = value
        memory = (await http.get(f"{self.vm}/host-memory/{hex(base)}")).status_code == 200
        threads = [vcpu["id"] for vcpu in vm["vcpus"] if vcpu["thread"]]
        return Promise(True, regions, rax, {"ram": RAM} if memory else {}, thread=threads == [2])


def _operations(regions):
    base = 0x7F00_0000_0000
    return [
        {"slot": slot, "guest_phys_addr": gpa, "memory_size": size, "userspace_addr": base + offset}
        for slot, gpa, size, offset in sorted(regions)
    ]


class History:
    """The event numbers seen so far."""

    def __init__(self):
        self.last = None
        self.events = self.gaps = self.lost = 0

    async def check(self, http):
        """Read everything since the last look; every number is there, or in a gap."""
        vm = (await http.get("/vms")).json()["vms"]
        if not vm:
            return
        epoch, target = vm[0]["epoch"], vm[0]["seq"]
        after = self.last or f"{epoch}-0"
        number = int(after.split("-")[1])
        assert after.startswith(epoch), "the epoch has changed"
        headers = {"Accept": "application/x-ndjson", "Last-Event-ID": after}
        async with http.stream("GET", "/events", headers=headers) as stream:
            lines = stream.aiter_lines()
            while number < target:
                event = json.loads(await anext(lines))
                if event["event"] == "gap":
                    assert event["data"]["from"] == number + 1, f"a gap from {event['data']} after {number}"
                    number = event["data"]["to"]
                    self.gaps += 1
                    self.lost += event["data"]["count"]
                elif event["event"] not in ("snapshot", "heartbeat"):
                    assert event["data"]["seq"] == number + 1, f"{event['data']['seq']} follows {number}"
                    number += 1
                    self.events += 1
        self.last = f"{epoch}-{number}"


async def run(kills, seed, folder, say=print):
    """Kill ``kills`` times; returns the counts. ``AssertionError``: something that was promised is not there."""
    rng = random.Random(seed)
    clients = [Client(f"w{number}", random.Random(rng.random())) for number in range(CLIENTS)]
    history = History()
    completed = 0
    server = await Server.start(folder)
    for number in range(kills):
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:
            working = [asyncio.create_task(client.work(http)) for client in clients]
            await asyncio.sleep(rng.uniform(0.05, 0.8))
            await server.kill()
            for outcome in await asyncio.gather(*working, return_exceptions=True):
                if not isinstance(outcome, httpx.TransportError):
                    raise outcome
        server = await Server.start(folder)
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:
            for client in clients:
                completed += await client.check(http)
            await history.check(http)
        say(f"{number + 1}/{kills}: {sum(client.calls for client in clients)} answered calls, all there")
    server.process.terminate()
    await server.process.wait()
    return {
        "kills": kills,
        "answered_calls": sum(client.calls for client in clients),
        "unanswered_calls_that_took_effect": completed,
        "events": history.events,
        "gaps": history.gaps,
    }


def main():
    """Kill as often as the command line says."""
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns()
    print(f"seed {seed}")  # noqa: T201  a command
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(KeyboardInterrupt):
        print(json.dumps(asyncio.run(run(kills, seed, Path(folder) / "state"))))  # noqa: T201


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(ROOT))
    main()
