"""What a VM had is given back when it is deleted: mappings, descriptors, disk; the collector has nothing to do with it.

The short form is part of the suite; ``KICKSTAND_VMS=500`` prints its figures with ``-s``.
"""

import asyncio
import ctypes
import gc
import os
import resource
from pathlib import Path

import pytest

from kickstand.guests import mapping
from tests.api.live import live
from tests.long import either

VMS = int(os.environ.get("KICKSTAND_VMS", either("2", "20")))
SIZE = either(32, 64) << 20
WARM = 2
PIECES = either(8, 40)  # of host memory beside the large one
PAGE = 4096
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_200)]


def trim():
    """What the allocator keeps for later is not held by anybody."""
    ctypes.CDLL(None).malloc_trim(0)


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def mappings():
    return len(Path("/proc/self/maps").read_text().splitlines())


async def every_call(client, number):
    """Every kind of call on a VM of its own: much memory that is written, small pieces, and what keeps something."""
    vm = f"/vms/n{number}"
    engine = "x86" if number % 4 == 3 else "script"
    made = await client.post("/vms", json={"id": vm[5:], "vcpus": 3, "engine": engine, "irqchip": number % 2 == 1})
    assert made.status_code == 201, made.text

    async def ask(method, path, **body):
        answer = await client.request(method, vm + path, **body)
        assert answer.status_code < 300, f"{method} {path}: {answer.text[:300]}"
        return answer

    base = (await ask("POST", "/host-memory", json={"size": SIZE, "name": "ram", "fill": "5a"})).json()[
        "userspace_addr"
    ]
    for _ in range(PIECES):
        await ask("POST", "/host-memory", json={"size": PAGE})
    region = {"guest_phys_addr": 0, "memory_size": SIZE, "userspace_addr": base, "flags": 1}
    await ask("PUT", "/memory-regions/0", json=region)
    await ask("PUT", f"/host-memory/{base}", content=b"\xeb\xfe" + bytes(1 << 20))
    await ask("GET", f"/host-memory/{base}?length={1 << 20}")
    halves = [{**region, "slot": 0, "memory_size": 0}, {**region, "slot": 1, "memory_size": SIZE // 2}]
    await ask("POST", "/memory-transaction", json={"operations": halves})
    await ask("GET", "/dirty-log/1")
    await ask("POST", "/dirty-log/1/clear")
    if engine == "script":
        await ask("PUT", "/vcpu/0/program", json=[["write", 0, 1], ["in", 1], ["spin"]])
        await ask("PUT", "/vcpu/1/program", json=[["read", 0], ["out", 1, 1]])
    await ask("POST", "/vcpu/0/run", json={"timeout_ms": 5})
    await ask("POST", "/vcpu/1/start", json={"behaviour": "careless"})
    await ask("POST", "/kick")
    await ask("POST", "/resume")
    for path in ("/vcpu/0/regs", "/vcpu/0/sregs", "/vcpu/0/mp-state", "/vcpu/0", "/vcpu", "", "/locks"):
        await ask("GET", path)
    await ask("PUT", "/vcpu/0/regs", json={"rax": 1})
    await ask("POST", "/vcpu/2/signal")
    script = [
        {"op": "arena", "args": {"name": "a", "size": 1 << 20}},
        {"op": "write_host", "args": {"arena": "a", "offset": 0, "hex": "5a" * 200_000}},
        {"op": "hash_host", "args": {"arena": "a"}},
        {"op": "start_run", "args": {"vcpu": 2}},
    ]
    await ask("POST", "/script", json=script)
    await ask("GET", "/trace?format=script")
    image = (await ask("POST", "/snapshot")).content
    restored = await client.post(f"/vms/restore?id=r{number}", content=image)
    assert restored.status_code == 201, restored.text
    async with client.stream("GET", f"{vm}/events") as stream:
        await anext(stream.aiter_lines())
    for gone in (vm, f"/vms/r{number}"):
        assert (await client.delete(gone)).status_code == 204


async def fill_the_ring(log):
    """The events that are kept have a limit: what fills the ring up to it, told and read, is no VM's memory."""
    for number in range(log.capacity):
        log.emit(None, "note", None, {"number": number, "text": "as long as an event is, when it is told " * 3})
        if number % 1_000 == 0:
            assert log.since(log.seq - 1_000)[0][-1].data
            await asyncio.sleep(0)


@pytest.mark.parametrize("kept", [True, False], ids=["with a state directory", "ephemeral"])
async def test_memory_descriptors_and_files_are_where_they_were(kept, tmp_path):
    state = {"ephemeral": False, "state_dir": tmp_path / "state"} if kept else {}
    async with live(**state, default_vm=False) as server, server.client() as client:
        for number in range(WARM):
            await every_call(client, number)
        await fill_the_ring(server.registry.log)
        gc.collect()
        trim()
        small = resident()
        gc.disable()
        try:
            before = open_files(), mappings()
            for number in range(WARM, WARM + VMS):
                await every_call(client, number)
            after = open_files(), mappings()
        finally:
            gc.enable()
        gc.collect()  # the client lives here, too: its answers lie in circles
        trim()
        grown = (resident() - small) / 1e6
        print(  # noqa: T201  the long form's figures
            f"{VMS} VMs: {grown:.1f} MB, descriptors {before[0]} to {after[0]}, mappings {before[1]} to {after[1]}"
        )
        assert grown * 1e6 < SIZE  # one of them would have had twice that, with its copy
        assert after[0] <= before[0] + 4
        assert after[1] <= before[1] + 40
        assert server.registry.memory.used == server.registry.memory.count == 0
        if kept:
            assert list((tmp_path / "state" / "memory").iterdir()) == []


async def test_host_memory_takes_no_descriptors_and_is_limited_by_number(tmp_path):
    async with live(ephemeral=False, state_dir=tmp_path / "state") as server, server.client() as client:
        machine = server.registry.get("default")
        before = open_files()
        for _ in range(200):
            await machine.allocate_memory(PAGE)
        assert open_files() <= before + 2
        assert (await client.delete("/vm")).status_code == 204


def test_pages_are_given_back_while_somebody_still_looks(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"kept" + bytes(PAGE - 4))
    with path.open("r+b") as file:
        buffer = mapping.of_file(file.fileno(), PAGE)
    view = memoryview(buffer)
    view[4:8] = b"more"
    assert path.read_bytes()[:8] == b"keptmore"
    mapping.give_back(buffer)
    assert bytes(view[:8]) == bytes(8)
    view[:4] = b"lost"
    assert path.read_bytes()[:8] == b"keptmore"
    view.release()
