"""One KVM_RUN on the event loop: a task that a signal, a timeout or a departed client can ask to leave."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from app.core.errors import KvmError
from app.core.run_page import Cause, PageWrites, RunResult
from app.core.vcpu import Vcpu
from app.runtime import views
from app.runtime.tasks import begin, perform_now
from app.runtime.threads import HostThread

if TYPE_CHECKING:
    from app.core.atomics import Effect
    from app.runtime.machine import Machine


class Run:
    """A KVM_RUN under way, as if on a host thread of its own.

    It leaves by the ordinary path only: ``signal`` makes a signal pending, and KVM_RUN answers EINTR at its
    next check point. A run that still waits for the vcpu mutex is not inside yet and simply gives up.
    """

    def __init__(self, machine: Machine, vcpu: Vcpu, tid: str, page: PageWrites | None, timeout_ms: int | None) -> None:
        self.machine = machine
        self.vcpu = vcpu
        self.tid = tid
        self._sent: Cause | None = None
        self._started = time.monotonic_ns()
        self._timer: asyncio.TimerHandle | None = None
        self.task: asyncio.Future[RunResult] = asyncio.get_running_loop().create_future()
        machine.runs.add(self)
        if machine.journal is not None and machine.vm.memslots.dirty:
            machine.journal.note(machine)  # if this process is killed now, what the guest writes will not be known
        self._begin(vcpu.run_from_userspace(tid, page), timeout_ms)

    def _begin(self, core: Coroutine[Effect, Any, RunResult], timeout_ms: int | None) -> None:
        """Run as far as it goes without waiting; a thread takes over what is left, if anything is."""
        try:
            begun = begin(core, self.machine.choose)
        except StopIteration as stop:
            self.task.set_result(stop.value)
        except KvmError as error:
            self.task.set_exception(error)
            self.task.exception()  # whether anybody asks for it or not
        else:
            if timeout_ms is not None:
                self._timer = self.task.get_loop().call_later(timeout_ms / 1000, self.signal, Cause.POLL_TIMEOUT)
            self.task = HostThread(core, begun, self.machine.choose, self.machine.history.note_end)
            self.task.add_done_callback(self._done)
            return
        self.machine.runs.discard(self)

    @property
    def sent(self) -> Cause | None:
        """Why ``signal`` asked the run to leave, if it did."""
        return self._sent

    def _done(self, task: asyncio.Future[RunResult]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.machine.runs.discard(self)
        if self._sent is not None and self.vcpu.mutex.owner is None:
            perform_now(self.vcpu.task.take_signal())  # it was for this run, which is over
        if not task.cancelled():
            task.exception()  # a client that has gone does not ask for the answer

    def signal(self, cause: Cause) -> None:
        """Ask the run to leave, and say why in its answer; returns at once."""
        if self.task.done() or self._sent is not None:
            return
        self._sent = cause
        if self.vcpu.mutex.owner == self.tid:
            perform_now(self.vcpu.send_signal())
        else:
            self.task.cancel()

    def destroyed(self) -> None:
        """The VM is dead: a run that sleeps in a queue gives up with EIO; one that is inside sees VM_DEAD."""
        self._sent = None
        self.task.cancel()

    async def result(self) -> dict[str, Any]:
        """The answer, once KVM_RUN has left. EIO if the VM was destroyed; cancelled, the client has departed."""
        try:
            if not self.task.done():
                await asyncio.wait({self.task})
        except asyncio.CancelledError:
            self.signal(Cause.CLIENT_DISCONNECT)
            raise
        result = self._given_up() if self.task.cancelled() else self.task.result()
        await self.machine.committed(self.vcpu.id)
        cause = self._sent if result.cause is Cause.SIGNAL and self._sent is not None else result.cause
        kick_id = self.machine.kick_id if cause is Cause.USERSPACE_KICK else None
        return views.run_result(result, cause, kick_id, time.monotonic_ns() - self._started, self.machine.log.seq)

    def _given_up(self) -> RunResult:
        if self._sent is None:
            raise KvmError(errno.EIO, "KVM_RUN", f"virtual machine {self.machine.id} is destroyed")
        return RunResult(-1, errno.EINTR, self.vcpu.run_page.exit_reason, None, Cause.SIGNAL)
