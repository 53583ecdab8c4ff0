"""Server-side VMM threads: what a VMM does around KVM_RUN, well-behaved or careless.

``well`` waits, after EINTR, for one resume flag that the machine clears before KICK and sets after RESUME.
``careless`` calls KVM_RUN again at once, which is what the thread on the list feared. Either is one coroutine from
user mode into the kernel and back, as a host thread is, and needs nothing of asyncio but its turns.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from typing import Any

from kickstand.core.atomics import blocked, preempt
from kickstand.core.errors import KvmError
from kickstand.core.kvm_main import AnyVcpu
from kickstand.core.run.exits import HltExit, InternalErrorExit, ShutdownExit, UserExit
from kickstand.core.run.run_page import PageWrites, RunResult
from kickstand.core.vcpu import ACCESSES
from kickstand.runtime.driver.tasks import perform, perform_now
from kickstand.runtime.vmm.flag import Flag

BEHAVIOURS = ("well", "careless")
LEFT_WITHOUT_EXIT = (errno.EINTR, errno.EAGAIN)
FLOATING_BUS = 0xFF  # what a read returns where no device answers


class VmmThread:
    """A loop of KVM_RUN on one vCPU, until ``stop`` or an exit that ends the guest."""

    def __init__(
        self,
        vcpu: AnyVcpu,
        behaviour: str,
        proceed: Flag,
        choose: Callable[[int], int],
        *,
        handle_exits: bool,
        held: bool = False,
    ) -> None:
        self.vcpu = vcpu
        self.behaviour = behaviour
        self.handle_exits = handle_exits
        self.held = held  # it begins by waiting for the resume flag, as after a restart
        self._ended: str | None = None
        self._spins_before = vcpu.watched.counters.spins
        self._stopping = False
        self._proceed = proceed
        self._choose = choose
        self._woken = Flag()
        self.task = asyncio.get_running_loop().create_task(self._perform(), name=vcpu.tid)

    @property
    def running(self) -> bool:
        """The thread has not ended."""
        return not self.task.done()

    @property
    def ended(self) -> str | None:
        """Why it is not running any more."""
        return "killed" if self.task.cancelled() else self._ended

    @property
    def spins(self) -> int:
        """How often KVM_RUN answered EINTR although the guest had not been entered since the last time."""
        return self.vcpu.watched.counters.spins - self._spins_before

    def wake(self) -> None:
        """Something happened that ends a HLT."""
        self._woken.set()

    async def stop(self) -> None:
        """Signal the thread out of KVM_RUN and wait for its end."""
        self._stopping = True
        for flag in (self._woken, self._proceed):
            flag.changed_for(self)
        perform_now(self.vcpu.send_signal())
        await asyncio.wait({self.task})
        perform_now(self.vcpu.task.take_signal())

    def kill(self) -> None:
        """The VM is destroyed."""
        self.task.cancel()

    async def _perform(self) -> None:
        await perform(self._loop(), self._choose, self.vcpu.tid)

    async def _loop(self) -> None:
        page: PageWrites | None = None
        try:
            if self.held:
                await self._wait(self._proceed)
            while not self._stopping:
                result = await self.vcpu.run_from_userspace(page=page)
                page = await self._handle(result)
            self._ended = "stopped"
        except KvmError as error:
            self._ended = str(error)
        except _GuestEnded as end:
            self._ended = str(end)

    async def _handle(self, result: RunResult) -> PageWrites | None:
        """User mode: every way through it lets others run, once."""
        if result.errno in LEFT_WITHOUT_EXIT:
            await preempt()
            if self.behaviour == "well":
                await self._wait(self._proceed)
            return None
        if result.errno is not None:
            raise _GuestEnded(f"KVM_RUN answered {errno.errorcode[result.errno]}")
        assert result.exit is not None
        if not self.handle_exits:
            raise _GuestEnded(result.exit_reason.kernel_name)
        return await self._answer(result.exit)

    async def _answer(self, exit: UserExit) -> PageWrites | None:
        if isinstance(exit, ACCESSES):
            await preempt()
            return PageWrites(reply=bytes([FLOATING_BUS]) * exit.reply_length) if exit.reply_length else None
        if isinstance(exit, ShutdownExit | InternalErrorExit):
            raise _GuestEnded(exit.reason.kernel_name)
        if isinstance(exit, HltExit):
            self._woken.clear()
            await self._wait(self._woken)
        else:
            await preempt()
        return None

    async def _wait(self, flag: Flag) -> None:
        """Wait in user mode, until ``stop`` at the latest."""
        while not (flag.is_set or self._stopping):
            await blocked(flag, key=self)


class _GuestEnded(Exception):
    """The guest cannot go on."""


class Threads(dict[int, VmmThread]):
    """The VMM threads of one machine by their vCPUs; well-behaved ones wait for ``proceed``."""

    def __init__(self, choose: Callable[[int], int], proceed: Flag) -> None:
        super().__init__()
        self._choose = choose
        self._proceed = proceed

    def start(self, vcpu: AnyVcpu, behaviour: str, *, handle_exits: bool, held: bool = False) -> None:
        """Start a thread. EBUSY if the vCPU's is running; EINVAL for an unknown behaviour."""
        if behaviour not in BEHAVIOURS:
            raise KvmError(
                errno.EINVAL, "start", f"{behaviour!r} is none of {', '.join(BEHAVIOURS)}", field="behaviour"
            )
        running = self.get(vcpu.id)
        if running is not None and running.running:
            raise KvmError(errno.EBUSY, "start", f"vcpu {vcpu.id} has a thread already")
        self[vcpu.id] = VmmThread(vcpu, behaviour, self._proceed, self._choose, handle_exits=handle_exits, held=held)

    async def stop(self, vcpu_id: int) -> None:
        """Stop the vCPU's thread by a signal and wait for it; nothing happens without one."""
        thread = self.pop(vcpu_id, None)
        if thread is not None:
            await thread.stop()

    def wake(self) -> None:
        """Something happened that ends a HLT."""
        for thread in self.values():
            thread.wake()


def describe(thread: VmmThread | None) -> dict[str, Any] | None:
    """The ``thread`` member of a vCPU's shape."""
    if thread is None:
        return None
    return {
        "behaviour": thread.behaviour,
        "spins": thread.spins,
        "handle_exits": thread.handle_exits,
        "running": thread.running,
        "ended": thread.ended,
    }
