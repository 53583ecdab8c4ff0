"""KVM_RUN for a program: its memory is looked after, the vCPU enters, and its thread waits for a guest or a signal."""

from __future__ import annotations

import asyncio
import errno
import traceback
from collections.abc import Callable

from kickstand.core.errors import KvmError
from kickstand.core.run.run_page import Cause, RunResult
from kickstand.exec.device.objects import AddressSpace, ProgramVcpu
from kickstand.exec.device.signals import Signals, Waiting
from kickstand.exec.host.notify import Listener, Notification
from kickstand.exec.host.tracee import TraceeError, standing_still, threads
from kickstand.exec.memory.conversion import Conversion
from kickstand.exec.memory.sharing import Private
from kickstand.exec.options import Options
from kickstand.exec.summary import Summary
from kickstand.runtime.driver.tasks import perform_now, start

_Then = Callable[[Notification, ProgramVcpu], None]


class Running:
    """All KVM_RUNs of a program."""

    def __init__(self, listener: Listener, signals: Signals, options: Options, summary: Summary) -> None:
        self._listener = listener
        self._signals = signals
        self._options = options
        self._summary = summary

    def run(self, call: Notification, vcpu: ProgramVcpu) -> None:
        """Answer KVM_RUN, now or when it has left."""
        protection = vcpu.vm.protection
        if protection.concerns(call.tid):
            closed = start(protection.run_begins(call.tid))
            if not closed.done():
                closed.add_done_callback(lambda _: self._look_and_enter(call, vcpu))
                return
        self._look_and_enter(call, vcpu)

    def _look_and_enter(self, call: Notification, vcpu: ProgramVcpu) -> None:
        space = vcpu.vm.space
        private = space.memory.look(space.ranges)
        if private:
            start(self._share(call, vcpu, private, self._enter))
        else:
            self._enter(call, vcpu)

    def _enter(self, call: Notification, vcpu: ProgramVcpu) -> None:
        vcpu.run_delay.begin(call.tid)
        vcpu.vm.space.memory.copies.synchronize()
        written = {} if vcpu.vm.trace is None else vcpu.traced_entry(vcpu.vm.trace)
        closed = bool(vcpu.vm.machine.window.count)
        run = vcpu.vm.machine.start_run(vcpu.id, timeout_ms=None, **written)
        if run.task.done():
            self._ran(call, vcpu, run.task, closed=closed)
            return
        vcpu.inside += 1
        leave, go = (lambda: run.signal(Cause.SIGNAL)), (lambda: run.signal(Cause.CLIENT_DISCONNECT))
        self._signals.add(Waiting(call.tid, vcpu.mask, leave, go))
        run.task.add_done_callback(lambda done: self._left(call, vcpu, done))

    def _left(self, call: Notification, vcpu: ProgramVcpu, done: asyncio.Future[RunResult]) -> None:
        vcpu.inside -= 1
        self._signals.remove(call.tid)
        try:
            self._ran(call, vcpu, done)
        except (KvmError, OSError) as error:
            self._listener.answer(call, -1, error.errno or errno.EIO)
        finally:
            vcpu.end_if_unused()

    def _ran(
        self, call: Notification, vcpu: ProgramVcpu, done: asyncio.Future[RunResult], *, closed: bool = False
    ) -> None:
        error = None if done.cancelled() else done.exception()
        if error is not None:
            self._listener.answer(call, -1, _errno_of(error))
            return
        result = None if done.cancelled() else done.result()
        failed = errno.EINTR if result is None else result.errno or 0
        if failed == errno.EFAULT and self._found(call, vcpu):
            return
        kicked = result is not None and result.cause is Cause.USERSPACE_KICK
        hidden = kicked and vcpu.vm.protection.hides_kicks
        if hidden or (result is not None and vcpu.vm.eventfds.taken(result.exit)):
            self._go_on(call, vcpu)
            return
        vcpu.vm.space.memory.copies.synchronize()
        if vcpu.vm.trace is not None and not vcpu.vm.busy:
            vcpu.vm.trace.left()
        vcpu.page.save(vcpu.core.guest, irqchip=vcpu.vm.machine.vm.irqchip)
        vcpu.stats.refresh()
        if kicked:
            self._summary.kicked(closed=closed)
        self._summary.left(vcpu.page.exit_reason.kernel_name, failed)
        self._listener.answer(call, -1 if failed else 0, failed)

    def _found(self, call: Notification, vcpu: ProgramVcpu) -> bool:
        """A guest met a slot with nothing behind it. If the program has mapped something since, the vCPU goes on."""
        space = vcpu.vm.space
        private, changed = space.memory.look_again(space.ranges)
        if private:
            start(self._share(call, vcpu, private, self._go_on))
        elif changed:
            self._go_on(call, vcpu)
        return changed

    def _go_on(self, call: Notification, vcpu: ProgramVcpu) -> None:
        """KVM_RUN does not end: the vCPU enters again, in the loop's next turn, unless a signal is pending."""
        vcpu.inside += 1
        asyncio.get_running_loop().call_soon(self._enter_again, call, vcpu)

    def _enter_again(self, call: Notification, vcpu: ProgramVcpu) -> None:
        vcpu.inside -= 1
        waiting = Waiting(call.tid, vcpu.mask, _ignore, _ignore)
        interrupted = waiting.look()
        waiting.close()
        try:
            if interrupted:
                perform_now(vcpu.page.interrupted())
                self._listener.answer(call, -1, errno.EINTR)
            else:
                self._enter(call, vcpu)
        except (KvmError, OSError) as error:
            self._listener.answer(call, -1, error.errno or errno.EIO)
        finally:
            vcpu.end_if_unused()

    async def _share(self, call: Notification, vcpu: ProgramVcpu, private: list[Private], go_on: _Then) -> None:
        """Make private memory the guest's too; the program issues the call again then. If that cannot be, copy it."""
        space = vcpu.vm.space
        try:
            if space.sharing.locked():  # a guest of another vCPU has met a slot that is being shared
                await self._until_shared(vcpu)
                private, _ = space.memory.look_again(space.ranges)
            if private and self._options.share:
                async with space.sharing:
                    if await self._convert(call, space, private):
                        return
            if private:
                size = space.memory.copy(private)
                self._summary.trouble(
                    f"{size >> 10} KiB are copied before and after every KVM_RUN; "
                    "of two stores to a page one may be lost"
                )
            go_on(call, vcpu)
        except Exception as error:  # noqa: BLE001  nobody else would hear of it
            # A program that is killed meanwhile has no memory any more, and nobody to answer to.
            self._listener.answer(call, -1, _errno_of(error) if space.process.alive else errno.ESRCH)
        finally:
            vcpu.end_if_unused()

    async def _until_shared(self, vcpu: ProgramVcpu) -> None:
        vcpu.inside += 1
        try:
            while vcpu.vm.space.sharing.locked():
                async with vcpu.vm.space.sharing:
                    pass
        finally:
            vcpu.inside -= 1

    async def _convert(self, call: Notification, space: AddressSpace, private: list[Private]) -> bool:
        """Share private memory in place. False if that cannot be; the call has not been answered then."""
        conversion, answered = Conversion(space.memory, private), False

        def leave_kernel() -> None:
            nonlocal answered
            conversion.give(lambda descriptor: self._listener.give(call, descriptor, cloexec=True, answer=False))
            answered = self._listener.answer(call)

        tgid = space.process.tgid
        try:
            with (
                standing_still(tgid, call.tid, self._listener.held, leave_kernel) as caller,
                # Those that wait for an answer need not be stopped, if they do not get it.
                self._listener.keeping(self._listener.held.intersection(threads(tgid))),
            ):
                try:
                    await conversion.perform(caller)
                finally:
                    caller.call_again()
                    self._summary.again("KVM_RUN")
        except (TraceeError, OSError) as error:
            if space.process.alive:
                self._summary.trouble(f"memory could not be shared: {error}")
                self._options.share = False
        return answered


def _ignore() -> None:
    """Whether there was anything is the question."""


def _errno_of(error: BaseException) -> int:
    if isinstance(error, KvmError):
        return error.errno
    traceback.print_exception(error)
    return errno.EIO
