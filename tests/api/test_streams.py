"""Event streams: snapshot, then everything, in order and without a hole; who comes back, who leaves, and the end."""

import asyncio
import json

import pytest

from kickstand.api.hub import NDJSON, SSE, Hub, Sleeper, Span, View, in_lines
from kickstand.api.streams import Stream
from kickstand.runtime.events import EventLog, Record
from kickstand.settings import Limits, StreamSettings
from tests.api.live import assert_problem, events, live, seqs, until


@pytest.mark.parametrize("ndjson", [False, True], ids=["sse", "ndjson"])
async def test_a_snapshot_comes_first_and_then_every_event_after_it_without_a_hole(server, client, ndjson):
    machine = await server.registry.create("whole", vcpus=1)
    try:
        async with events(client, "/events", ndjson=ndjson) as stream:
            first = await stream.next()
            assert first["event"] == "snapshot"
            assert "whole" in [vm["id"] for vm in first["data"]["vms"]]
            start = first["data"]["seq"]
            assert first["id"] == f"{server.registry.log.epoch}-{start}"
            await machine.kick()
            await machine.resume()
            seen = await stream.until("kvm_resume_all", phase="completed")
        assert seqs(seen) == list(range(start + 1, start + 1 + len(seen)))
        assert all(event["id"] == f"{server.registry.log.epoch}-{event['data']['seq']}" for event in seen)
        assert {"seq", "vm", "vcpu", "t_ns"} <= set(seen[0]["data"])
    finally:
        await server.registry.destroy("whole")


async def test_a_vm_stream_begins_with_the_vm_and_shows_no_other(server, client, machine, vm):
    async with events(client, f"{vm}/events") as stream:
        snapshot = (await stream.next())["data"]
        assert snapshot["vm"] == snapshot["id"] == machine.id
        assert snapshot["memory_regions"] == []
        assert len(snapshot["vcpus"]) == 2
        assert "locks" in snapshot
        await server.registry.get("default").kick()
        await server.registry.get("default").resume()
        await machine.kick()
        seen = await stream.until("kvm_kick_all", phase="completed")
    assert {event["data"]["vm"] for event in seen} == {machine.id}


async def test_a_vcpu_stream_shows_one_vcpu(client, machine, vm):
    async with events(client, f"{vm}/vcpu/1/events") as stream:
        assert (await stream.next())["data"]["state"] == "user"
        for vcpu in (0, 1):
            await client.post(f"{vm}/vcpu/{vcpu}/run", json={"immediate_exit": True})
        seen = await stream.until("kvm_userspace_exit")
    assert {event["data"]["vcpu"] for event in seen} == {1}


@pytest.mark.parametrize("by", ["header", "query"])
async def test_a_reader_that_comes_back_gets_exactly_what_it_missed(server, client, machine, vm, by):
    async with events(client, f"{vm}/events") as stream:
        last = (await stream.next())["id"]
    await machine.kick()
    options = {"headers": {"Last-Event-ID": last}} if by == "header" else {"params": {"after": last}}
    async with events(client, f"{vm}/events", **options) as stream:
        seen = await stream.until("kvm_kick_all", phase="completed")
    assert seen[0]["event"] == "kvm_kick_all"
    assert "snapshot" not in [event["event"] for event in seen]


@pytest.mark.parametrize("after", ["nonsense", "00000000-1", "-", "99999999999999999999", "%00", "é"])
async def test_an_unusable_resume_point_gives_gap_and_snapshot_and_never_an_error(client, vm, after):
    async with events(client, f"{vm}/events", params={"after": after}) as stream:
        gap, snapshot = await stream.next(), await stream.next()
    assert gap["event"] == "gap"
    assert gap["data"]["reason"] in ("epoch", "unusable", "future")
    assert gap["id"] is None
    assert snapshot["event"] == "snapshot"


@pytest.mark.slow
async def test_a_resume_point_that_the_ring_has_dropped_gives_gap_and_snapshot():
    async with live(streams=StreamSettings(backlog=3)) as server, server.client() as client:
        log = server.registry.log
        for _ in range(5):
            log.emit("default", "kvm_kick_all", None, {})
        async with events(client, "/vm/events", params={"after": f"{log.epoch}-1"}) as stream:
            gap, snapshot = await stream.next(), await stream.next()
        assert gap["data"]["reason"] == "too_old"
        assert snapshot["data"]["seq"] == log.seq


@pytest.mark.slow
@pytest.mark.parametrize(
    ("accept", "lines"),
    [
        ("application/x-ndjson", True),
        ("text/event-stream, Application/X-NDJSON;q=0.5", True),
        ("application/x-ndjson;q=0", False),
        ("text/event-stream;q=1, application/x-ndjson ; q=0.000", False),
        ("application/x-ndjson-seq", False),
        ("*/*", False),
        ("", False),
    ],
)
def test_lines_are_sent_to_those_who_ask_for_them(accept, lines):
    assert in_lines(accept) is lines


@pytest.mark.parametrize("ndjson", [False, True], ids=["sse", "ndjson"])
async def test_an_idle_stream_has_a_heartbeat(ndjson):
    settings = StreamSettings(heartbeat_s=0.01)
    async with (
        live(streams=settings) as server,
        server.client() as client,
        events(client, "/vm/events", ndjson=ndjson) as stream,
    ):
        assert (await stream.next())["event"] == "snapshot"
        if ndjson:
            beat = await stream.next()
            assert beat["event"] == "heartbeat"
            assert beat["data"]["t_ns"] > 0
        else:
            asyncio.get_running_loop().call_later(0.05, server.registry.log.emit, "default", "kvm_kick", 0, {})
            await stream.next()
            assert stream.comments[0].startswith(": hb ")


@pytest.mark.slow
async def test_streams_that_open_in_the_same_turn_of_the_loop_share_one_snapshot_and_later_ones_see_what_changed():
    log, state = EventLog(), {"made": 0}
    hub = Hub(log, StreamSettings())

    def describe():
        state["made"] += 1
        return dict(state)

    def opened(view):
        return Stream(hub, view, NDJSON, describe, lambda: False)

    async def emitted(name):
        log.emit("vm", name, None, {})

    first, second, third, other = [opened(View(vm)) for vm in ("vm", "vm", "vm", "other")]
    turn = await asyncio.gather(
        first.opening(None), emitted("between"), second.opening(None), third.opening(None), other.opening(None)
    )
    assert turn[0] == turn[2] == turn[3]
    assert b'"event":"between"' in await second.following()  # what came after the snapshot is not missing
    assert json.loads(turn[4])["data"]["made"] == 2
    assert json.loads(await opened(View("vm")).opening(None))["data"]["made"] == 3
    ahead = opened(View("vm"))
    log.emit("vm", "later", None, {})
    ahead.seq = log.seq
    assert json.loads(await ahead.snapshot())["data"]["made"] == 4  # none older than what this one has shown


async def test_a_departed_reader_frees_everything(server, client, vm):
    hub = server.context.hub
    await until(lambda: hub.streams == 0)
    tasks = len(asyncio.all_tasks())
    async with events(client, f"{vm}/events") as stream:
        await stream.next()
        assert hub.streams == 1
    await until(lambda: hub.streams == 0 and len(asyncio.all_tasks()) <= tasks, "the stream ends")


async def test_destroying_a_vm_ends_its_stream_with_bye(client, machine, vm):
    async with events(client, f"{vm}/events") as stream:
        await stream.next()
        await client.delete(vm)
        seen = await stream.rest()
    assert [event["event"] for event in seen[-2:]] == ["kvm_destroy_vm", "bye"]
    assert seen[-1]["data"]["reason"] == "destroyed"


@pytest.mark.slow
async def test_a_stopping_server_says_bye_last_and_ends_parked_runs():
    async with live() as server, server.client() as client, events(client, "/vm/events") as stream:
        await stream.next()
        parked = asyncio.create_task(client.post("/vcpu/0/run"))
        await stream.until("vcpu_state", state="guest")
        stopping = asyncio.create_task(server.context.stop())
        seen = await stream.rest()
        await stopping
        assert seen[-1]["event"] == "bye"
        assert seen[-1]["data"]["reason"] == "shutdown"
        answer = (await parked).json()
        assert (answer["errno"], answer["cause"]) == ("EINTR", "signal")
        assert_problem(await client.post("/vcpu/0/run"), 503, "EAGAIN")
        assert_problem(await client.get("/readyz"), 503, "EAGAIN")


@pytest.mark.slow
async def test_more_streams_than_the_limit_are_refused():
    async with (
        live(limits=Limits(streams=1)) as server,
        server.client() as client,
        events(client, "/events") as stream,
    ):
        await stream.next()
        assert_problem(await client.get("/events"), 503, "EAGAIN")


async def test_a_burst_wakes_a_reader_once_and_is_encoded_once(server):
    hub, log = server.context.hub, server.registry.log
    waiting = asyncio.create_task(Sleeper(hub).wait(log.seq, asyncio.get_running_loop().time() + 10))
    await asyncio.sleep(0)
    seq = log.seq
    for _ in range(10):
        log.emit("x", "kvm_test", None, {})
    await waiting
    chunk, last = hub.chunk(View(), SSE, seq)
    assert chunk.count(b"event: kvm_test") == 10
    assert last == seq + 10
    assert hub.chunk(View(), SSE, seq)[0] is chunk
    assert all(record._data is not None for record in log.since(seq)[0])


async def test_waiting_always_suspends_even_when_events_are_there(server):
    log = server.registry.log
    log.emit("x", "kvm_test", None, {})
    turns = []
    asyncio.get_running_loop().call_soon(turns.append, 1)
    await Sleeper(server.context.hub).wait(0, asyncio.get_running_loop().time() + 10)
    assert turns


def test_every_view_of_a_span_shows_what_belongs_to_it_in_order():
    owners = [("a", 0), ("b", 0), (None, None), ("a", None), ("a", 1), ("b", 0), ("a", 0)]
    records = [Record(seq, seq, vm, vcpu, "x", {}) for seq, (vm, vcpu) in enumerate(owners, 1)]
    span = Span(records, len(records))
    for view in (View(), View("a"), View("b"), View("c"), View("a", 0), View("a", 1), View("a", 7), View("b", 0)):
        assert span.of(view) == list(filter(view.shows, records))
