"""All or nothing, whoever leaves: every call that changes something, given up at each of its suspensions in turn.

The short form is part of the suite: transactions at every suspension, other calls at every fourth.
``KICKSTAND_DEPARTURES=all`` takes every suspension of every call, every variant and every way to leave.
"""

import asyncio
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from kickstand.core.ioctls.slots import BREATH
from kickstand.core.memslots import Region
from kickstand.core.variants import variants
from kickstand.main import create_app
from kickstand.settings import Settings
from tests.departures import WAYS, Departure
from tests.long import LONG

PAGE = 4096
RAM = 0x7F00_0000_0000
MOST = 60  # suspensions of one call: more would be a call that never ends
ALL = LONG or os.environ.get("KICKSTAND_DEPARTURES") == "all"
VARIANTS = sorted(variants()) if ALL else ["sticky"]
WHOLE = ("merge under kick", "bad transaction", "long list")  # those that the short form leaves at every suspension
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def region(slot, gpa, size, hva=0, flags=0):
    return {"slot": slot, "guest_phys_addr": gpa, "memory_size": size, "userspace_addr": hva, "flags": flags}


MERGE = [region(0, 0, 0), region(1, 0x8000, 0), region(0, 0, 0x10000, RAM)]
FAILS = [region(0, 0, 0), region(1, 0x9000, PAGE, RAM)]
LONG_LIST = [region(8 + number, 0x1000000 + number * PAGE, PAGE, RAM) for number in range(2 * BREATH + 1)]
PROGRAM = [["read", 0], ["out", 1, 1], ["read", 0x8000], ["out", 1, 2]]


@dataclass(frozen=True)
class Asked:
    """A request about VM ``x``; ``image``: its body is a snapshot of it."""

    name: str
    method: str
    path: str
    body: object = None
    image: bool = False

    def __str__(self):
        return self.name


CALLS = [
    Asked("merge under kick", "POST", "/vms/x/memory-transaction", {"operations": MERGE, "protect": "kick"}),
    Asked("merge unprotected", "POST", "/vms/x/memory-transaction", {"operations": MERGE, "protect": "none"}),
    Asked("merge as a list", "POST", "/vms/x/memory-transaction", {"operations": MERGE, "protect": "list"}),
    Asked("long list", "POST", "/vms/x/memory-transaction", {"operations": LONG_LIST, "protect": "list"}),
    Asked("bad transaction", "POST", "/vms/x/memory-transaction", {"operations": FAILS, "protect": "kick"}),
    Asked("delete a slot", "DELETE", "/vms/x/memory-regions/0"),
    Asked("move a slot", "PUT", "/vms/x/memory-regions/1", region(1, 0x20000, 0x8000, RAM + 0x8000)),
    Asked("kick", "POST", "/vms/x/kick"),
    Asked("set registers", "PUT", "/vms/x/vcpu/2/regs", {"rax": 7, "rbx": 9}),
    Asked("create a vcpu", "POST", "/vms/x/vcpu", {"id": 9}),
    Asked("create", "POST", "/vms", {"id": "new", "vcpus": 40}),
    Asked("host memory", "POST", "/vms/x/host-memory", {"size": 3 << 20, "name": "more", "fill": "5a"}),
    Asked("snapshot", "POST", "/vms/x/snapshot"),
    Asked("restore", "POST", "/vms/restore?id=new", image=True),
    Asked("delete", "DELETE", "/vms/x"),
    Asked("script", "POST", "/vms/x/script", [{"op": "kick", "args": {}}]),
]


async def prepare(context, variant):
    """VM ``x``: two slots, two vCPUs that run all the time, one that does not."""
    machine = await context.registry.create("x", vcpus=3, variant=variant, programs=[PROGRAM, [["spin"]], [["hlt"]]])
    machine.memory.allocate(0x10000, "ram")
    await machine.set_user_memory_region(Region(0, 1, 0, 0x8000, RAM))
    await machine.set_user_memory_region(Region(1, 0, 0x8000, 0x8000, RAM + 0x8000))
    for vcpu_id in (0, 1):
        await machine.start_thread(vcpu_id, "careless" if vcpu_id else "well")
    return machine


def image(machine):
    """What a VMM can know of a VM, apart from what its guests do all the time."""
    memory = [(arena.name, arena.size, hashlib.sha256(arena.buffer).hexdigest()) for arena in machine.memory.arenas]
    return {
        "slots": machine.vm.memslots.state(),
        "holds": machine.vm.variant.open_windows,
        "running": machine.window.proceed.is_set,
        "vcpus": [vcpu.id for vcpu in machine.vm.vcpus.values()],
        "online": machine.vm.lifetime.online,
        "rax": machine.vm.vcpus[2].guest.registers()["rax"],
        "rbx": machine.vm.vcpus[2].guest.registers()["rbx"],
        "memory": memory,
    }


def whole(context):
    """Every VM; and nothing is held or under way."""
    for machine in context.registry.machines.values():
        assert machine.vm.slots_lock.owner is None
        assert machine.vm.vcpus[2].mutex.owner is None
        assert machine.transactions.settled is None
        assert machine.window.unsettled == 0
        assert not any(slot.invalid for slot in machine.vm.memslots.slots.values())
        assert all(machine.threads[vcpu_id].running for vcpu_id in machine.threads)
    assert not context.registry.coming
    return {name: image(machine) for name, machine in context.registry.machines.items()}


async def settled(before):
    """Wait for the tasks that a call has left behind, but for the vCPUs' own."""
    for _ in range(1_000):
        left = {task for task in asyncio.all_tasks() - before if "/cpu" not in task.get_name()}
        if not left:
            return
        await asyncio.wait(left, timeout=0.05)
    raise AssertionError(f"tasks stay: {left}")


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


async def still_works(machine):
    """A kick, a change under it and a resume end, whatever was left before."""
    async with asyncio.timeout(10):
        if machine.vm.variant.open_windows:
            await machine.resume()
        await machine.memory_transaction([Region(5, 0, 0x100000, PAGE, RAM), Region(5, 0, 0x100000, 0, RAM)], "kick")


class Server:
    """An application with a journal, without sockets."""

    def __init__(self, state):
        self.app = create_app(Settings(default_vm=False, ephemeral=False, state_dir=state))
        self.context = self.app.state.context

    async def ask(self, asked, variant, at, way):
        """Perform a call on a fresh VM: what was before, what is after, and the call."""
        machine = await prepare(self.context, variant)
        body = asked.body
        if asked.image:
            body = (await Departure(self.app, "POST", "/vms/x/snapshot").perform()).answer
        before, tasks, files = whole(self.context), asyncio.all_tasks(), descriptors()
        call = await Departure(self.app, asked.method, asked.path, body, at=at, way=way).perform()
        await settled(tasks)
        after = whole(self.context)
        if before == after:
            assert descriptors() <= files, "a file stays open"
        for left in tuple(self.context.registry.machines.values()):
            await still_works(left)
        del machine
        await self.context.registry.reset()
        return before, after, call


async def every_departure(server, asked, variant):
    """How many suspensions were tried."""
    before, after, call = await server.ask(asked, variant, 0, "cancelled")
    assert call.status is not None
    tried = 0
    first, step = (1, 1) if ALL or asked.name in WHOLE else (2, 4)
    for way in WAYS if ALL else WAYS[:1]:
        for at in range(first, MOST, step):
            begun, now, left = await server.ask(asked, variant, at, way)
            assert begun == before
            assert now in (before, after), f"{asked} left at suspension {at} ({way}) is half done"
            if not left.reached:
                break
            tried += 1
        else:
            raise AssertionError(f"{asked} has more than {MOST} suspensions")
    return tried


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("asked", CALLS, ids=str)
async def test_a_call_that_is_left_has_happened_or_has_not(asked, variant, tmp_path):
    server = Server(tmp_path)
    await server.context.start()
    tried = await every_departure(server, asked, variant)
    await server.context.stop()
    assert tried
    print(f"{asked}, {variant}: left at {tried} suspensions")  # noqa: T201  the long form's count
