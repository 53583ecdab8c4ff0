"""One vCPU, and KVM_RUN from the ioctl to the guest and back.

Function names and order are the kernel's (``kvm_main.c``, ``x86.c`` of v6.1); a step's result ``r`` is too:
1 go round again, 0 leave to userspace with the exit in ``kvm_run``, negative leave with that errno.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, TypeVar, get_args

from app.core.arch import VcpuArch
from app.core.atomics import Killed, Mutex, Task, preempt
from app.core.errors import KvmError
from app.core.guest import (
    Exit,
    FaultExit,
    Guest,
    HltExit,
    InterruptedExit,
    IoExit,
    MmioExit,
    RetryExit,
    ShutdownExit,
    UserExit,
)
from app.core.requests import IN_GUEST_MODE, KVM_REQ_UNBLOCK, Request, RequestBits, VcpuMode
from app.core.run_page import KICKED, Cause, KvmRun, PageWrites, RunResult
from app.core.trace import (
    BLOCKED,
    EXITING,
    GUEST,
    HALTED,
    KERNEL,
    KVM_ENTRY,
    KVM_EXIT,
    KVM_KICK,
    KVM_MMIO,
    KVM_PIO,
    KVM_USERSPACE_EXIT,
    NO_FIELDS,
    STATE_CHANGES,
    USER,
    VCPU_STATE,
    Event,
    Fields,
    VcpuState,
)
from app.core.uapi import ExitReason, MpState
from app.core.watched import Watched

if TYPE_CHECKING:
    from app.core.vm import Vm

T = TypeVar("T")
AGAIN, EXIT = 1, 0
ACCESSES = (IoExit, MmioExit)  # exits that userspace completes
EXIT_FIELDS: dict[type[Exit], Fields] = {
    kind: {"exit_reason": kind.__name__.removesuffix("Exit").lower()} for kind in get_args(Exit)
}
MP_RUNNABLE, MP_UNINITIALIZED, MP_HALTED = MpState.RUNNABLE, MpState.UNINITIALIZED, MpState.HALTED
SENT: Fields = {"ipi": True}
SLEPT: Fields = {"waited": True, "valid": True}
VECTORS = 256
SETTABLE_MP_STATES = (
    MpState.RUNNABLE,
    MpState.UNINITIALIZED,
    MpState.INIT_RECEIVED,
    MpState.HALTED,
    MpState.SIPI_RECEIVED,
    MpState.AP_RESET_HOLD,
)


class Vcpu:
    """``struct kvm_vcpu``. Its thread calls ``run``; other threads reach it through requests and wake-ups."""

    def __init__(self, vm: Vm, vcpu_id: int, mp_state: MpState) -> None:
        share = vm.share
        self.vm = vm
        self.id = vcpu_id
        self.tid = f"{vm.id}/cpu{vcpu_id}"
        self.task: Task = share(Task(self.tid))
        self.mutex: Mutex = share(Mutex())
        self.requests: RequestBits = share(RequestBits())
        self.mode: VcpuMode = share(VcpuMode())
        self.arch: VcpuArch = share(VcpuArch(mp_state))
        self.run_page: KvmRun = share(KvmRun())
        self.watched = Watched()
        self.guest: Guest = vm.make_guest(self)

    # -- the ioctl ---------------------------------------------------------------------------------------

    async def run_from_userspace(self, tid: str | None = None, page: PageWrites | None = None) -> RunResult:
        """KVM_RUN as a VMM calls it: with what the variant does in userspace before and after.

        ``page`` is what the VMM writes into the shared page first. Result, errors and cancellation as ``run``.
        """
        half = self.vm.variant if self.vm.variant.has_userspace_half else None
        if half and not await half.ioctl_begin(self.task, self):
            await self.task.take_signal()
            exit_reason, _ = await self.run_page.read()
            return RunResult(-1, errno.EINTR, exit_reason, None, Cause.SIGNAL)
        try:
            result = await self.run(tid, page)
        finally:
            if half:
                await half.ioctl_end(self.task, self)
        if result.errno == errno.EINTR:
            await self.task.take_signal()  # its handler runs on the way back to user mode
            if half:
                await half.eintr(self)
        return result

    async def run(self, tid: str | None = None, page: PageWrites | None = None) -> RunResult:
        """KVM_RUN on behalf of thread ``tid`` (the vCPU's own by default): until the vCPU leaves it.

        Answers 0 with an exit, or EINTR (kick, signal, immediate_exit), EAGAIN (a parked AP was poked),
        EFAULT (slot without host memory). Raises ``KvmError`` EIO if the VM is dead. A killed thread gives
        back everything it holds. Source: ``kvm_vcpu_ioctl``.
        """
        owner = tid or self.tid
        if await self.vm.lifetime.is_dead():
            raise KvmError(errno.EIO, "KVM_RUN", f"virtual machine {self.vm.id} is dead")
        if not await self.mutex.lock_or_queue(owner):
            await self.mutex.wait(owner)
        try:
            self.watched.cause = None
            self.watched.counters.runs += 1
            if page is not None:
                await self.run_page.write(page)
            r = await self.run_under_read_side()
            exit_reason, exit = await self.run_page.read()
            return self.leave_to_user(r, exit_reason, exit)
        finally:
            if page is not None and page.immediate_exit is not None:
                await self.run_page.set_immediate_exit(False)
            self.show(USER)
            await self.mutex.unlock()

    async def run_under_read_side(self) -> int:
        """KVM_RUN between the variant's lock and unlock (in the patch: ``down_read``, ``up_read``)."""
        held = await self.vm.variant.run_begin(self)
        if held is None:
            return self.interrupted_by(Cause.SIGNAL)
        try:
            self.show(KERNEL)
            return await self.kvm_arch_vcpu_ioctl_run()
        except Killed:
            await self.mode.leave()
            await self.task.set_running()
            raise
        finally:
            await self.arch.srcu_read_unlock(self.vm.srcu)
            await self.vm.variant.run_end(self, held)

    async def kvm_arch_vcpu_ioctl_run(self) -> int:
        """Everything before the loop: a parked AP, the access left from last time, ``immediate_exit``."""
        await self.arch.srcu_read_lock(self.vm.srcu)
        mp_state = await self.arch.get_mp_state()
        if mp_state is MP_UNINITIALIZED:
            return await self.wait_for_init()
        if await self.vm.variant.completion_test(self):
            return self.interrupted_by(KICKED)
        pending = await self.arch.take_completion()
        if pending is not None:
            r = await self.complete_userspace_io(pending)
            if r <= EXIT:
                return r
        if await self.run_page.wants_immediate_exit():
            return self.interrupted_by(Cause.IMMEDIATE_EXIT)
        return await self.vcpu_run()

    async def wait_for_init(self) -> int:
        """An AP that was never started sleeps here and never enters the guest in this call."""
        if await self.run_page.wants_immediate_exit():
            return self.interrupted_by(Cause.IMMEDIATE_EXIT)
        await self.arch.srcu_read_unlock(self.vm.srcu)
        await self.kvm_vcpu_block()
        await self.arch.srcu_read_lock(self.vm.srcu)
        if await self.requests.test(Request.VM_DEAD):
            return -errno.EIO
        await self.accept_init_sipi()
        if await self.task.signal_pending():
            return await self.exit_by_signal()
        return -errno.EAGAIN

    async def complete_userspace_io(self, pending: IoExit | MmioExit) -> int:
        """Finish the access userspace was asked to do; may touch guest memory or ask again (``r`` 0)."""
        reply = await self.run_page.take_reply()
        exit = await self.guest.complete(self, pending, reply)
        return AGAIN if exit is None else await self.handle_exit(exit)

    # -- the loop ----------------------------------------------------------------------------------------

    async def vcpu_run(self) -> int:
        """``vcpu_run``: enter the guest or sleep, again and again, until there is a reason to leave."""
        before_r = self.vm.variant.exit_test_site == "before_r"
        while True:
            runnable = await self.arch.get_mp_state() is MP_RUNNABLE
            r = await (self.vcpu_enter_guest() if runnable else self.vcpu_block())
            # The patch tests here, before r is looked at: an exit that is ready (r == 0) is lost.
            if before_r and await self.vm.variant.exit_test(self):
                return self.interrupted_by(KICKED)
            if r <= EXIT:
                return r
            if not before_r and await self.vm.variant.exit_test(self):
                return self.interrupted_by(KICKED)
            await self.requests.check(KVM_REQ_UNBLOCK)
            if await self.interrupt_window_open():
                return EXIT
            if await self.task.signal_pending():
                return await self.exit_by_signal()
            await preempt()

    async def vcpu_enter_guest(self) -> int:
        """``vcpu_enter_guest``: the last checks, then the guest, then its exit."""
        if await self.requests.pending():
            r = await self.service_requests()
            if r <= EXIT:
                return r
        _, nmi, interrupt = await self.arch.events()
        if nmi or interrupt:
            await self.inject_events(nmi=nmi, interrupt=interrupt)
        # Order matters: the mode is visible before the requests are read again, so a kicker is either
        # seen here or sees IN_GUEST_MODE and sends the IPI.
        await self.mode.enter()
        await self.arch.srcu_read_unlock(self.vm.srcu)
        if await self.exit_request():
            await self.mode.leave()
            await self.arch.srcu_read_lock(self.vm.srcu)
            return AGAIN
        self.entered()
        exit = await self.guest.enter(self)
        self.show(EXITING if type(exit) is InterruptedExit else KERNEL)
        await self.mode.leave()
        await self.arch.srcu_read_lock(self.vm.srcu)
        return await self.handle_exit(exit)

    async def service_requests(self) -> int:
        """The block under ``kvm_request_pending``: kick first, as the patch has it, then the others."""
        if await self.vm.variant.entry_test(self):
            return self.interrupted_by(KICKED)
        if await self.requests.test(Request.VM_DEAD):
            return -errno.EIO
        await self.requests.check(Request.TLB_FLUSH)
        if await self.requests.check(Request.TRIPLE_FAULT):
            return await self.handle_exit(ShutdownExit())
        await self.requests.check(Request.NMI)
        if await self.requests.check(Request.EVENT):
            await self.accept_init_sipi()
            mp_state = await self.arch.get_mp_state()
            if mp_state is MpState.INIT_RECEIVED:
                return AGAIN
        return AGAIN

    async def exit_request(self) -> bool:
        """``kvm_vcpu_exit_request``: something came between the checks and IN_GUEST_MODE."""
        return bool(await self.requests.pending()) or await self.task.signal_pending()

    async def handle_exit(self, exit: Exit) -> int:
        """What an exit of the guest means: back into it (1), to userspace (0), or an errno."""
        self.vm.trace(KVM_EXIT, self.id, EXIT_FIELDS[type(exit)])
        if isinstance(exit, InterruptedExit):
            self.watched.counters.request_irq_exits += 1
            return AGAIN
        if isinstance(exit, ACCESSES):
            self._trace_access(exit)
            await self.arch.expect_completion(exit)
        elif isinstance(exit, RetryExit):
            self.watched.counters.faults_retried += 1
            return AGAIN
        elif isinstance(exit, FaultExit):
            return -errno.EFAULT
        elif isinstance(exit, HltExit) and self.vm.irqchip:
            await self.arch.set_mp_state(MP_HALTED)
            return AGAIN
        await self.run_page.fill(exit)
        return EXIT

    # -- sleeping ----------------------------------------------------------------------------------------

    async def vcpu_block(self) -> int:
        """``vcpu_block``: HALTED or waiting for SIPI. A vCPU woken without an event keeps its mp_state."""
        if not await self.has_events():
            await self.arch.srcu_read_unlock(self.vm.srcu)
            await self.kvm_vcpu_block()
            await self.arch.srcu_read_lock(self.vm.srcu)
            # KVM itself leaves a halted vCPU of a dead VM asleep until a signal comes; here it ends with EIO.
            if await self.requests.test(Request.VM_DEAD):
                return -errno.EIO
            if not await self.has_events():
                return AGAIN
        await self.accept_init_sipi()
        mp_state = await self.arch.get_mp_state()
        if mp_state is MP_HALTED:
            await self.arch.set_mp_state(MP_RUNNABLE)
        return AGAIN

    async def kvm_vcpu_block(self) -> None:
        """``kvm_vcpu_block``: sleep until ``check_block`` has a reason not to."""
        halted = await self.arch.get_mp_state() is MP_HALTED
        self.watched.counters.halts += halted
        self.show(HALTED if halted else BLOCKED)
        while True:
            await self.task.set_interruptible()
            if await self.check_block():
                break
            await self.task.schedule()
        await self.task.set_running()
        self.show(KERNEL)
        self.vm.trace(Event.KVM_VCPU_WAKEUP, self.id, SLEPT)

    async def check_block(self) -> bool:
        """``kvm_vcpu_check_block``: an event, a signal, an UNBLOCK, or (the patch) a kick ends the sleep."""
        if await self.has_events():
            return True
        if await self.task.signal_pending():
            return True
        if await self.requests.check(KVM_REQ_UNBLOCK):
            return True
        return await self.vm.variant.block_test(self)

    async def has_events(self) -> bool:
        """``kvm_vcpu_has_events``: INIT, a SIPI that is awaited, an NMI, an interrupt the guest would take."""
        starting, nmi, interrupt = await self.arch.events()
        return starting or nmi or (interrupt and self.guest.interrupts_allowed())

    # -- events ------------------------------------------------------------------------------------------

    async def inject_events(self, *, nmi: bool, interrupt: bool) -> None:
        """Hand pending events to the guest: an NMI, then the highest interrupt if the guest takes one now."""
        if nmi and await self.arch.take_nmi():
            self.guest.nmi()
        if interrupt and self.guest.interrupts_allowed():
            vector = await self.arch.take_vector()
            if vector is not None:
                self.guest.interrupt(vector)
                self.vm.trace(Event.KVM_INJ_VIRQ, self.id, {"vector": vector})

    async def accept_init_sipi(self) -> None:
        """INIT and SIPI change the mp_state; a SIPI also says where the guest starts."""
        vector = await self.arch.accept_init_sipi()
        if vector is not None:
            self.guest.start_at(vector)

    async def interrupt_window_open(self) -> bool:
        """Userspace without an in-kernel irqchip asked to be told when it can inject; now it can."""
        if self.vm.irqchip or not await self.run_page.wants_interrupt_window():
            return False
        exit = self.guest.window_exit()
        if exit is None:
            return False
        await self.run_page.fill(exit)
        return True

    async def with_mutex(self, body: Callable[[], T], tid: str) -> T:
        """Run ``body`` as a vCPU ioctl other than KVM_RUN: it waits until KVM_RUN has left (``vcpu->mutex``)."""
        await self.vm.check_alive("vcpu ioctl")
        await self.mutex.lock(tid)
        try:
            return body()
        finally:
            await self.mutex.unlock()

    async def set_mp_state(self, mp_state: MpState, tid: str) -> None:
        """KVM_SET_MP_STATE. EINVAL: a state x86 does not know, or any but RUNNABLE without an in-kernel irqchip."""
        if mp_state not in SETTABLE_MP_STATES or (mp_state is not MpState.RUNNABLE and not self.vm.irqchip):
            raise KvmError(errno.EINVAL, "KVM_SET_MP_STATE", f"{mp_state.name} cannot be set here", field="mp_state")
        await self.mutex.lock(tid)
        try:
            await self.arch.set_mp_state(mp_state)
            await self.requests.make(Request.EVENT)
        finally:
            await self.mutex.unlock()

    async def interrupt(self, vector: int, tid: str) -> None:
        """KVM_INTERRUPT. EINVAL: ``vector`` not below 256; ENXIO: the irqchip is in the kernel."""
        if not 0 <= vector < VECTORS:
            raise KvmError(errno.EINVAL, "KVM_INTERRUPT", f"vector {vector} is not below {VECTORS}", field="vector")
        if self.vm.irqchip:
            raise KvmError(errno.ENXIO, "KVM_INTERRUPT", "the interrupt controller is in the kernel")
        await self.with_mutex(lambda: self.guest.interrupt(vector), tid)

    async def inject_nmi(self, tid: str) -> None:
        """KVM_NMI."""
        await self.mutex.lock(tid)
        try:
            await self.arch.queue_nmi()
            await self.requests.make(Request.NMI)
        finally:
            await self.mutex.unlock()

    # -- other threads -----------------------------------------------------------------------------------

    async def wake_up(self) -> bool:
        """``kvm_vcpu_wake_up``: true only if the vCPU slept."""
        woke = await self.task.wake_up()
        self.watched.counters.halt_wakeups += woke
        return woke

    async def send_ipi(self) -> None:
        """Interrupt the CPU this vCPU runs on."""
        await self.mode.send_ipi()
        self.ipi_sent()

    def ipi_sent(self) -> None:
        """Report it; an engine on a thread of its own is told to stop."""
        self.vm.trace(KVM_KICK, self.id, SENT)
        self.guest.kick()

    async def kick(self) -> None:
        """``kvm_vcpu_kick``: wake it if it sleeps, else interrupt it if it is in guest mode; never waits."""
        if await self.wake_up():
            return
        if await self.mode.exiting() is IN_GUEST_MODE:
            await self.send_ipi()

    async def send_signal(self) -> None:
        """A signal to this vCPU's thread: it is pending, a sleep ends, a running guest is interrupted."""
        await self.task.send_signal()
        await self.send_ipi()

    # -- results -----------------------------------------------------------------------------------------

    async def exit_by_signal(self) -> int:
        """Leave KVM_RUN because a signal is pending: exit_reason INTR, unlike a kick."""
        await self.run_page.interrupted()
        self.watched.counters.signal_exits += 1
        return self.interrupted_by(Cause.SIGNAL)

    def interrupted_by(self, cause: Cause) -> int:
        """Note the cause for watchers; ``-EINTR``."""
        self.watched.cause = cause
        return -errno.EINTR

    def entered(self) -> None:
        """Count and report a guest entry."""
        watched = self.watched
        watched.counters.entries += 1
        watched.entered_since_eintr = True
        self.vm.trace(KVM_ENTRY, self.id, NO_FIELDS)
        self.show(GUEST)

    def show(self, state: VcpuState) -> None:
        """Report a change of the visible state."""
        watched = self.watched
        old = watched.state
        if state is not old:
            watched.state = state
            self.vm.trace(VCPU_STATE, self.id, STATE_CHANGES[old, state])

    def leave_to_user(self, r: int, exit_reason: ExitReason, exit: UserExit | None) -> RunResult:
        """Shape what userspace sees of ``r`` and of the shared page."""
        counters = self.watched.counters
        if r == EXIT:
            counters.exits += 1
            counters.mmio += isinstance(exit, MmioExit)
            counters.pio += isinstance(exit, IoExit)
        elif r == -errno.EINTR:
            counters.eintr += 1
            counters.spins += not self.watched.entered_since_eintr
            self.watched.entered_since_eintr = False
        elif r == -errno.EIO:
            raise KvmError(errno.EIO, "KVM_RUN", f"virtual machine {self.vm.id} is dead")
        self.vm.trace(KVM_USERSPACE_EXIT, self.id, _left_with(exit_reason, -r))
        if r == EXIT:
            return RunResult(0, None, exit_reason, exit, None)
        return _left_without_exit(-r, exit_reason, self.watched.cause if r == -errno.EINTR else None)

    def _trace_access(self, exit: IoExit | MmioExit) -> None:
        if isinstance(exit, MmioExit):
            kind = "write" if exit.is_write else "unsatisfied-read"
            mmio = {"type": kind, "len": exit.len, "gpa": hex(exit.phys_addr), "val": exit.data.hex()}
            self.vm.trace(KVM_MMIO, self.id, mmio)
        else:
            pio = {"rw": exit.direction, "port": exit.port, "size": exit.size, "count": exit.count}
            self.vm.trace(KVM_PIO, self.id, {**pio, "val": exit.data.hex()})


@cache
def _left_without_exit(errno: int, exit_reason: ExitReason, cause: Cause | None) -> RunResult:
    return RunResult(-1, errno, exit_reason, None, cause)


@cache
def _left_with(exit_reason: ExitReason, errno: int) -> Fields:
    return {"reason": exit_reason.kernel_name, "errno": errno}
