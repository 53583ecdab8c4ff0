"""Server-side VMM threads: what a VMM does around KVM_RUN, well-behaved or careless.

``well`` waits, after EINTR, for one resume flag that the machine clears before KICK and sets after RESUME.
``careless`` calls KVM_RUN again at once, which is what the thread on the list feared. Either is one coroutine from
user mode into the kernel and back, as a host thread is, and needs nothing of asyncio but its turns.
"""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, Any

from app.core.atomics import PREEMPT, Shared, blocked, preempt
from app.core.errors import KvmError
from app.core.guest import HltExit, InternalErrorExit, ShutdownExit, UserExit
from app.core.run_page import PageWrites, RunResult
from app.core.vcpu import ACCESSES, Vcpu
from app.runtime.tasks import perform_now
from app.runtime.threads import HostThread

if TYPE_CHECKING:
    from app.runtime.machine import Machine

LEFT_WITHOUT_EXIT = (errno.EINTR, errno.EAGAIN)
FLOATING_BUS = 0xFF  # what a read returns where no device answers


class Flag(Shared):
    """Something that threads wait for in user mode, set until it is cleared."""

    __slots__ = ("is_set",)
    FIELDS = ("is_set",)

    def __init__(self, *, is_set: bool = False) -> None:
        super().__init__()
        self.is_set = is_set

    def set(self) -> None:
        """Let everybody who waits go on."""
        self.is_set = True
        self.changed()

    def clear(self) -> None:
        """Whoever waits from now on has to wait."""
        self.is_set = False


class VmmThread:
    """A loop of KVM_RUN on one vCPU, until ``stop`` or an exit that ends the guest."""

    def __init__(self, machine: Machine, vcpu: Vcpu, behaviour: str, *, handle_exits: bool, held: bool = False) -> None:
        self.machine = machine
        self.vcpu = vcpu
        self.behaviour = behaviour
        self.handle_exits = handle_exits
        self.held = held  # it begins by waiting for the resume flag, as after a restart
        self.ended: str | None = None  # why it is not running any more
        self._spins_before = vcpu.watched.counters.spins
        self._stopping = False
        self._woken = Flag()
        self.task = HostThread(self._loop(), PREEMPT, machine.choose)

    @property
    def running(self) -> bool:
        """The thread has not ended."""
        return not self.task.done()

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
        for flag in (self._woken, self.machine.proceed):
            flag.changed_for(self)
        perform_now(self.vcpu.send_signal())
        await asyncio.wait({self.task})
        perform_now(self.vcpu.task.take_signal())

    def kill(self) -> None:
        """The VM is destroyed."""
        self.task.cancel()
        self.ended = self.ended or "killed"

    async def _loop(self) -> None:
        page: PageWrites | None = None
        try:
            if self.held:
                await self._wait(self.machine.proceed)
            while not self._stopping:
                result = await self.vcpu.run_from_userspace(page=page)
                page = await self._handle(result)
            self.ended = "stopped"
        except KvmError as error:
            self.ended = str(error)
        except _GuestEnded as end:
            self.ended = str(end)

    async def _handle(self, result: RunResult) -> PageWrites | None:
        """User mode: every way through it lets others run, once."""
        if result.errno in LEFT_WITHOUT_EXIT:
            await preempt()
            if self.behaviour == "well":
                await self._wait(self.machine.proceed)
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
