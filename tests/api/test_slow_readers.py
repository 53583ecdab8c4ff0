"""Readers of event streams that are slow, stall or leave: a gap with its count, bounded memory, nobody is slowed."""

import asyncio
import json
import resource
import socket
from pathlib import Path

import pytest

from kickstand.api.hub import NDJSON, Hub, Sleeper, View
from kickstand.api.streams import Stream
from kickstand.runtime.events import EventLog
from kickstand.settings import StreamSettings
from tests.api.live import events, live, seqs, until


class Deaf:
    """A client that opens a stream and does not read it."""

    def __init__(self, port, path):
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        self.socket.connect(("127.0.0.1", port))
        self.socket.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/x-ndjson\r\n\r\n".encode())
        self.socket.setblocking(False)

    async def read_until(self, wanted):
        """All lines up to one that contains ``wanted``."""
        reader, writer = await asyncio.open_connection(sock=self.socket, limit=1 << 24)
        lines = []
        try:
            async with asyncio.timeout(10):
                while not lines or wanted not in lines[-1]:
                    lines.append(await reader.readline())
        finally:
            writer.close()
        return [json.loads(line) for line in lines if line.startswith(b'{"id"')]


async def flood(server, events, size=1_000):
    for number in range(events):
        server.registry.log.emit("default", "kvm_test", None, {"n": number, "fill": "x" * size})
        if number % 100 == 0:
            await asyncio.sleep(0)


@pytest.mark.slow
async def test_a_slow_reader_gets_one_gap_with_the_count_and_a_snapshot_and_slows_nobody():
    async with live(streams=StreamSettings(backlog=500)) as server, server.client() as client:
        deaf = Deaf(server.port, "/vm/events")
        await until(lambda: server.context.hub.streams == 1)
        async with events(client, "/vm/events") as quick:
            await quick.next()
            for _ in range(30):
                await flood(server, 100)
                await quick.until("kvm_test", n=99)
        await flood(server, 600)
        reading = asyncio.create_task(deaf.read_until(b"kvm_last"))
        await until(lambda: server.context.hub.gaps, "the gap")
        last = server.registry.log.emit("default", "kvm_last", None, {})
        seen = await reading
        names = [event["event"] for event in seen]
        at = names.index("gap")
        assert names.count("gap") == 1
        assert names[at + 1] == "snapshot"
        gap, before, after = seen[at]["data"], seqs(seen[1:at]), seqs(seen[at + 2 :])
        assert before == list(range(before[0], before[0] + len(before)))
        assert gap["from"] == before[-1] + 1
        assert gap["count"] == gap["to"] - gap["from"] + 1
        assert after == list(range(seen[at + 1]["data"]["seq"] + 1, last + 1))
        assert server.context.hub.gaps == 1


async def test_the_pause_between_two_rounds_grows_with_the_number_of_streams():
    log, loop = EventLog(), asyncio.get_running_loop()
    hub = Hub(log, StreamSettings(tick_s=0, stream_s=0.001))
    sleepers = [Sleeper(hub) for _ in range(20)]

    async def a_round():
        asleep = [asyncio.create_task(sleeper.wait(log.seq, loop.time() + 60)) for sleeper in sleepers]
        await asyncio.sleep(0)
        log.emit(None, "kvm_x", None, {})
        await asyncio.gather(*asleep)
        return loop.time()

    first = await a_round()
    assert await a_round() - first > 0.015
    for sleeper in sleepers:
        sleeper.close()


def resident():
    """Bytes of memory this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("capacity", [1_000, 100])
async def test_a_gap_counts_what_its_view_would_have_shown_and_goes_up_to_a_snapshot_that_another_stream_took(capacity):
    log = EventLog(capacity)
    hub = Hub(log, StreamSettings(backlog=200))
    shown = View("one", 1), View("one"), View()
    slow = [Stream(hub, view, NDJSON, dict, lambda: False) for view in shown]
    for number in range(300):
        log.emit("one" if number % 3 else "two", "kvm_x", number % 2, {})
    fresh = [Stream(hub, view, NDJSON, dict, lambda: False) for view in shown]

    async def seen(view, stream):
        gap, snapshot = map(json.loads, (await stream.following()).splitlines())
        kept = [number for number in range(300) if number + 1 > lost]
        missed = [n for n in kept if view.vm is None or (n % 3 and (view.vcpu is None or n % 2))]
        assert (gap["data"]["from"], gap["data"]["to"], gap["data"]["count"]) == (1, 300, lost + len(missed))
        assert gap["data"]["seq"] == snapshot["data"]["seq"] == 300
        assert [json.loads(line)["data"]["seq"] for line in (await stream.following()).splitlines()] == [301]

    async def emitted():
        log.emit("one", "kvm_y", 1, {})

    lost = max(0, log.seq + 1 - capacity)
    readers = [seen(view, stream) for view, stream in zip(shown, slow, strict=True)]
    await asyncio.gather(*[stream.opening(None) for stream in fresh], emitted(), *readers)


async def test_a_reader_that_stalls_while_thirty_megabytes_pass_costs_little_memory_and_gets_one_gap():
    async with live(streams=StreamSettings(tick_s=0)) as server:  # it falls behind by not reading, by nothing else
        log = server.registry.log
        deaf = Deaf(server.port, "/vm/events")
        await until(lambda: server.context.hub.streams == 1)
        await flood(server, log.capacity + 1_000, size=100)  # fills the ring, and what the kernel takes
        before = resident()
        await flood(server, 200_000, size=100)
        assert resident() - before < 8 << 20
        reading = asyncio.create_task(deaf.read_until(b"kvm_last"))
        await until(lambda: server.context.hub.gaps, "the gap")
        log.emit("default", "kvm_last", None, {})
        names = [event["event"] for event in await reading]
        assert names.count("gap") == 1
        assert names[names.index("gap") + 1] == "snapshot"


@pytest.mark.slow
async def test_a_reader_that_never_reads_is_cut_off_and_frees_its_place():
    async with live(streams=StreamSettings(write_timeout_s=0.05)) as server:
        deaf = Deaf(server.port, "/vm/events")
        await until(lambda: server.context.hub.streams == 1)
        before = len(server.server.server_state.connections)
        await flood(server, 3_000)
        await until(lambda: server.context.hub.streams == 0, "the stream ends")
        await until(lambda: len(server.server.server_state.connections) < before, "the connection ends")
        deaf.socket.close()
