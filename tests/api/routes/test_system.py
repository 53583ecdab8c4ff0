"""The server about itself: capabilities, schema, pages, metrics, reset, script, trace."""

import asyncio
import itertools
import json
import re

import pytest

from kickstand.api.routes.trace import Format, get_trace
from kickstand.core.trace import STATE_CHANGES, Tracepoint, VcpuState
from kickstand.core.variants import variants
from kickstand.main import url_of
from kickstand.settings import Limits, Settings
from tests.api.live import assert_problem, live


async def test_kvm_tells_version_capabilities_limits_variants_and_engines(client):
    kvm = (await client.get("/kvm")).json()
    assert kvm["api_version"] == 12
    assert kvm["capabilities"]["KVM_CAP_USER_MEMORY"] == 1
    assert kvm["capabilities"]["KVM_CAP_NR_MEMSLOTS"] == 32764
    assert {entry["name"] for entry in kvm["variants"]} == set(variants())
    assert all(entry["summary"] for entry in kvm["variants"])
    assert {"name": "script", "available": True, "reason": None} in kvm["engines"]
    assert {"merge", "two_vms"} <= set(kvm["scenarios"])
    assert {"deadlock", "lost_exit"} <= set(kvm["properties"])
    assert kvm["limits"]["run_timeout_ms"] == 60_000


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_pages_load_nothing_from_elsewhere_and_have_no_inline_script(client, path):
    page = await client.get(path)
    assert page.headers["content-type"].startswith("text/html")
    for source in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert not source.startswith(("http:", "https:", "//")), source
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=", page.text)
    for source in re.findall(r'(?:src|href)="(/static/[^"]+)"', page.text):
        assert (await client.get(source)).status_code == 200


async def test_metrics_are_prometheus_text_with_one_series_per_vm(client, machine, vm):
    await client.post(f"{vm}/vcpu/0/run", json={"immediate_exit": True})
    answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert f'kickstand_vcpu_runs_total{{vm="{machine.id}"}} 1.0' in answer.text
    assert f'kickstand_vcpus{{state="user",vm="{machine.id}"}} 2.0' in answer.text
    assert "kickstand_parked_runs 0.0" in answer.text
    assert "python_info" not in answer.text


@pytest.mark.slow
async def test_reset_brings_back_the_start_and_only_where_it_is_allowed():
    async with live() as server, server.client() as client:
        assert_problem(await client.post("/reset"), 403, "EPERM")
    async with live(allow_reset=True, vcpus=1) as server, server.client() as client:
        await client.post("/vms", json={"id": "other"})
        await client.post("/vcpu", json={"id": 7})
        assert (await client.post("/explorations", json={"variants": ["sticky"]})).status_code == 202
        assert (await client.post("/reset")).status_code == 204
        assert (await client.get("/explorations")).json() == {"explorations": []}
        vms = (await client.get("/vms")).json()["vms"]
        assert [(vm["id"], [vcpu["id"] for vcpu in vm["vcpus"]]) for vm in vms] == [("default", [0])]


@pytest.mark.slow
async def test_a_server_without_a_default_vm_answers_enodev():
    async with live(default_vm=False) as server, server.client() as client:
        assert (await client.get("/vms")).json() == {"vms": []}
        for path in ("/vm", "/vcpu", "/vcpu/0", "/vm/events"):
            assert_problem(await client.get(path), 404, "ENODEV")


async def test_query_parameters_that_nobody_knows_are_tolerated(client):
    assert (await client.get("/vm?cachebuster=1")).status_code == 200


SCRIPT = [
    {"op": "arena", "args": {"name": "m", "size": 4096}},
    {
        "op": "set_memory_region",
        "args": {"slot": 0, "flags": 0, "gpa": 0, "size": 4096, "host": {"arena": "m", "offset": 0}},
    },
    {
        "op": "set_memory_region",
        "args": {"slot": 1, "flags": 0, "gpa": 0, "size": 4096, "host": {"arena": "m", "offset": 0}},
    },
    {"op": "kick", "args": {}},
    {"op": "run", "args": {"vcpu": 0}},
    {"op": "resume", "args": {}},
]


@pytest.mark.parametrize("wrapped", [False, True])
async def test_a_script_answers_every_operation_in_order(client, vm, wrapped):
    answer = await client.post(f"{vm}/script", json={"operations": SCRIPT} if wrapped else SCRIPT)
    results = answer.json()["results"]
    assert [result["errno"] for result in results] == [None, None, "EEXIST", None, "EINTR", None]


async def test_a_script_streams_its_answers_as_lines_when_asked(client, vm):
    answer = await client.post(f"{vm}/script", json=SCRIPT, headers={"Accept": "application/x-ndjson"})
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [line["errno"] for line in lines] == [None, None, "EEXIST", None, "EINTR", None]


@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson"])
@pytest.mark.parametrize(("wrapped", "at"), [(False, "/1"), (True, "/operations/1")])
async def test_a_wrong_script_is_refused_before_anything_is_played(client, machine, vm, accept, wrapped, at):
    body = [{"op": "kick"}, {"op": "fly"}]
    answer = await client.post(
        f"{vm}/script", json={"operations": body} if wrapped else body, headers={"Accept": accept}
    )
    problem = assert_problem(answer, 422, "EINVAL")
    assert problem["errors"][0]["pointer"].startswith(at)
    assert not machine.vm.variant.open_windows


@pytest.mark.slow
async def test_a_script_longer_than_the_limit_is_refused():
    async with live(limits=Limits(script_operations=1)) as server, server.client() as client:
        assert_problem(await client.post("/vm/script", json=[{"op": "kick"}] * 2), 413, "E2BIG")


async def recorded(client, vm):
    await client.put(f"{vm}/vcpu/0/program", json=[["out", 16, 1], ["write", "0x1000", 513, 2]])
    for _ in range(2):
        await client.post(f"{vm}/vcpu/0/run")
    await client.post(f"{vm}/kick")
    await client.post(f"{vm}/vcpu/0/run")


async def test_a_chrome_trace_has_states_as_slices_that_do_not_overlap(client, vm):
    await recorded(client, vm)
    answer = await client.get(f"{vm}/trace?format=chrome")
    assert "attachment" in answer.headers["content-disposition"]
    events = answer.json()["traceEvents"]
    slices = [event for event in events if event["ph"] == "X" and event["tid"] == 0]
    assert {"user", "kernel", "guest"} <= {event["name"] for event in slices}
    for before, after in itertools.pairwise(slices):
        assert before["ts"] + before["dur"] == pytest.approx(after["ts"])
    assert "kvm_userspace_exit" in [event["name"] for event in events if event["ph"] == "i"]


@pytest.mark.parametrize("fmt", ["chrome", "ftrace", "perfetto", "events", "script"])
async def test_the_loop_goes_on_while_a_trace_is_written(machine, fmt):
    for number in range(3_000):
        await machine.start_run(number % 2, immediate_exit=True).result()
    turns, over = 0, asyncio.create_task(get_trace(machine, Format(fmt)))
    while not over.done():
        await asyncio.sleep(0)
        turns += 1
    assert len((await over).body) > 100_000
    assert turns > 20  # one portion a turn, and the thread takes several turns of the interpreter


async def test_an_ftrace_text_has_the_kernels_formats(client, vm):
    await recorded(client, vm)
    text = (await client.get(f"{vm}/trace?format=ftrace&limit=1000")).text
    assert text.startswith("# tracer: nop")
    for line in (
        "kvm_pio: pio_write at 0x10 size 1 count 1 val 0x1",
        "kvm_mmio: mmio write len 2 gpa 0x1000 val 0x201",
        "kvm_userspace_exit: reason KVM_EXIT_IO (2)",
        "kvm_userspace_exit: reason KVM_EXIT_MMIO (6)",
        "kvm_exit: vcpu 0 reason IO_INSTRUCTION\n",
        "kvm_entry: vcpu 0\n",
        "kvm_userspace_exit: reason restart (4)",
    ):
        assert line in text
    assert not re.search(r"rip 0x0|\b0 ns", text)  # a zero would be read as a measurement
    assert len((await client.get(f"{vm}/trace?format=ftrace&limit=1")).text.splitlines()) == 12 + 1


async def test_a_perfetto_trace_parsed_back_has_every_event_and_slices_that_end(client, machine, vm):
    protos = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")
    await recorded(client, vm)
    trace = protos.Trace()
    trace.ParseFromString((await client.get(f"{vm}/trace?format=perfetto")).content)
    events = [packet.track_event for packet in trace.packet if packet.HasField("track_event")]
    told = [record for record in machine.log.since(0)[0] if record.vm == machine.id and record.name != "vcpu_state"]
    instants = [event for event in events if event.type == protos.TrackEvent.TYPE_INSTANT]
    assert [(event.name, event.debug_annotations[0].int_value) for event in instants] == [
        (record.name, record.seq) for record in told
    ]
    begun = [event.track_uuid for event in events if event.type == protos.TrackEvent.TYPE_SLICE_BEGIN]
    ended = [event.track_uuid for event in events if event.type == protos.TrackEvent.TYPE_SLICE_END]
    assert sorted(begun) == sorted(ended)
    assert {"user", "guest", "kernel"} <= {event.name for event in events}


async def test_events_of_the_past_are_as_streams_have_them_and_can_be_chosen_by_name(client, vm):
    await recorded(client, vm)
    answer = await client.get(f"{vm}/trace?format=events&names=kvm_pio,kvm_kick_all&limit=2")
    told = [json.loads(line) for line in answer.text.splitlines()]
    assert [event["event"] for event in told] == ["kvm_kick_all", "kvm_kick_all"]
    assert [event["data"]["phase"] for event in told] == ["requested", "completed"]
    assert told[0]["id"].endswith(f"-{told[0]['data']['seq']}")
    assert int(answer.headers["kickstand-oldest"]) <= told[0]["data"]["seq"]
    names = {json.loads(line)["event"] for line in (await client.get(f"{vm}/trace?format=events")).text.splitlines()}
    assert {"kvm_pio", "vcpu_state", "kvm_userspace_exit"} <= names
    assert_problem(await client.get(f"{vm}/trace?format=events&names=A"), 422, "EINVAL")


async def test_a_past_that_a_spin_has_flooded_still_has_kicks_and_holes(client, machine, vm):
    await recorded(client, vm)
    before = [json.loads(line) for line in (await client.get(f"{vm}/trace?format=events")).text.splitlines()]
    for _ in range(machine.log.capacity // 2):
        machine.trace(Tracepoint.VCPU_STATE, 0, STATE_CHANGES[VcpuState.USER, VcpuState.WAITING])
        machine.trace(Tracepoint.VCPU_STATE, 0, STATE_CHANGES[VcpuState.WAITING, VcpuState.USER])
    names = {"kvm_create_vm", "kvm_kick_all", "kvm_mmio"}
    asked = f"{vm}/trace?format=events&names={','.join(sorted(names))}"
    answer = await client.get(asked)
    notable = [event for event in before if event["event"] in names]
    assert [json.loads(line) for line in answer.text.splitlines()] == notable
    assert {event["event"] for event in notable} == names
    assert int(answer.headers["kickstand-oldest"]) == 1
    assert int((await client.get(f"{vm}/trace?format=events")).headers["kickstand-oldest"]) > notable[-1]["data"]["seq"]
    begun = [event["ts"] for event in (await client.get(f"{vm}/trace")).json()["traceEvents"] if event.get("ph") == "X"]
    assert min(begun) > notable[-1]["data"]["t_ns"] / 1_000  # nothing is said of what vCPUs did before


async def test_a_trace_format_that_there_is_not_is_refused(client, vm):
    assert_problem(await client.get(f"{vm}/trace?format=vcd"), 422, "EINVAL")


@pytest.mark.parametrize(("host", "url"), [("0.0.0.0", "http://127.0.0.1:80/"), ("::", "http://[::1]:80/")])
def test_the_url_of_a_server_on_every_address_can_be_clicked(host, url):
    class Listener:
        def getsockname(self):
            return host, 80

    assert url_of(Settings(), Listener(), None) == url
