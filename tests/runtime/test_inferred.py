"""``inferred`` over calls that are a thread each: whichever covers what is gone closes the window, or RESUME does."""

from kickstand.core.memslots import Region
from kickstand.core.trace import VcpuState

PAGE = 4096


async def held(registry):
    """A machine one of whose slots was deleted by one call, and whose vCPU then called KVM_RUN."""
    machine = await registry.create("vm", vcpus=1, programs=[[["out", 16, 1]]], variant="inferred")
    arena = machine.memory.allocate(4 * PAGE, "ram")
    await machine.set_user_memory_region(Region(0, 0, 0, PAGE, arena.base))
    await machine.set_user_memory_region(Region(1, 0, PAGE, PAGE, arena.base + PAGE))
    await machine.set_user_memory_region(Region(0, 0, 0, 0, arena.base))
    run = machine.start_run(0)
    return machine, arena, run


async def test_a_create_by_another_call_lets_the_vcpus_go_on(registry):
    machine, arena, run = await held(registry)
    assert machine.vcpu(0).watched.state is VcpuState.BLOCKED
    await machine.set_user_memory_region(Region(1, 0, PAGE, 0, arena.base + PAGE))  # a second hole, by a third call
    await machine.set_user_memory_region(Region(0, 0, 0, 2 * PAGE, arena.base))
    assert (await run.result())["ret"] == 0


async def test_resume_says_that_what_is_gone_is_gone_for_good(registry):
    machine, _, run = await held(registry)
    await machine.resume()
    assert (await run.result())["ret"] == 0
