"""One vCPU: what KVM_RUN and its exit cost without a switch, and what an idle vCPU weighs."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc

from harness import Ratio, at_most, compare, measured, report

from kickstand.core.memslots import Region
from kickstand.runtime.driver.tasks import perform
from kickstand.runtime.registry import Registry

TIMES = 2_000
VCPUS = 1_000
IDLE_KB = 8.0


def on_loop(program):
    """A program of one coroutine, on a loop that is there already."""
    loop = asyncio.new_event_loop()
    return lambda: loop.run_until_complete(program())


async def switches():
    """The floor: a task gives way to nobody and goes on."""
    for _ in range(TIMES):
        await asyncio.sleep(0)


def kvm_run(program: list):
    """KVM_RUN of a script guest, again and again."""

    async def make():
        machine = await Registry().create("vm", vcpus=1, programs=[program])
        arena = machine.memory.allocate(4096)
        await machine.set_user_memory_region(Region(0, 0, 0, 4096, arena.base))
        return machine.vcpu(0)

    vcpu = asyncio.new_event_loop().run_until_complete(make())

    async def run():
        for _ in range(TIMES):
            await perform(vcpu.run_from_userspace())

    return on_loop(run)


async def _idle_vcpus_bytes() -> int:
    registry = Registry()
    await registry.create("warm", vcpus=10)
    gc.collect()
    tracemalloc.start()
    await registry.create("vm", vcpus=VCPUS)
    gc.collect()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    await registry.reset()
    return size


def memory() -> Ratio:
    """What Python's allocator handed out for a VM of idle vCPUs, by vCPU."""
    size = asyncio.run(_idle_vcpus_bytes())
    return measured("memory of an idle vCPU", size / VCPUS / 1000, "kB", at_most(IDLE_KB), note="tracemalloc")


def main() -> None:
    floor = on_loop(switches)
    rows = [
        compare(f"KVM_RUN and its exit, guest does {name}", "bare asyncio switch", kvm_run(program), floor)
        for name, program in (
            ("port output", [["out", 1, 1]]),
            ("an MMIO read", [["read", 0x100000]]),
            ("HLT", [["hlt"]]),
        )
    ]
    report([*rows, memory()])


if __name__ == "__main__":
    main()
