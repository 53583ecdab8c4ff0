"""One KVM_RUN on the event loop: a task that a signal, a timeout or a departed client can ask to leave."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Coroutine, Iterator
from typing import Any

from kickstand.core.atomics import Effect
from kickstand.core.kvm_main import AnyVcpu
from kickstand.core.run.run_page import Cause, PageWrites, RunResult
from kickstand.runtime.calls.durable import committed, note
from kickstand.runtime.driver.tasks import perform, perform_now, start
from kickstand.runtime.observed import views
from kickstand.runtime.vmm.process import Process
from kickstand.runtime.windows.window import Window

DEFAULT_RUN_MS = 30_000


class Run:
    """A KVM_RUN under way, as if on a host thread of its own.

    ``task`` is done at once if KVM_RUN never had to wait, else an ``asyncio.Task`` with the vCPU's name. It leaves by
    the ordinary path only: ``signal`` makes a signal pending, and KVM_RUN answers EINTR at its next check point. A run
    that still waits for the vcpu mutex is not inside yet and simply gives up, as one whose task is cancelled.
    """

    def __init__(self, runs: Runs, vcpu: AnyVcpu, page: PageWrites | None, timeout_ms: int | None) -> None:
        self.vcpu = vcpu
        self.tid = runs.process.tid_of(vcpu)
        self._runs = runs
        self._sent: Cause | None = None
        self._started = time.monotonic_ns()
        self._timer: asyncio.TimerHandle | None = None
        self.task: asyncio.Future[RunResult] = asyncio.get_running_loop().create_future()  # to those who look before
        runs.began(self)
        self.task = start(self._perform(vcpu.run_from_userspace(self.tid, page)), vcpu.tid)
        if timeout_ms is not None and not self.task.done():
            self._timer = self.task.get_loop().call_later(timeout_ms / 1000, self.signal, Cause.POLL_TIMEOUT)

    async def _perform(self, core: Coroutine[Effect, Any, RunResult]) -> RunResult:
        history = self._runs.process.history
        try:
            result = await perform(core, self._runs.process.choose, self.vcpu.tid)
        except asyncio.CancelledError:
            history.note_given_up(self)
            raise
        except Exception as error:
            history.note_end(self, None, error)
            asyncio.get_running_loop().call_soon(self._ask)
            raise
        finally:
            self._over()
        history.note_end(self, result, None)
        return result

    def _ask(self) -> None:
        """A client that has gone does not ask for its answer, which is an error here."""
        if self.task.done() and not self.task.cancelled():
            self.task.exception()

    def _over(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._runs.under_way.discard(self)
        if self._sent is not None and self.vcpu.mutex.owner is None:
            perform_now(self.vcpu.task.take_signal())  # it was for this run, which is over

    @property
    def sent(self) -> Cause | None:
        """Why ``signal`` asked the run to leave, if it did."""
        return self._sent

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
        process, window = self._runs.process, self._runs.window
        await committed(process, self.vcpu.id)
        cause = self._sent if result.cause is Cause.SIGNAL and self._sent is not None else result.cause
        kick_id = window.kick_id if cause is Cause.USERSPACE_KICK else None
        return views.run_result(result, cause, kick_id, time.monotonic_ns() - self._started, process.log.seq)

    def _given_up(self) -> RunResult:
        if self._runs.process.vm.lifetime.dead:
            raise self._runs.process.gone("KVM_RUN")
        return RunResult(-1, errno.EINTR, self.vcpu.run_page.exit_reason, None, Cause.SIGNAL)


class Runs:
    """The KVM_RUNs of one machine's clients that are under way."""

    def __init__(self, process: Process, window: Window) -> None:
        self.process = process
        self.window = window
        self.under_way: set[Run] = set()
        self.started: dict[int, Run] = {}  # by scripts, which may finish them in a later one

    def __iter__(self) -> Iterator[Run]:
        return iter(tuple(self.under_way))

    def __len__(self) -> int:
        return len(self.under_way)

    def begin(self, vcpu: AnyVcpu, page: PageWrites | None, timeout_ms: int | None) -> Run:
        """Begin KVM_RUN on a thread of its own; ``page`` is what the VMM writes into the shared page first."""
        return Run(self, vcpu, page, timeout_ms)

    def began(self, run: Run) -> None:
        """A run is about to enter."""
        self.under_way.add(run)
        if self.process.vm.memslots.dirty:
            note(self.process)  # if this process is killed now, what the guest writes will not be known
