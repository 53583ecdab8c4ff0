"""Limits hold on every path, come before the work, and are told by name; nothing that a client sends is an accident."""

import asyncio
import json
import time

import pytest

from kickstand.api.edge.bodies import check_values
from kickstand.guests.host_memory import MOST_ARENAS
from kickstand.guests.program import MOST_STEPS
from kickstand.settings import Limits
from tests.api.live import assert_problem, live

JSON = {"Content-Type": "application/json"}
HUGE = 10**4_200
PAGE = 4096


async def test_a_body_of_too_many_values_is_refused_before_it_is_read(client, vm):
    for unit in (b"{},", b"[],", b"0,", b'"",'):
        content = b'{"operations":[' + unit * 200_000 + b"0]}"
        began = time.process_time()
        problem = assert_problem(
            await client.post(f"{vm}/memory-transaction", content=content, headers=JSON), 413, "E2BIG"
        )
        assert "json_values" in problem["detail"]
        assert time.process_time() - began < 0.3  # the client's part included


async def test_thousands_of_errors_are_told_by_the_first(client, vm):
    answer = await client.post(f"{vm}/memory-transaction", json={"operations": [{}] * 40_000})
    assert_problem(answer, 422, "EINVAL")
    assert len(answer.content) < 10_000
    answer = await client.post(
        f"{vm}/memory-transaction", json={"operations": [], **{f"x{n}": 0 for n in range(1_000)}}
    )
    assert_problem(answer, 422, "EINVAL")
    assert len(answer.content) < 20_000
    answer = await client.post("/vms", json={f"x{n}": 0 for n in range(3_000)})
    assert_problem(answer, 413, "E2BIG")


async def test_a_long_text_is_not_repeated_in_its_refusal(client, vm):
    for body in ({"id": "a" * 1_000_000}, {"a" * 1_000_000: 1}, {"variant": "a" * 1_000_000}):
        answer = await client.post("/vms", json=body)
        assert answer.status_code == 422, answer.text[:300]
        assert len(answer.content) < 10_000


async def test_a_transaction_has_a_limit_of_operations(client, vm):
    operations = [{"slot": 0, "memory_size": 0}] * (Limits().transaction_operations + 1)
    problem = assert_problem(
        await client.post(f"{vm}/memory-transaction", json={"operations": operations}), 413, "E2BIG"
    )
    assert "transaction_operations" in problem["detail"]


async def test_a_program_has_a_limit_of_steps_wherever_they_are(client, vm):
    for program in ([["spin"]] * (MOST_STEPS + 1), [["choose", *[[["hlt"]] * 100] * (MOST_STEPS // 100 + 1)]]):
        problem = assert_problem(await client.put(f"{vm}/vcpu/0/program", json=program), 422, "EINVAL")
        assert str(MOST_STEPS) in problem["detail"]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/vcpu/{huge}/run", None),
        ("GET", "/vcpu/{huge}", None),
        ("PUT", "/memory-regions/{huge}", {"memory_size": 0}),
        ("GET", "/host-memory/{huge}", None),
        ("GET", "/host-memory/0x7f0000000000?length={huge}", None),
        ("GET", "/vcpu?limit={huge}", None),
        ("GET", "/vcpu?after={huge}", None),
        ("GET", "/dirty-log/{huge}", None),
        ("POST", "/kick", {"timeout_ms": HUGE}),
        ("POST", "/vcpu/0/run", {"timeout_ms": HUGE}),
        ("POST", "/memory-transaction", {"operations": [], "timeout_ms": HUGE}),
        ("POST", "/vcpu", {"id": HUGE}),
        ("POST", "/host-memory", {"size": HUGE}),
        ("POST", "/host-memory", {"size": 1, "fill": HUGE}),
        ("POST", "/irq-line", {"irq": HUGE, "level": 1}),
        ("POST", "/msi", {"data": HUGE}),
        ("PUT", "/vcpu/0/regs", {"rax": HUGE}),
        ("PUT", "/vcpu/0/mp-state", {"mp_state": HUGE}),
        ("POST", "/vcpu/0/interrupt", {"vector": HUGE}),
        ("PUT", "/vcpu/0/program", [["compute", HUGE]]),
        ("POST", "/script", [{"op": "kick", "args": {"timeout_ms": HUGE}}]),
        ("POST", "/script", [{"op": "arena", "args": {"name": "a", "size": HUGE}}]),
        ("POST", "/dirty-log/0/clear", {"first_page": HUGE}),
        ("POST", "/dirty-log/0/clear", {"bits": [HUGE]}),
    ],
)
@pytest.mark.parametrize("digits", [4_200, 4_301, 9_000])
async def test_numbers_of_thousands_of_digits_are_refused_like_others(client, vm, method, path, body, digits):
    huge = "9" * digits
    text = None if body is None else json.dumps(body).replace(str(HUGE), huge)
    answer = await client.request(method, vm + path.replace("{huge}", huge), content=text, headers=JSON)
    assert answer.headers["content-type"] == "application/problem+json", answer.text[:200]
    assert answer.status_code in (404, 413, 422), answer.text[:300]
    assert len(answer.content) < 12_000


async def test_top_level_numbers_of_thousands_of_digits_are_refused(client):
    for body in ({"id": "n", "seed": HUGE}, {"id": "n", "vcpus": HUGE}, {"id": "n", "programs": {str(HUGE): []}}):
        assert_problem(await client.post("/vms", content=json.dumps(body), headers=JSON), 422, "EINVAL")
    for body in ({"max_states": HUGE}, {"vcpus": HUGE}):
        answer = await client.post("/explorations", content=json.dumps(body), headers=JSON)
        assert answer.status_code in (413, 422), answer.text


async def test_a_dirty_log_of_64_gib_is_cleared_at_once(client, vm, server, machine):
    arena = (await client.post(f"{vm}/host-memory", json={"size": PAGE})).json()["userspace_addr"]
    region = {"guest_phys_addr": 0, "memory_size": 1 << 36, "userspace_addr": arena, "flags": 1}
    assert (await client.put(f"{vm}/memory-regions/0", json=region)).status_code == 200
    machine.vm.memslots.dirty[0].update({3, 70, 1 << 20})
    began = time.process_time()
    assert (await client.post(f"{vm}/dirty-log/0/clear", json={"num_pages": 64})).json() == {
        "dirty_pages": [70, 1 << 20]
    }
    assert (await client.post(f"{vm}/dirty-log/0/clear")).json() == {"dirty_pages": []}
    assert time.process_time() - began < 0.2


async def test_a_script_cannot_ask_for_more_memory_of_the_server_than_one_answer_has(client, vm):
    read = {"op": "read_host", "args": {"arena": "a", "offset": 0, "length": 1 << 20}}
    script = [{"op": "arena", "args": {"name": "a", "size": 1 << 20}}, *[read] * 17]
    problem = assert_problem(await client.post(f"{vm}/script", json=script), 422, "EINVAL")
    assert "in one answer" in problem["detail"]


async def test_hashes_and_fills_of_scripts_leave_the_loop_alone(client, vm):
    size = 64 << 20
    script = [
        {"op": "arena", "args": {"name": "a", "size": size}},
        {"op": "fill_host", "args": {"arena": "a", "offset": 1, "length": size - 2, "byte": 7}},
        {"op": "hash_host", "args": {"arena": "a"}},
        {"op": "fill_pattern", "args": {"arena": "a"}},
        {"op": "hash_host", "args": {"arena": "a"}},
    ]
    results = (await client.post(f"{vm}/script", json=script)).json()["results"]
    assert [result["ret"] for result in results] == [0] * 5
    import hashlib

    from kickstand.scripts.play.forms import pattern

    assert results[2]["sha256"] == hashlib.sha256(b"\0" + b"\7" * (size - 2) + b"\0").hexdigest()
    assert results[4]["sha256"] == hashlib.sha256(pattern(size)).hexdigest()


@pytest.mark.slow
async def test_limits_of_all_vms_together_and_of_runs_that_scripts_begin():
    limits = Limits(memory=8 * PAGE, vcpus=6, parked_runs=2)
    async with live(limits=limits, vcpus=4) as server, server.client() as client:
        assert (await client.post("/vm/host-memory", json={"size": 5 * PAGE})).status_code == 201
        await client.post("/vms", json={"id": "b", "vcpus": 2})
        problem = assert_problem(await client.post("/vms/b/host-memory", json={"size": 4 * PAGE}), 507, "ENOMEM")
        assert "(memory)" in problem["detail"]
        await client.delete("/vm")
        assert (await client.post("/vms/b/host-memory", json={"size": 4 * PAGE})).status_code == 201
        problem = assert_problem(await client.post("/vms", json={"vcpus": 5}), 422, "EINVAL")
        assert "(vcpus)" in problem["detail"]
        script = [{"op": "create_vcpu", "args": {"id": number}} for number in range(2, 8)]
        script += [{"op": "start_run", "args": {"vcpu": number}} for number in range(3)]
        results = (await client.post("/vms/b/script", json=script)).json()["results"]
        assert [result["errno"] for result in results] == [None] * 4 + ["EINVAL"] * 2 + [None, None, "EAGAIN"]


@pytest.mark.slow
async def test_bodies_under_way_have_a_limit_together():
    async with live(limits=Limits(bodies=1 << 20, body=1 << 20)) as server, server.client() as client:
        memory = (await client.post("/vm/host-memory", json={"size": 1 << 20})).json()["userspace_addr"]
        head = f"PUT /vm/host-memory/{memory} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {1 << 20}\r\n\r\n".encode()
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(head)
        await asyncio.sleep(0.05)
        problem = assert_problem(await client.put(f"/vm/host-memory/{memory}", content=bytes(1 << 20)), 503, "EAGAIN")
        assert "(bodies)" in problem["detail"]
        assert (await client.put(f"/vm/host-memory/{memory}", content=b"small")).status_code == 204
        writer.close()
        for _ in range(100):
            if (await client.put(f"/vm/host-memory/{memory}", content=bytes(1 << 20))).status_code == 204:
                break
            await asyncio.sleep(0.02)
        else:
            raise AssertionError("the room of a body that never came is not given back")


async def test_a_vm_has_a_limit_of_allocations(server, machine):
    machine.memory.arenas.extend([None] * MOST_ARENAS)
    with pytest.raises(Exception, match="at most 4096 pieces"):
        machine.memory.check(1, "")
    machine.memory.arenas.clear()


def test_a_text_of_one_long_string_is_no_text_of_many_values():
    check_values(b'"' + b"a" * 10_000_000 + b'"', 10)
