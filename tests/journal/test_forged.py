"""A snapshot from anyone: a right checksum and wrong numbers. It is refused, or makes a VM like any other."""

import copy
import io
import json
import random

import pytest

from kickstand.core.errors import KvmError
from kickstand.core.memslots import Region
from kickstand.journal import snapshot
from kickstand.runtime.registry import Registry
from kickstand.settings import Limits
from tests.journal.test_snapshot import sealed
from tests.long import either

RAM = 16 * 4096
HOLE = 0x100000
MOV_EAX_HOLE = "67668b1d" + HOLE.to_bytes(4, "little").hex()  # mov ebx, [HOLE] in 16-bit code
VALUES = (None, True, -1, 0, 3, 255, 1 << 31, 1 << 63, 1 << 70, 0.5, "x", "00" * 40, [], {}, [[1]], [0] * 600)


async def image_of(engine):
    """A snapshot of a VM with an access under way, as its head and the bytes behind it."""
    registry = Registry(Limits())
    machine = await registry.create("source", vcpus=1, engine=engine)
    arena = machine.memory.allocate(RAM, "ram")
    if engine == "x86":
        machine.memory.write(arena.base + 0x1000, bytes.fromhex(MOV_EAX_HOLE + "f4"))
    await machine.memory_transaction([region(arena)])
    await prepare(machine, engine)
    run = await machine.start_run(0).result()
    assert run["exit_reason"] in ("KVM_EXIT_MMIO", "KVM_EXIT_IO"), run
    taken = await snapshot.take(machine, None)
    data = taken.read()
    taken.close()
    await registry.reset()
    return json.loads(data[snapshot.HEAD.size :][: int.from_bytes(data[12:16], "little")])


def region(arena):
    return Region(0, 1, 0, RAM, arena.base)


async def prepare(machine, engine):
    if engine == "script":
        await machine.set_program(0, [["write", 0, 1], ["in", 16, 4], ["spin"]])
        return
    await machine.set_sregs(0, {"cs": {"base": 0, "selector": 0}})
    await machine.set_regs(0, {"rip": 0x1000})


def leaves(tree, path=()):
    """The path of every value, and of every list and object around it; of a list, the first two items."""
    if path:
        yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree[:2]) if isinstance(tree, list) else ()
    for key, value in items:
        yield from leaves(value, (*path, key))


def changed(head, path, value):
    head = copy.deepcopy(head)
    inner = head
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return head


async def try_out(head):
    """Restore; a VM that comes of it is looked at and run. Returns whether it was accepted."""
    registry = Registry(Limits(memory_per_vm=1 << 20))
    try:
        machine = await snapshot.bring_back(registry, io.BytesIO(sealed(head)), "forged")
    except KvmError:
        assert not registry.machines
        return False
    machine.describe()
    for vcpu_id in machine.vm.vcpus:
        await machine.get_regs(vcpu_id)
        await machine.get_sregs(vcpu_id)
    await machine.resume()
    for vcpu_id in tuple(machine.vm.vcpus):
        run = machine.start_run(vcpu_id, timeout_ms=1)
        await run.result()
    taken = await snapshot.take(machine, None)
    taken.close()
    await registry.reset()
    return True


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["script", "x86"])
async def test_every_number_of_a_snapshot_may_be_wrong(engine):
    head = await image_of(engine)
    assert await try_out(head)
    chance = random.Random(9)
    outcomes = set()
    paths = list(leaves(head))
    for path in chance.sample(paths, min(len(paths), either(16, 600))):  # all, with every value, take minutes
        outcomes.add(await try_out(changed(head, path, chance.choice(VALUES))))
    assert outcomes == {True, False}
