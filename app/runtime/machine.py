"""One virtual machine on the event loop: each method is an ioctl, or a state that observers read.

A machine joins the core's ``Vm`` with host memory, a guest engine, the clock, and the threads that call
KVM_RUN. Nothing here decides protocol: it performs coroutines of the core and shapes their answers.
"""

from __future__ import annotations

import asyncio
import errno
from dataclasses import asdict
from functools import partial
from typing import Any

from kickstand.core.arch.kvmclock import KvmClock, TimeSource
from kickstand.core.errors import KvmError
from kickstand.core.trace import VCPU_STATE, Fields, Tracepoint
from kickstand.core.uapi import Fd, check_extension
from kickstand.core.variants import variant as find_variant
from kickstand.core.vm import DEFAULT_SWITCHES, Switches, System, Vm
from kickstand.guests.engines import engine_factory
from kickstand.guests.host_memory import Budget
from kickstand.guests.time_source import NANOSECONDS
from kickstand.runtime.calls.ioctl import ioctl
from kickstand.runtime.driver import clock as clocks
from kickstand.runtime.driver.clock import LoopClock, VirtualClock
from kickstand.runtime.driver.tasks import perform, perform_now
from kickstand.runtime.events import EventLog
from kickstand.runtime.ioctls.interrupts import InterruptIoctls
from kickstand.runtime.ioctls.memory import MemoryIoctls
from kickstand.runtime.ioctls.state import StateIoctls
from kickstand.runtime.ioctls.time import TimeIoctls
from kickstand.runtime.ioctls.vcpu import VcpuIoctls
from kickstand.runtime.observed import views
from kickstand.runtime.runs import Runs
from kickstand.runtime.vmm.threads import Threads


class Machine(StateIoctls, TimeIoctls, InterruptIoctls, VcpuIoctls, MemoryIoctls):
    """A VM and its VMM's half. ``log`` receives its events; ``seed`` decides its choices."""

    def __init__(  # noqa: PLR0913  # all that a VM is made of
        self,
        vm_id: str,
        *,
        log: EventLog,
        system: System,
        variant: str = "sticky",
        engine: str = "script",
        mode: str = "precise",
        irqchip: bool = False,
        clock: str = "loop",
        switches: Switches = DEFAULT_SWITCHES,
        seed: int = 0,
        budget: Budget | None = None,
        time_source: TimeSource = NANOSECONDS,
    ) -> None:
        super().__init__(vm_id, seed, log, budget)
        self.variant = variant
        self.engine = engine
        self.mode = mode
        self.guests = engine_factory(engine, mode)
        self.runs = Runs(self, self.window)
        self.threads = Threads(self.choose, self.window.proceed)
        self.clock_kind = clock
        self.clock = self._make_clock(clock)
        self.vm = self._make_vm(system, switches, irqchip=irqchip)
        self.vm.arch.clock = KvmClock(time_source)

    def _make_vm(self, system: System, switches: Switches, *, irqchip: bool) -> Vm:
        return Vm(
            self.id,
            find_variant(self.variant),
            lambda vcpu: self.guests.make(vcpu, self.memory),
            system=system,
            irqchip=irqchip,
            switches=switches,
            flush_guests=self.guests.caches_translations,
            clock=self.clock,
            trace=self._traced if isinstance(self.clock, VirtualClock) else self.trace,
        )

    # -- time --------------------------------------------------------------------------------------------

    def _make_clock(self, kind: str) -> LoopClock | VirtualClock:
        if kind not in clocks.KINDS:
            known = ", ".join(clocks.KINDS)
            raise KvmError(errno.EINVAL, "KVM_CREATE_VM", f"clock {kind!r} is none of {known}", field="clock")
        return LoopClock(self._timer_fired) if kind == "loop" else VirtualClock(self._timer_fired, self._idle)

    def _timer_fired(self, number: int) -> None:
        perform_now(self.vm.interrupts.timer_fired(number))

    def start_timers(self) -> None:
        """A restored VM: what was due is due again, in the VM's own time."""
        for vcpu in self.vm.vcpus.values():
            perform_now(self.vm.interrupts.start_timer(vcpu))
        perform_now(self.vm.interrupts.start_pit())

    def _idle(self) -> bool:
        """Somebody sleeps in KVM_RUN, and nobody runs or has been woken and does not know it yet."""
        inside = [vcpu for vcpu in self.vm.vcpus.values() if vcpu.watched.inside]
        return bool(inside) and all(vcpu.task.sleeping for vcpu in inside)

    def _traced(self, event: Tracepoint, vcpu: int | None, fields: Fields) -> None:
        """Report an event; a vCPU that goes to sleep may leave nothing to wait for but a timer of a virtual clock."""
        self.trace(event, vcpu, fields)
        if event is VCPU_STATE and isinstance(self.clock, VirtualClock):
            self.clock.look()

    # -- the VM's life -----------------------------------------------------------------------------------

    @ioctl("KVM_CHECK_EXTENSION", fd=Fd.VM, takes=lambda argument: (argument.number,), gives=int)
    async def check_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION of this VM: 0 for what there is not."""
        return check_extension(capability)

    @ioctl("KVM_CREATE_VCPU", durable=True, recorded=True, takes=lambda argument: (argument.number,))
    async def create_vcpu(self, vcpu_id: int, program: object = None) -> dict[str, Any]:
        """KVM_CREATE_VCPU, with a script guest's program if given; returns the vCPU's shape."""
        steps = None if program is None else self._compile(program)
        self.admit_vcpu()
        vcpu = await self.by_thread(partial(self.vm.create_vcpu, vcpu_id))
        if steps is not None:
            self._script(vcpu).load_program(steps, program)
        self.log.emit(self.id, Tracepoint.KVM_CREATE_VCPU, vcpu_id, {"mp_state": vcpu.arch.mp_state.name})
        return self.describe_vcpu(vcpu_id)

    async def destroy(self) -> None:
        """End the VM: parked runs answer EIO, waiting ioctls too, threads stop, memory is given back."""
        if self._dead:
            return
        core = self.vm.destroy()
        await perform(core, self.choose)
        self.end()
        self.clock.close()
        for thread in self.threads.values():
            thread.kill()
        for run in tuple(self.runs):
            run.destroyed()
        ending: list[asyncio.Future[Any]] = [
            *(run.task for run in self.runs),
            *(thread.task for thread in self.threads.values()),
        ]
        if ending:
            await asyncio.wait(ending)
        await self._close()

    async def _close(self) -> None:
        """Give back what the VM had: engines first, then the memory that they used."""
        for vcpu in self.vm.vcpus.values():
            vcpu.guest.close()
        await self.give_memory_back()

    # -- kick and resume ---------------------------------------------------------------------------------

    @ioctl("KVM_KICK_ALL_RUNNING_VCPUS", durable=True, recorded=True)
    async def kick(self, timeout_ms: int | None = None) -> dict[str, Any]:
        """KVM_KICK_ALL_RUNNING_VCPUS; errors as ``Window.kick``."""
        return await self.window.kick(timeout_ms)

    @ioctl("KVM_RESUME_ALL_KICKED_VCPUS", durable=True, recorded=True)
    async def resume(self) -> dict[str, Any]:
        """KVM_RESUME_ALL_KICKED_VCPUS; lets well-behaved userspace go on."""
        return await self.window.resume()

    # -- observers ---------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """The VM's shape; reads state, takes nothing."""
        shape = self.shape()
        return shape | {name: list(shape[name]) for name in ("vcpus", "memory_regions")}

    def shape(self) -> dict[str, Any]:
        """``describe`` with iterators for lists: of what there is now, tens of thousands of slots may take a while."""
        return {
            "id": self.id,
            "variant": self.variant,
            "engine": self.engine,
            "mode": self.mode,
            "irqchip": self.vm.irqchip,
            "switches": asdict(self.vm.switches),
            "kicked": bool(self.vm.variant.open_windows),
            "holds": self.vm.variant.open_windows,
            "vcpus": iter([self.describe_vcpu(vcpu_id) for vcpu_id in self.vm.vcpus]),
            "memory_regions": self.each_region(),
            "seq": self.log.seq,
            "epoch": self.log.epoch,
        }

    def locks(self) -> dict[str, Any]:
        """Who holds the variant's lock, who waits, in order and since when."""
        return views.locks(self.vm)
