"""A snapshot is one moment of a running VM, comes back kicked, and anything else than a snapshot changes nothing."""

import hashlib
import json
import time
import zlib

import pytest

from kickstand.core.variants import variants
from kickstand.journal import snapshot
from kickstand.settings import Limits
from tests.api.live import assert_problem, live, until

BASE = 0x7F00_0000_0000
PAGE = 4096
pytestmark = pytest.mark.slow  # each has a server of its own


async def prepare(client, vm="/vm"):
    await client.post(f"{vm}/host-memory", json={"size": 16 * PAGE, "name": "ram"})
    region = {"flags": 1, "guest_phys_addr": 0, "memory_size": 16 * PAGE, "userspace_addr": hex(BASE)}
    await client.put(f"{vm}/memory-regions/0", json=region)
    await client.put(f"{vm}/host-memory/{hex(BASE + 4 * PAGE)}", content=b"image")


@pytest.mark.parametrize("variant", sorted(variants()))
async def test_a_running_vm_is_imaged_by_the_kick_and_goes_on(variant):
    async with live(variant=variant, vcpus=2) as server, server.client() as client:
        await prepare(client)
        machine = server.registry.get("default")
        await client.put("/vcpu/1/program", json=[["in", 16], ["spin"]])
        await client.post("/vcpu/1/run")
        await client.post("/vcpu/0/start", json={"behaviour": "careless"})
        await until(lambda: machine.vcpu(0).watched.state.value == "guest", "the guest runs")
        image = await client.post("/vm/snapshot")
        assert image.status_code == 200, image.text
        assert image.headers["content-disposition"] == 'attachment; filename="default.kicksnap"'
        await until(lambda: machine.vcpu(0).watched.state.value == "guest", "the guest goes on")
        assert (await client.get("/vm")).json()["holds"] == 0
        answer = await client.post("/vms/restore?id=copy", content=image.content)
        assert answer.status_code == 201, answer.text
        copy = answer.json()
        assert copy["id"] == "copy"
        if machine.vm.variant.open_windows or variant in ("sticky", "holds", "accel_blocker"):
            assert copy["kicked"]
        assert (await client.get(f"/vms/copy/host-memory/{hex(BASE + 4 * PAGE)}?length=5")).content == b"image"
        await client.post("/vms/copy/resume")
        run = await client.post("/vms/copy/vcpu/1/run", json={"reply": "01", "timeout_ms": 20})
        assert run.json()["errno"] == "EINTR"  # the IN is done, and the guest spins
        assert (await client.get("/vms/copy/vcpu/1")).json()["counters"]["exits"] == 1


async def test_a_window_that_was_open_stays_open_and_is_in_the_image():
    async with live(variant="holds", vcpus=1) as server, server.client() as client:
        await client.post("/vm/kick")
        image = (await client.post("/vm/snapshot")).content
        assert (await client.get("/vm")).json()["holds"] == 1
        copy = (await client.post("/vms/restore?id=copy", content=image)).json()
        assert copy["holds"] == 1
        assert (await client.post("/vms/copy/resume")).json()["holds"] == 0


async def test_what_is_no_whole_snapshot_is_refused_and_changes_nothing():
    async with live(vcpus=1, limits=Limits(snapshot=1 << 20)) as server, server.client() as client:
        await prepare(client)
        image = (await client.post("/vm/snapshot")).content
        before = (await client.get("/vms")).json()["vms"][0]["vcpus"]
        head = snapshot.HEAD.size
        flipped = [image[:at] + bytes([image[at] ^ 0x40]) + image[at + 1 :] for at in range(0, len(image), 97)]
        cut = [image[:length] for length in range(0, len(image), 211)]
        bomb = json.loads(image[head : head + int.from_bytes(image[12:16], "little")])
        bomb["vm"]["memory"] = [[BASE, 1 << 46, "ram"]]
        for broken in (*flipped, *cut, b"", b"no snapshot", image + b"x", sealed(bomb)):
            answer = await client.post("/vms/restore?id=copy", content=broken)
            assert answer.status_code in (422, 507), (len(broken), answer.text)
            assert answer.headers["content-type"] == "application/problem+json"
        assert_problem(await client.post("/vms/restore", content=image), 409, "EEXIST")
        assert_problem(await client.post("/vms/restore", content=bytes(2 << 20)), 413, "E2BIG")
        assert [vm["id"] for vm in (await client.get("/vms")).json()["vms"]] == ["default"]
        assert (await client.get("/vms")).json()["vms"][0]["vcpus"] == before


def sealed(head):
    """A snapshot whose checksum is right, whatever it says."""
    text = json.dumps(head).encode()
    data = snapshot.HEAD.pack(snapshot.MAGIC, snapshot.VERSION, len(text)) + text + snapshot.BLOCK.pack(0, 0, 0)
    return data + hashlib.sha256(data).digest()


async def test_a_forged_head_with_a_right_checksum_is_refused_field_by_field():
    async with live(vcpus=1) as server, server.client() as client:
        image = (await client.post("/vm/snapshot")).content
        text = image[snapshot.HEAD.size :][: int.from_bytes(image[12:16], "little")]
        assert (await client.post("/vms/restore?id=whole", content=sealed(json.loads(text)))).status_code == 201
        for part, changes in json.loads(text).items():
            for name in changes if isinstance(changes, dict) else ():
                for value in (None, -1, "x", [], {}, [[1]], 1 << 70):
                    head = json.loads(text)
                    head[part][name] = value
                    answer = await client.post("/vms/restore?id=forged", content=sealed(head))
                    assert answer.status_code in (201, 409, 422, 501, 507), (part, name, value, answer.text)
                    if answer.status_code == 201:
                        assert (await client.get("/vms/forged/vcpu/0/sregs")).status_code == 200
                        await client.delete("/vms/forged")


def image_of(head, blocks=()):
    """A snapshot with these blocks, and a right checksum."""
    text = json.dumps(head).encode()
    data = snapshot.HEAD.pack(snapshot.MAGIC, snapshot.VERSION, len(text)) + text
    for address, block in blocks:
        packed = zlib.compress(block)
        data += snapshot.BLOCK.pack(address, len(block), len(packed)) + packed
    data += snapshot.BLOCK.pack(0, 0, 0)
    return data + hashlib.sha256(data).digest()


@pytest.fixture
async def head():
    async with live(vcpus=1) as server, server.client() as client:
        await prepare(client)
        image = (await client.post("/vm/snapshot")).content
        return json.loads(image[snapshot.HEAD.size :][: int.from_bytes(image[12:16], "little")])


async def restored(image):
    """What a server says to an image, and how long it took of its processor."""
    async with live(vcpus=1) as server, server.client() as client:
        before = time.process_time()
        answer = await client.post("/vms/restore?id=copy", content=image)
        return answer, time.process_time() - before


async def test_dirty_pages_are_bounded_in_sum_before_any_of_them_is_made(head):
    head["slots/0"] = [[slot, slot << 20, 1 << 20, 1, BASE] for slot in range(16)]
    head |= {f"dirty/{slot}/0": [0, 1 << 20] for slot in range(16)} | {"slots": [16, 16 << 20]}
    answer, took = await restored(image_of(head))
    assert "dirty pages" in assert_problem(answer, 507, "ENOMEM")["detail"]
    assert took < 2


async def test_a_block_comes_once_and_in_order(head):
    block = (BASE, b"x" * 16 * PAGE)
    assert (await restored(image_of(head, [block])))[0].status_code == 201
    answer, _ = await restored(image_of(head, [block, block]))
    assert "twice, or out of order" in assert_problem(answer, 422, "EINVAL")["detail"]
    backwards = [(BASE + PAGE, b"x" * PAGE), (BASE, b"x" * PAGE)]
    assert_problem((await restored(image_of(head, backwards)))[0], 422, "EINVAL")
    behind = [(BASE + 15 * PAGE, b"x" * 2 * PAGE)]
    assert_problem((await restored(image_of(head, behind)))[0], 422, "EINVAL")


async def test_a_head_of_more_values_than_any_machine_has_is_refused_before_it_is_read(head):
    head["vm"]["memory"] = [[]] * (2 << 20)
    answer, took = await restored(image_of(head))
    assert "values" in assert_problem(answer, 422, "EINVAL")["detail"]
    assert took < 2


async def test_slots_beyond_count_are_looked_at_once(head):
    slots = [[slot, 2 * slot, 1, 0, BASE] for slot in range(20_000)]
    head |= {"slots": [len(slots), 0], "slots/0": slots}
    answer, took = await restored(image_of(head))
    assert answer.status_code == 201
    assert took < 5
    slots[7][1] = slots[9_000][1]
    answer, _ = await restored(image_of(head))
    assert "overlap" in assert_problem(answer, 422, "EINVAL")["detail"]
