"""Host memory, slots, transactions and the dirty log over HTTP."""

import json

import pytest
import pytest_asyncio

from kickstand.scripts.play.forms import pattern
from tests.api.live import assert_problem

PAGE = 4096
JSON = {"Content-Type": "application/json"}


@pytest_asyncio.fixture(loop_scope="session")
async def memory(client, vm):
    """The host address of four pages."""
    return (await client.post(f"{vm}/host-memory", json={"size": 4 * PAGE})).json()["userspace_addr"]


def region(address, **changes):
    return {"guest_phys_addr": "0x0", "memory_size": PAGE, "userspace_addr": address} | changes


# -- host memory ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fill", "expected"),
    [
        (None, bytes(8)),
        (0, bytes(8)),
        (0xA5, b"\xa5" * 8),
        ("0a0b0c", b"\x0a\x0b\x0c" * 3),
        ("pattern", pattern(8)),
        ("", bytes(8)),
    ],
)
async def test_host_memory_is_filled_as_asked(client, vm, fill, expected):
    made = await client.post(f"{vm}/host-memory", json={"size": "0x2000", "fill": fill})
    assert (made.status_code, made.json()["size"]) == (201, 8192)
    address = made.json()["userspace_addr"]
    answer = await client.get(f"{vm}/host-memory/{address}", params={"length": 8})
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.content == expected[:8]
    assert len((await client.get(f"{vm}/host-memory/{address}")).content) == 8192


async def test_host_memory_is_written_whole_or_not_at_all(client, vm, memory):
    path = f"{vm}/host-memory/{int(memory, 16) + 4}"
    assert (await client.put(path, content=b"\x01\x02")).status_code == 204
    assert (await client.get(f"{vm}/host-memory/{memory}?length=8")).content == bytes.fromhex("0000000001020000")
    assert_problem(await client.put(path, content=bytes(4 * PAGE)), 422, "EFAULT")
    assert_problem(await client.get(f"{vm}/host-memory/{memory}?length=99999"), 422, "EFAULT")
    assert_problem(await client.get(f"{vm}/host-memory/0x10"), 422, "EFAULT")
    assert_problem(await client.get(f"{vm}/host-memory/here"), 422, "EINVAL")
    assert_problem(await client.get(f"{vm}/host-memory/{memory}?length={1 << 40}"), 413, "E2BIG")


@pytest.mark.parametrize(
    ("body", "status", "errno"),
    [
        ({"size": 0}, 422, "EINVAL"),
        ({"size": 1 << 50}, 507, "ENOMEM"),
        ({"size": 1, "fill": 256}, 422, "EINVAL"),
        ({"size": 1, "fill": "odd"}, 422, "EINVAL"),
        ({}, 422, "EINVAL"),
        ({"size": True}, 422, "EINVAL"),
        ({"size": -1}, 422, "EINVAL"),
        ({"size": 1, "name": "n" * 65}, 422, "EINVAL"),
        ({"size": 1, "name": "\0"}, 422, "EINVAL"),
    ],
)
async def test_host_memory_that_cannot_be_is_refused(client, vm, body, status, errno):
    answer = await client.post(f"{vm}/host-memory", content=json.dumps(body), headers=JSON)
    problem = assert_problem(answer, status, errno)
    assert problem["errors"][0]["pointer"] in ("/size", "/fill", "/name")


async def test_half_a_character_is_no_json(client, vm):
    answer = await client.post(f"{vm}/host-memory", content=json.dumps({"size": 1, "name": "\ud800"}), headers=JSON)
    problem = assert_problem(answer, 422, "EINVAL")
    assert problem["errors"][0]["pointer"] in ("", "/name")


# -- slots ---------------------------------------------------------------------------------------------------


async def test_a_slot_is_created_flagged_moved_and_deleted(client, vm, memory):
    path = f"{vm}/memory-regions/3"
    made = await client.put(path, json=region(memory, slot=3))
    assert made.status_code == 200
    assert made.json() == {
        "slot": 3, "flags": 0, "guest_phys_addr": "0x0", "memory_size": PAGE, "userspace_addr": memory,
    }  # fmt: skip
    assert (await client.put(path, json=region(memory, flags=["LOG_DIRTY_PAGES"]))).json()["flags"] == 1
    assert (await client.put(path, json=region(memory, flags="0x1", guest_phys_addr=PAGE))).json()[
        "guest_phys_addr"
    ] == "0x1000"
    assert [entry["slot"] for entry in (await client.get(f"{vm}/memory-regions")).json()["regions"]] == [3]
    assert (await client.delete(path)).status_code == 204
    assert (await client.put(path, json=region(memory))).status_code == 200
    assert (await client.put(path, json={"memory_size": 0})).status_code == 204
    assert (await client.get(f"{vm}/memory-regions")).json() == {"regions": []}


@pytest.mark.parametrize(
    ("changes", "at"),
    [
        ({"memory_size": 100}, "/memory_size"),
        ({"guest_phys_addr": "0x10"}, "/guest_phys_addr"),
        ({"flags": 4}, "/flags"),
        ({"flags": ["SHINY"]}, "/flags"),
        ({"flags": 1 << 32}, "/flags"),
        ({"slot": 4}, "/slot"),
        ({"userspace_addr": "here"}, "/userspace_addr"),
        ({"memory_size": None}, "/memory_size"),
    ],
)
async def test_a_region_that_breaks_a_rule_is_refused_by_the_field(client, vm, memory, changes, at):
    problem = assert_problem(await client.put(f"{vm}/memory-regions/3", json=region(memory) | changes), 422, "EINVAL")
    assert problem["ioctl"] == "KVM_SET_USER_MEMORY_REGION"
    assert problem["errors"][0]["pointer"] == at


async def test_a_region_without_its_addresses_and_an_overlap_and_an_absent_slot_are_refused(client, vm, memory):
    problem = assert_problem(await client.put(f"{vm}/memory-regions/1", json={"memory_size": PAGE}), 422, "EINVAL")
    assert "guest_phys_addr" in problem["detail"]
    await client.put(f"{vm}/memory-regions/0", json=region(memory))
    assert_problem(await client.put(f"{vm}/memory-regions/1", json=region(memory)), 409, "EEXIST")
    assert_problem(await client.delete(f"{vm}/memory-regions/9"), 422, "EINVAL")
    assert_problem(await client.put(f"{vm}/memory-regions/40000", json=region(memory)), 422, "EINVAL")
    assert_problem(await client.put(f"{vm}/memory-regions/-1", json=region(memory)), 422, "EINVAL")


async def test_a_transaction_is_applied_in_order_all_or_nothing(client, vm, memory):
    halves = [region(memory, slot=0), region(hex(int(memory, 16) + PAGE), slot=1, guest_phys_addr=PAGE)]
    merge = [{"slot": 0, "memory_size": 0}, {"slot": 1, "memory_size": 0}, region(memory, slot=2, memory_size=2 * PAGE)]
    path = f"{vm}/memory-transaction"
    assert (await client.post(path, json={"operations": halves, "protect": "none"})).status_code == 200
    done = (await client.post(path, json={"operations": merge, "protect": "kick"})).json()
    assert done["results"] == [{"ret": 0, "errno": None}] * 3
    assert {"drain_ns", "window_ns", "seq"} <= set(done)
    wrong = [{"slot": 2, "memory_size": 0}, region(memory, slot=5), region(memory, slot=6)]
    problem = assert_problem(await client.post(path, json={"operations": wrong, "protect": "list"}), 409, "EEXIST")
    assert problem["ioctl"] == "KVM_SET_USER_MEMORY_REGION"
    for protect in ("kick", "none", "list"):
        body = {"operations": wrong, "protect": protect}
        problem = assert_problem(await client.post(path, json=body), 409, "EEXIST")
        assert problem["operation"] == 2
        assert problem["errors"][0]["pointer"] == "/operations/2/guest_phys_addr"
        assert problem["detail"].startswith("operation 2: ")
    assert [entry["slot"] for entry in (await client.get(f"{vm}/memory-regions")).json()["regions"]] == [2]
    assert_problem(await client.post(path, json={"operations": [], "protect": "hope"}), 422, "EINVAL")


async def test_the_dirty_log_tells_each_page_once(client, vm, memory):
    await client.put(f"{vm}/memory-regions/0", json=region(memory, memory_size=4 * PAGE, flags=["LOG_DIRTY_PAGES"]))
    await client.put(f"{vm}/vcpu/0/program", json=[["write", 0, 1], ["write", 2 * PAGE, 1], ["hlt"]])
    await client.post(f"{vm}/vcpu/0/run")
    partial = {"first_page": 0, "num_pages": 4, "bits": [0]}
    assert (await client.post(f"{vm}/dirty-log/0/clear", json=partial)).json() == {"dirty_pages": [2]}
    assert (await client.get(f"{vm}/dirty-log/0")).json() == {"dirty_pages": [2]}
    assert (await client.get(f"{vm}/dirty-log/0")).json() == {"dirty_pages": []}
    await client.put(f"{vm}/vcpu/0/program", json=[["write", 0, 1], ["hlt"]])
    await client.post(f"{vm}/vcpu/0/run")
    assert (await client.post(f"{vm}/dirty-log/0/clear")).json() == {"dirty_pages": []}
    assert_problem(await client.get(f"{vm}/dirty-log/1"), 404, "ENOENT")
    assert_problem(await client.post(f"{vm}/dirty-log/0/clear", json={"first_page": 1}), 422, "EINVAL")


@pytest.mark.parametrize("slot", [0, 7])
async def test_clearing_more_pages_than_any_slot_has_is_refused_without_counting_them(client, vm, memory, slot):
    region = {"flags": 1, "guest_phys_addr": 0, "memory_size": 4096, "userspace_addr": memory}
    await client.put(f"{vm}/memory-regions/0", json=region)
    answer = await client.post(f"{vm}/dirty-log/{slot}/clear", json={"num_pages": (1 << 32) - 1})
    assert answer.status_code in (404, 422), answer.text


async def test_a_transaction_whose_kick_times_out_changes_nothing(client, machine, vm, memory):
    await client.put(f"{vm}/memory-regions/1", json=region(memory))
    stuck = machine.thread("stuck")
    semaphore = machine.vm.variant.memory_transaction
    await machine.call(semaphore.down_read(stuck))
    body = {"operations": [region(memory, slot=1, memory_size=0)], "timeout_ms": 5}
    try:
        assert_problem(await client.post(f"{vm}/memory-transaction", json=body), 504, "ETIMEDOUT")
    finally:
        await machine.call(semaphore.up_read())
    assert [found["slot"] for found in (await client.get(f"{vm}/memory-regions")).json()["regions"]] == [1]
    assert (await client.get(vm)).json()["kicked"] is False
