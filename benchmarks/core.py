"""The core's hot paths: the read lock, KVM_RUN without a switch, a kick of many vCPUs."""

from __future__ import annotations

import asyncio

from _harness import Ratio, at_most, compare, report

from app.core.atomics import Task
from app.core.memslots import Region
from app.core.rwsem import RwSemaphore
from app.runtime.registry import Registry
from app.runtime.tasks import perform

TIMES = 20_000
CLOSE: list = []  # what ends the tasks of each program


def on_loop(program):
    """A program of one coroutine, on a loop that is there already."""
    loop = asyncio.new_event_loop()
    return lambda: loop.run_until_complete(program())


async def read_lock():
    semaphore, task = RwSemaphore(), Task("reader")
    for _ in range(TIMES):
        await semaphore.down_read(task)
        await semaphore.up_read()


async def asyncio_lock():
    lock = asyncio.Lock()
    for _ in range(TIMES):
        await lock.acquire()
        lock.release()


async def switches():
    for _ in range(TIMES // 10):
        await asyncio.sleep(0)


def kvm_run():
    """KVM_RUN of a script guest that does port output, again and again."""

    async def make():
        machine = await Registry().create("vm", vcpus=1, programs=[[["out", 1, 1]]])
        await machine.set_user_memory_region(Region(0, 0, 0, 4096, 0))
        return machine.vcpu(0)

    vcpu = asyncio.new_event_loop().run_until_complete(make())

    async def program():
        for _ in range(TIMES // 10):
            await perform(vcpu.run_from_userspace())

    return on_loop(program)


def kick_cycle(vcpus: int):
    """Kick and resume ``vcpus`` running guests until all run again."""
    loop = asyncio.new_event_loop()

    async def make():
        registry = Registry()
        CLOSE.append(lambda: loop.run_until_complete(registry.reset()))
        machine = await registry.create("vm", vcpus=vcpus, programs=[[["spin"]]] * vcpus)
        for vcpu in range(vcpus):
            machine.start_thread(vcpu)
        await asyncio.sleep(0.01)
        return machine

    machine = loop.run_until_complete(make())

    async def program():
        await machine.kick()
        await machine.resume()
        while any(vcpu.watched.state.value != "guest" for vcpu in machine.vm.vcpus.values()):
            await asyncio.sleep(0)

    return lambda: loop.run_until_complete(program())


def wake_cycle(vcpus: int):
    """The floor: as many tasks, each woken out of one wait and into another."""
    loop = asyncio.new_event_loop()
    gates = [[], []]

    async def sleeper():
        while True:
            for gate in gates:
                future = loop.create_future()
                gate.append(future)
                await future

    async def make():
        return [asyncio.create_task(sleeper()) for _ in range(vcpus)]

    tasks = loop.run_until_complete(make())
    CLOSE.append(lambda: [task.cancel() for task in tasks] and loop.run_until_complete(asyncio.sleep(0)))

    async def program():
        for gate in gates:
            while len(gate) < len(tasks):
                await asyncio.sleep(0)
            waiting, gate[:] = gate[:], []
            for future in waiting:
                future.set_result(None)

    return lambda: loop.run_until_complete(program())


def main() -> None:
    rows: list[Ratio] = [
        compare(
            "uncontended read lock, method call",
            "asyncio.Lock",
            on_loop(read_lock),
            on_loop(asyncio_lock),
            goal=at_most(1.0),
        ),
        compare("KVM_RUN + KVM_EXIT, script guest", "bare asyncio switch", kvm_run(), on_loop(switches)),
    ]
    rows.extend(
        compare(
            f"kick cycle, {vcpus} vCPUs",
            "waking as many tasks twice",
            kick_cycle(vcpus),
            wake_cycle(vcpus),
            goal=at_most(2.5),
        )
        for vcpus in (100, 1_000)
    )
    report(rows)
    for close in CLOSE:
        close()


if __name__ == "__main__":
    main()
