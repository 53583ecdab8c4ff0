"""Whatever keeps a vCPU from the guest, at whatever moment: each interrupt and NMI arrives, and arrives once."""

import asyncio
import os
import random

import pytest

from kickstand.guests.kvm.device import unusable
from kickstand.runtime.registry import Registry
from kickstand.runtime.runs import Cause
from tests.guests import apic_guest
from tests.guests.apic_guest import APIC, LOG
from tests.long import either

pytestmark = pytest.mark.slow
KERNELS = [
    pytest.param("x86", "precise", id="precise"),
    pytest.param("x86", "fast", id="fast"),
    pytest.param("kvm", None, id="real", marks=pytest.mark.skipif(bool(unusable()), reason="needs /dev/kvm")),
]
WAYS = {
    "computes": b"\xeb\xfe",
    "sleeps": b"\xf4\xeb\xfd",
    "exits": b"\xe6\x80\xeb\xfc",
    "masks": b"\xfa\x90\xfb\x90\xeb\xfa",
}
SEED = int(os.environ.get("SEED", "1"))
NMI, VECTORS = 2, range(0x30, 0x100)
ROUNDS, MOST_AT_ONCE, MOST_RUNS = either(10, 300), 5, 2_000
SHORTEST_LOG = 0x2000  # bytes that are left for it before it starts again


class Disturbed:
    """A guest of one vCPU that is sent events, and userspace whose KVM_RUNs are cut short at random moments."""

    def __init__(self, machine, arena, seed):
        self.machine, self.arena, self.draw = machine, arena, random.Random(seed)

    async def send(self, vector):
        if vector == NMI:
            await self.machine.nmi(0)
        else:
            assert await self.machine.signal_msi(APIC, vector) == 1

    async def run_for_a_moment(self):
        if self.draw.random() < 0.5:
            await self.machine.signal(0)  # the entry does not come about
        run = self.machine.start_run(0)
        for _ in range(self.draw.randrange(8)):
            await asyncio.sleep(0)
        if self.machine.engine == "x86" and self.draw.random() < 0.3:
            await self.machine.kick()
            await self.machine.resume()
        run.signal(Cause.SIGNAL)
        await run.result()

    def arrived(self):
        return apic_guest.results(self.machine, self.arena)[1]

    async def round(self):
        """Events of different vectors, one after the other, with runs between them that end soon."""
        before = self.arrived()
        sent = self.draw.sample([NMI, *VECTORS], self.draw.randint(1, MOST_AT_ONCE))
        for vector in sent:
            await self.send(vector)
            if self.draw.random() < 0.7:
                await self.run_for_a_moment()
        for _ in range(MOST_RUNS):
            if len(self.arrived()) >= len(before) + len(sent):
                break
            await self.run_for_a_moment()
        assert sorted(self.arrived()[len(before) :]) == sorted(sent)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("engine", "mode"), KERNELS)
async def test_each_event_arrives_once_whatever_keeps_the_vcpu_from_its_guest(engine, mode, way):
    registry = Registry()
    options = {"mode": mode, "variant": "sticky"} if mode else {}
    machine = await registry.create("vm", vcpus=1, engine=engine, irqchip=True, **options)
    try:
        enable = ("write", APIC + 0xF0, 0x1FF)
        arena = await apic_guest.load(machine, (enable, ("out", 0x80, 0), ("sti",), ("bytes", WAYS[way])))
        await machine.run(0, timeout_ms=5_000)
        disturbed = Disturbed(machine, arena, SEED)
        for _ in range(ROUNDS):
            await disturbed.round()
            if len(disturbed.arrived()) > SHORTEST_LOG:
                machine.memory.write(arena.base + apic_guest.LOG_END, apic_guest.word(LOG))
    finally:
        await registry.reset()
