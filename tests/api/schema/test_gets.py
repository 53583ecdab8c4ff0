"""GETs never take a lock and never wait: all of them answer while a kick drains and a run is parked."""

import asyncio
import re
import time

import pytest

from kickstand.core.trace import VcpuState
from kickstand.main import create_app
from kickstand.settings import Settings
from tests.api.live import until

STREAMS = ("/events",)
IOCTLS = ("/dirty-log/{slot}",)
PATHS = create_app(Settings()).openapi()["paths"]
GETS = sorted(
    path
    for path, item in PATHS.items()
    if "get" in PATHS[item.get("x-alias-of", path)] and not path.endswith(STREAMS + IOCTLS)
)


async def cost(client, url):
    """CPU seconds of a GET."""
    started = time.thread_time()
    answer = await client.get(url)
    assert answer.status_code in (200, 404, 422, 501), (url, answer.text)  # 404, 422: controllers that the VM lacks
    return time.thread_time() - started


@pytest.mark.slow
async def test_every_get_answers_at_once_while_a_kick_drains_and_a_run_is_parked(server, client, machine, vm):
    arena = machine.memory.allocate(4096)
    semaphore = machine.vm.variant.memory_transaction
    parked = asyncio.create_task(client.post(f"{vm}/vcpu/0/run"))
    await until(lambda: machine.vm.vcpus[0].watched.state is VcpuState.GUEST, "the run parks")
    await machine.call(semaphore.down_read(machine.thread("stuck")))
    kick = asyncio.create_task(client.post(f"{vm}/kick"))
    await until(lambda: semaphore.queue, "the kick drains")
    values = {"vm": machine.id, "id": "0", "userspace_addr": hex(arena.base), "exploration": "x1", "chip": "ioapic"} | {
        "errno": "einval"
    }
    took = {}
    for path in GETS:
        url = re.sub(r"\{(\w+)\}", lambda match: values[match[1]], path)
        if url.startswith(("/vm/host-memory", "/explorations/")):
            continue  # VM `default` has no host memory, and nothing was explored
        took[url] = min([await cost(client, url), await cost(client, url)])  # one may meet the garbage collector
    assert not kick.done()
    assert semaphore.queue
    assert max(took.values()) < 0.1, took
    await machine.call(semaphore.up_read())
    assert (await kick).status_code == 200
    await parked


async def test_locks_show_who_holds_and_who_waits(client, machine, vm):
    semaphore = machine.vm.variant.memory_transaction
    machine.window.kick_id = 0
    await machine.call(semaphore.down_read(machine.thread("stuck")))
    kick = asyncio.create_task(client.post(f"{vm}/kick"))
    await until(lambda: semaphore.queue, "the kick waits")
    locks = (await client.get(f"{vm}/locks")).json()
    assert locks["writer"] is None
    assert [entry["side"] for entry in locks["queue"]] == ["write"]
    assert locks["queue"][0]["age_ns"] >= 0
    await machine.call(semaphore.up_read())
    await kick
