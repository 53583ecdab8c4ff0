"""A kick of a whole VM: from the ioctl to the last vCPU out of KVM_RUN, and back in again.

Every vCPU has a server-side VMM thread and a script guest: ``running`` ones compute and are in the event loop's
queue anyway, ``spinning`` ones wait in guest mode for an interrupt, ``halted`` ones sleep in HLT. The floor is
waking as many tasks, each out of one future.
"""

from __future__ import annotations

import asyncio
import statistics

from harness import Ratio, at_most, compare, measured, report, thread_ns

from kickstand.core.trace import VcpuState
from kickstand.core.uapi import MpState
from kickstand.runtime.registry import Registry

PROGRAMS = {"running": [["compute", 64]], "spinning": [["spin"]], "halted": [["hlt"]]}
AT_REST = {"running": VcpuState.GUEST, "spinning": VcpuState.GUEST, "halted": VcpuState.HALTED}
GOALS = {"running": at_most(1.6), "spinning": None, "halted": at_most(2.0)}
REPEAT = {10: 30, 100: 6, 1_000: 1}
DRAIN_MS = 25.0  # each vCPU is a task of asyncio's, which costs what a task costs


class Fleet:
    """A machine whose vCPUs all run the same guest."""

    def __init__(self, vcpus: int, kind: str) -> None:
        self.vcpus = vcpus
        self.at_rest = AT_REST[kind]
        self.kicks = REPEAT[vcpus]
        self.loop = asyncio.new_event_loop()
        self.machine = self.loop.run_until_complete(self._make(kind))
        self.drains_ns: list[int] = []

    async def _make(self, kind):
        self.registry = Registry()
        machine = await self.registry.create(
            "vm", vcpus=self.vcpus, programs=[PROGRAMS[kind]] * self.vcpus, irqchip=kind == "halted"
        )
        for vcpu in range(self.vcpus):
            if kind == "halted":
                await machine.set_mp_state(vcpu, MpState.RUNNABLE)
            await machine.start_thread(vcpu)
        await self._back(machine)
        return machine

    async def _back(self, machine):
        while any(vcpu.watched.state is not self.at_rest for vcpu in machine.vm.vcpus.values()):
            await asyncio.sleep(0)

    async def _kick(self) -> int:
        spent = 0
        for _ in range(self.kicks):
            started = thread_ns()
            answer = await self.machine.kick()
            spent += thread_ns() - started
            self.drains_ns.append(answer["drain_ns"])
            await self.machine.resume()
            await self._back(self.machine)
        return spent

    async def _cycle(self) -> None:
        for _ in range(self.kicks):
            await self.machine.kick()
            await self.machine.resume()
            await self._back(self.machine)

    def kick(self) -> int:
        """Kick and resume; the CPU time of the kicks alone."""
        return self.loop.run_until_complete(self._kick())

    def cycle(self) -> None:
        """Kick, resume, and wait until everybody is where they were."""
        self.loop.run_until_complete(self._cycle())

    def close(self) -> None:
        self.loop.run_until_complete(self.registry.reset())
        self.loop.close()


class Sleepers:
    """The floor: as many tasks, each woken out of one future and asleep in the next."""

    def __init__(self, tasks: int) -> None:
        self.wakes = REPEAT[tasks]
        self.sleeping: list[asyncio.Future] = []
        self.count = tasks
        self.all_asleep: asyncio.Future | None = None
        self.loop = asyncio.new_event_loop()
        self.tasks = self.loop.run_until_complete(self._start())

    async def _sleeper(self):
        while True:
            future = self.loop.create_future()
            self.sleeping.append(future)
            if len(self.sleeping) == self.count:
                self.all_asleep.set_result(None)
            await future

    async def _start(self):
        self.all_asleep = self.loop.create_future()
        tasks = [self.loop.create_task(self._sleeper()) for _ in range(self.count)]
        await self.all_asleep
        return tasks

    async def _wake(self, times: int) -> int:
        started = thread_ns()
        for _ in range(times):
            self.all_asleep = self.loop.create_future()
            sleeping, self.sleeping = self.sleeping, []
            for future in sleeping:
                future.set_result(None)
            await self.all_asleep
        return thread_ns() - started

    def wake(self) -> int:
        """Wake everybody once a kick."""
        return self.loop.run_until_complete(self._wake(self.wakes))

    def wake_twice(self) -> None:
        """Wake everybody twice a kick: out, and back in."""
        self.loop.run_until_complete(self._wake(2 * self.wakes))

    def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*self.tasks, return_exceptions=True))
        self.loop.close()


def quiescence(vcpus: int, kind: str) -> Ratio:
    """From the call of KICK to its return."""
    fleet, floor = Fleet(vcpus, kind), Sleepers(vcpus)
    row = compare(
        f"kick to quiescence, {vcpus:,} {kind} vCPUs",
        "waking as many futures",
        fleet.kick,
        floor.wake,
        goal=GOALS[kind],
        clock=None,
    )
    fleet.close()
    floor.close()
    return row


def whole_vm(vcpus: int) -> Ratio:
    """Kick, resume, everybody back in the guest."""
    fleet, floor = Fleet(vcpus, "spinning"), Sleepers(vcpus)
    row = compare(f"kick and resume, {vcpus:,} vCPUs", "waking as many twice", fleet.cycle, floor.wake_twice)
    fleet.close()
    floor.close()
    return row


def drain() -> Ratio:
    """One kick of a thousand vCPUs that wait in guest mode; ``drain_ns`` is the same as wall time."""
    fleet = Fleet(1_000, "spinning")
    spent_ms = [fleet.kick() / 1e6 for _ in range(15)][3:]
    fleet.close()
    wall_ms = statistics.median(fleet.drains_ns[3:]) / 1e6
    return measured(
        "drain of one kick, 1,000 parked vCPUs",
        spent_ms,
        "ms",
        at_most(DRAIN_MS),
        note=f"CPU time; drain_ns, wall time: {wall_ms:.1f} ms",
    )


def growth() -> Ratio:
    """Whether a vCPU costs more where there are more of them; a VM has at most 1,024."""
    few, many = Fleet(100, "spinning"), Fleet(1_000, "spinning")
    scale = (few.vcpus * few.kicks) / (many.vcpus * many.kicks)
    row = compare(
        "cost of a vCPU in kick and resume, 1,000 vCPUs",
        "with 100 vCPUs",
        many.cycle,
        few.cycle,
        goal=at_most(1.3),
        scale=scale,
    )
    few.close()
    many.close()
    return row


def main() -> None:
    rows = [quiescence(vcpus, kind) for kind in PROGRAMS for vcpus in (10, 100, 1_000)]
    report([*rows, drain(), whole_vm(100), whole_vm(1_000), growth()])


if __name__ == "__main__":
    main()
