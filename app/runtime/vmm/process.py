"""The VMM process of one VM: its threads call ioctls, and everything that they have begun ends with the VM."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any, TypeVar

from kickstand.core.atomics import Effect, Task
from kickstand.core.errors import KvmError
from kickstand.core.kvm_main import AnyVcpu
from kickstand.core.trace import Tracer, VcpuState
from kickstand.core.vm import Vm
from kickstand.guests.x86.time_sharing.slices import rotation
from kickstand.runtime.calls.durable import Journal
from kickstand.runtime.calls.history import History
from kickstand.runtime.calls.ioctl import Ioctls
from kickstand.runtime.driver.tasks import Performance
from kickstand.runtime.events import EventLog

T = TypeVar("T")
KICKER = "kicker"  # the role of a thread that calls KICK


class Process(Ioctls):
    """What every ioctl of a machine has around it: a thread, the event log, the history, the journal if there is one.

    The parts of a machine take this much of it. ``seed`` decides the choices of its guests.
    """

    vm: Vm

    def __init__(self, vm_id: str, seed: int, log: EventLog) -> None:
        self.id = vm_id
        self.seed = seed
        self.log = log
        self.trace: Tracer = log.tracer(vm_id)
        self.history = History()
        self.journal: Journal[Any] | None = None
        self.admit_run: Callable[[], None] = _admit  # refuses one run more than the server parks
        self.admit_vcpu: Callable[[], None] = _admit
        self._calls: set[Performance[Any]] = set()
        self._dead = False
        self._tids = count(1)
        self._random = random.Random(seed)

    def thread(self, role: str = "vmm") -> Task:
        """A host thread of this VM's VMM, for one call."""
        return Task(f"{self.id}/{role}#{next(self._tids)}", f"{self.id}/vmm")

    def tid_of(self, vcpu: AnyVcpu) -> str:
        """A name for one call of KVM_RUN among those on the same vCPU."""
        return f"{vcpu.tid}#{next(self._tids)}"

    def choose(self, alternatives: int) -> int:
        """Decide a choice of the guest from the VM's seed."""
        return self._random.randrange(alternatives)

    def guest_time(self) -> asyncio.Future[None] | None:
        """Done when guests that run have had a slice, as real CPUs have between two ioctls; None if none runs."""
        running = any(vcpu.watched.state is VcpuState.GUEST for vcpu in self.vm.vcpus.values())
        return rotation().after_all() if running else None

    async def by_thread(
        self, begin: Callable[[Task], Coroutine[Effect, Any, T]], timeout_ms: int | None = None, role: str = "vmm"
    ) -> T:
        """``call`` what ``begin`` makes for a thread of this call's own."""
        thread = self.thread(role)
        return await self.call(begin(thread), timeout_ms, thread.tid)

    async def call(self, core: Coroutine[Effect, Any, T], timeout_ms: int | None = None, who: str = "") -> T:
        """Perform one ioctl for the caller. EIO if the VM is destroyed meanwhile; ``TimeoutError`` after so long.

        Cancellation gives back everything the ioctl holds or waits for.
        """
        if self._dead:
            core.close()
            raise self.gone("ioctl")
        performance = Performance(core, self.choose, who)
        timer = None
        if timeout_ms is not None:
            timer = asyncio.get_running_loop().call_later(timeout_ms / 1000, performance.give_up, TimeoutError())
        self._calls.add(performance)
        try:
            return await performance.to_end()
        finally:
            self._calls.discard(performance)
            if timer is not None:
                timer.cancel()

    @property
    def dead(self) -> bool:
        """The VM is destroyed."""
        return self._dead

    def gone(self, ioctl: str) -> KvmError:
        """EIO: what an ioctl of a destroyed VM answers."""
        return KvmError(errno.EIO, ioctl, f"virtual machine {self.id} is destroyed")

    def end(self) -> None:
        """The VM is destroyed: calls that wait answer EIO, and so do those to come."""
        self._dead = True
        for call in tuple(self._calls):
            call.give_up(self.gone("ioctl"))

    def vcpu(self, vcpu_id: int) -> AnyVcpu:
        """Return one vCPU. ENOENT if there is none."""
        found = self.vm.vcpus.get(vcpu_id)
        if found is None:
            raise KvmError(errno.ENOENT, "vcpu", f"virtual machine {self.id} has no vcpu {vcpu_id}", field="vcpu")
        return found


def _admit() -> None:
    """Refuse nothing."""
