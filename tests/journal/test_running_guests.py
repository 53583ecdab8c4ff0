"""A record of a guest that runs is not its last: what its registers were when it left is kept."""

import json

from kickstand.core.memslots import Region
from kickstand.core.trace import VcpuState
from kickstand.journal.records import Recorder
from kickstand.runtime.registry import Registry
from tests.api.live import until
from tests.journal.disk.damage import portrait, without_clocks

PAGE = 4096
PUSHES = bytes.fromhex("50 66ff06 0010 ebf9")  # 1: push ax; inc dword [1000]; jmp 1b


async def test_a_guest_that_was_recorded_as_it_ran_is_recorded_again_when_it_has_left():
    registry = Registry()
    machine = await registry.create("m", vcpus=1, engine="x86")
    arena = await machine.allocate_memory(16 * PAGE, "ram")
    await machine.write_memory(arena.base + 0x100, PUSHES)
    await machine.set_user_memory_region(Region(0, 0, 0, arena.size, arena.base))
    sregs = (await machine.get_sregs(0))["cs"] | {"base": 0, "selector": 0}
    await machine.set_sregs(0, {"cs": sregs})
    await machine.set_regs(0, {"rip": 0x100, "rsp": 0x8000, "rflags": 2})
    vcpu, recorder = machine.vcpu(0), Recorder(machine)
    await machine.start_thread(0)
    for _ in range(2):  # the second time it leaves as it left before
        await until(lambda: vcpu.watched.state is VcpuState.GUEST, "it runs")
        recorder.changed()
        ran = int.from_bytes(arena.buffer[0x1000:0x1004], "little")
        await until(lambda ran=ran: int.from_bytes(arena.buffer[0x1000:0x1004], "little") > ran + 5_000, "it goes on")
        await machine.kick()
        await until(lambda: vcpu.watched.state is VcpuState.USER, "it has left")
        kept = without_clocks({"cpu/0": json.loads(recorder.changed()["cpu/0"])})
        assert kept["cpu/0"] == portrait(machine)[0]["cpu/0"]
        await machine.resume()
    await registry.reset()


async def test_a_record_that_is_made_while_host_memory_is_has_none_of_it():
    machine = await Registry().create("m")
    recorder = Recorder(machine, lambda: ["1-0"])  # the thread has made the file; the machine has no arena yet
    kept = json.loads(recorder.whole()["vm"])
    assert (kept["memory"], kept["files"]) == ([], [])
    machine.memory.allocate(4096)
    kept = json.loads(recorder.whole()["vm"])
    assert (len(kept["memory"]), kept["files"]) == (1, ["1-0"])
