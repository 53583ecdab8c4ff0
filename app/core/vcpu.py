"""The kernel's half of KVM_RUN: the loop that enters the guest or sleeps, and what an exit means.

Function names and order are those of ``x86.c`` (v6.1); a step's result ``r`` is too: 1 go round again, 0 leave to
userspace with the exit in ``kvm_run``, negative leave with that errno.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, get_args

from kickstand.core.arch.cpu.waiting import Waiting
from kickstand.core.arch.irq.lapic import Lapic
from kickstand.core.arch.kvm_arch import DISABLE_HLT
from kickstand.core.atomics import preempt
from kickstand.core.guest import Guest
from kickstand.core.ioctls.events import EventIoctls
from kickstand.core.kvm_main import EXIT
from kickstand.core.run.exits import (
    Access,
    EoiExit,
    Exit,
    FaultExit,
    HltExit,
    HypercallExit,
    InterruptedExit,
    IoExit,
    MmioExit,
    MsrExit,
    RetryExit,
    RingFullExit,
    ShutdownExit,
    TprAccessExit,
    UserExit,
)
from kickstand.core.run.run_page import KICKED, Cause
from kickstand.core.shared.requests import IN_GUEST_MODE, KVM_REQ_UNBLOCK, OUTSIDE_GUEST_MODE, Request
from kickstand.core.trace import BLOCKED, EXITING, HALTED, KERNEL, KVM_EXIT, Fields, Tracepoint
from kickstand.core.uapi import MpState
from kickstand.core.wiring.in_kernel import InKernel

if TYPE_CHECKING:
    from kickstand.core.vm import Vm

AGAIN = 1
ACCESSES = (IoExit, MmioExit, MsrExit, HypercallExit)  # exits that userspace completes
EXIT_FIELDS: dict[type[Exit], Fields] = {
    kind: {"exit_reason": kind.__name__.removesuffix("Exit").lower()} for kind in get_args(Exit)
}
MP_RUNNABLE, MP_UNINITIALIZED, MP_HALTED = MpState.RUNNABLE, MpState.UNINITIALIZED, MpState.HALTED
SLEPT: Fields = {"waited": True, "valid": True}


class Vcpu(EventIoctls):
    """A vCPU of the emulated kernel."""

    def __init__(self, vm: Vm, vcpu_id: int, mp_state: MpState) -> None:
        super().__init__(vm, vcpu_id, mp_state, _lapic(vm, vcpu_id))
        self._guest: Guest = vm.make_guest(self)
        self.in_kernel: InKernel | None = None
        if self.apic is not None:
            self.in_kernel = InKernel(self, self._guest, self.apic, vm.interrupts)
            if self._guest.handles_interrupts:
                self._guest.set_special_registers({"apic_base": self.apic.base})
            else:
                self.apic.enable()

    @property
    def guest(self) -> Guest:
        """The engine that executes the instructions."""
        return self._guest

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
        self.show(BLOCKED)
        await self.kvm_vcpu_block()
        await self.arch.srcu_read_lock(self.vm.srcu)
        if await self.requests.test(Request.VM_DEAD):
            return -errno.EIO
        await self.accept_init_sipi()
        if await self.task.signal_pending():
            return await self.exit_by_signal()
        return -errno.EAGAIN

    async def complete_userspace_io(self, pending: Access) -> int:
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
        if self.dirty_ring is not None and self.dirty_ring.soft_full:
            await self.run_page.fill(RingFullExit())
            return EXIT
        _, nmi, waiting = await self.arch.events()
        if nmi or waiting:
            await self.inject_events(waiting, nmi=nmi)
        if self.in_kernel is not None:
            await self.in_kernel.task_priority.show()
        # Order matters: the mode is visible before the requests are read again, so a kicker is either
        # seen here or sees IN_GUEST_MODE and sends the IPI.
        await self.mode.enter()
        self.show_mode(IN_GUEST_MODE)
        await self.arch.srcu_read_unlock(self.vm.srcu)
        if await self.exit_request():
            await self.mode.leave()
            self.show_mode(OUTSIDE_GUEST_MODE)
            await self.arch.srcu_read_lock(self.vm.srcu)
            return AGAIN
        self.entered()
        exit = await self.guest.enter(self)
        self.show(EXITING if type(exit) is InterruptedExit else KERNEL)
        await self.mode.leave()
        self.show_mode(OUTSIDE_GUEST_MODE)
        await self.arch.srcu_read_lock(self.vm.srcu)
        if self.in_kernel is not None:
            await self.in_kernel.task_priority.follow()
        return await self.handle_exit(exit)

    async def service_requests(self) -> int:
        """The block under ``kvm_request_pending``: kick first, as the patch has it, then the others."""
        if await self.vm.variant.entry_test(self):
            return self.interrupted_by(self.vm.variant.entry_cause)
        if await self.requests.test(Request.VM_DEAD):
            return -errno.EIO
        await self.requests.check(Request.TLB_FLUSH)
        if await self.requests.check(Request.TRIPLE_FAULT):
            return await self.handle_exit(ShutdownExit())
        await self.requests.check(Request.NMI)
        if self.apic is not None:
            told = await self._exit_of_apic()
            if told is not None:
                await self.run_page.fill(told)
                return EXIT
        if await self.requests.check(Request.EVENT):
            await self.accept_init_sipi()
            mp_state = await self.arch.get_mp_state()
            if mp_state is MpState.INIT_RECEIVED:
                return AGAIN
        return AGAIN

    async def _exit_of_apic(self) -> UserExit | None:
        """What userspace wants to know of the APIC."""
        if await self.requests.check(Request.REPORT_TPR_ACCESS):
            access = await self.arch.take_tpr_access()
            if access is not None:
                return TprAccessExit(*access)
        if await self.requests.check(Request.IOAPIC_EOI_EXIT):
            vector = await self.arch.take_eoi_exit()
            if vector is not None:
                return EoiExit(vector)
        return None

    async def exit_request(self) -> bool:
        """``kvm_vcpu_exit_request``: something came between the checks and IN_GUEST_MODE."""
        return bool(await self.requests.pending()) or await self.task.signal_pending()

    async def handle_exit(self, exit: Exit) -> int:
        """What an exit of the guest means: back into it (1), to userspace (0), or an errno."""
        self.vm.trace(KVM_EXIT, self.id, EXIT_FIELDS[type(exit)])
        if self.in_kernel is not None:
            left = await self.in_kernel.answered(self, exit)
            if left is None:
                return AGAIN
            exit = left
        if self.vm.arch.coalesced.zones and isinstance(exit, IoExit | MmioExit):
            left = await self._coalesced(exit)
            if left is None:
                return AGAIN
            exit = left
        if isinstance(exit, InterruptedExit):
            self.watched.counters.request_irq_exits += 1
            return AGAIN
        if isinstance(exit, ACCESSES):
            self.trace_access(exit)
            await self.arch.expect_completion(exit)
        elif isinstance(exit, RetryExit):
            self.watched.counters.faults_retried += 1
            return AGAIN
        elif isinstance(exit, FaultExit):
            return -errno.EFAULT
        elif isinstance(exit, HltExit) and (self.vm.irqchip or self.vm.arch.disabled_exits & DISABLE_HLT):
            await self.arch.set_mp_state(MP_HALTED)
            return AGAIN
        await self.run_page.fill(exit)
        return EXIT

    async def _coalesced(self, exit: Exit) -> Exit | None:
        """What is left of an exit once its writes have been noted in the ring: None if the guest can go on."""
        while isinstance(exit, IoExit | MmioExit) and self._noted(exit):
            further = await self.guest.complete(self, exit, b"") or self.guest.next_element()
            if further is None:
                return None
            exit = further
        return exit

    def _noted(self, exit: IoExit | MmioExit) -> bool:
        take = self.vm.arch.coalesced.take
        if isinstance(exit, MmioExit):
            return exit.is_write and take(exit.phys_addr, exit.data, 0)
        return exit.direction == "out" and exit.count == 1 and take(exit.port, exit.data, 1)

    # -- sleeping ----------------------------------------------------------------------------------------

    async def vcpu_block(self) -> int:
        """``vcpu_block``: HALTED or waiting for SIPI. A vCPU woken without an event keeps its mp_state."""
        if not await self.has_events():
            await self.arch.srcu_read_unlock(self.vm.srcu)
            if await self.arch.get_mp_state() is MP_HALTED:
                await self.kvm_vcpu_halt()
            else:
                self.show(BLOCKED)
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

    async def kvm_vcpu_halt(self) -> None:
        """``kvm_vcpu_halt``: the sleep of a vCPU whose guest executed HLT (the core has no clock, so no polling)."""
        self.watched.counters.halts += 1
        self.show(HALTED)
        await self.kvm_vcpu_block()

    async def kvm_vcpu_block(self) -> None:
        """``kvm_vcpu_block``: sleep until ``check_block`` has a reason not to."""
        while True:
            await self.task.set_interruptible()
            if await self.check_block():
                break
            await self.task.schedule()
        await self.task.set_running()
        self.show(KERNEL)
        self.vm.trace(Tracepoint.KVM_VCPU_WAKEUP, self.id, SLEPT)

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
        starting, nmi, waiting = await self.arch.events()
        return starting or nmi or bool(waiting and self.guest.interrupts_allowed())

    # -- events ------------------------------------------------------------------------------------------

    async def inject_events(self, waiting: Waiting, *, nmi: bool) -> None:
        """Hand pending events to the guest: an NMI, then the highest interrupt if the guest takes one now.

        One that was handed over before an entry that did not come about goes first; a second would replace it.
        """
        if nmi and await self.arch.take_nmi():
            self.guest.nmi()
        if waiting and not self.guest.event_waits and self.guest.interrupts_allowed():
            vector = await self._take_vector(waiting)
            if vector is not None:
                self.guest.interrupt(vector)
                self.vm.trace(Tracepoint.KVM_INJ_VIRQ, self.id, {"vector": vector})

    async def _take_vector(self, waiting: Waiting) -> int | None:
        """``kvm_cpu_get_interrupt``: from the 8259 pair or from the APIC."""
        over = not self.guest.handles_interrupts
        if waiting is Waiting.EXTINT:
            return await self.vm.interrupts.acknowledge(self, over=over)
        vector = await self.arch.take_vector()
        if over:
            await self.vm.interrupts.affect(self, await self.arch.end_of_interrupt())
        return vector

    async def wants_interrupt_window(self) -> bool:
        """Somebody waits for it: with an irqchip in the kernel an interrupt, else userspace."""
        if not self.vm.irqchip:
            return await self.run_page.wants_interrupt_window()
        _, _, waiting = await self.arch.events()
        return bool(waiting)

    async def interrupt_window_open(self) -> bool:
        """Userspace without an in-kernel irqchip asked to be told when it can inject; now it can."""
        if self.vm.irqchip or not await self.run_page.wants_interrupt_window():
            return False
        exit = self.guest.window_exit()
        if exit is None:
            return False
        await self.run_page.fill(exit)
        return True


def _lapic(vm: Vm, vcpu_id: int) -> Lapic | None:
    return Lapic(vcpu_id, boot=vcpu_id == vm.arch.boot_vcpu_id, arch=vm.arch) if vm.irqchip else None
