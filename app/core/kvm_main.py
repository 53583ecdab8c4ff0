"""The half of a vCPU that does not depend on who executes the guest: descriptor, mutex, wake-ups, results.

Function names and order are those of ``kvm_main.c`` (v6.1). What is inside KVM_RUN, ``kvm_arch_vcpu_ioctl_run``, is
the emulated kernel's (``vcpu``) or the real one's (``guests.kvm``).
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from kickstand.core.arch.cpu.overlay import overlay
from kickstand.core.arch.cpu.vcpu_arch import VcpuArch
from kickstand.core.arch.irq.lapic import Lapic
from kickstand.core.arch.kvm_arch import KvmArch
from kickstand.core.atomics import Killed, Mutex, Task
from kickstand.core.errors import KvmError
from kickstand.core.guest import Registers, Share, no_delay
from kickstand.core.memslots import Memslots
from kickstand.core.memslots.dirty_ring import DirtyRing
from kickstand.core.run.exits import UserExit
from kickstand.core.run.reports import Reports
from kickstand.core.run.results import left_without_exit, of_userspace_exit
from kickstand.core.run.run_page import Cause, KvmRun, PageWrites, RunResult
from kickstand.core.run.watched import Watched
from kickstand.core.shared.requests import (
    EXITING_GUEST_MODE,
    IN_GUEST_MODE,
    NO_ACTION,
    NO_WAKEUP,
    OUTSIDE_GUEST_MODE,
    WAIT,
    Request,
    RequestBits,
    VcpuMode,
)
from kickstand.core.trace import KERNEL, KVM_KICK, KVM_USERSPACE_EXIT, USER, Fields
from kickstand.core.uapi import ExitReason, MpState

if TYPE_CHECKING:
    from kickstand.core.vm import Vm

T = TypeVar("T")
EXIT = 0  # ``r`` of a run that leaves to userspace with the exit in ``kvm_run``; negative: with that errno
SENT: Fields = {"ipi": True}


class AnyVcpu(Reports["Vm"], ABC):
    """``struct kvm_vcpu``. Its thread calls ``run``; other threads reach it through requests and wake-ups."""

    def __init__(self, vm: Vm, vcpu_id: int, mp_state: MpState, apic: Lapic | None = None) -> None:
        share = vm.share
        self.vm = vm
        self.id = vcpu_id
        self.tid = f"{vm.id}/cpu{vcpu_id}"
        self.task: Task = share(Task(self.tid))
        self.mutex: Mutex = share(Mutex())
        self.requests: RequestBits = share(RequestBits())
        self.mode: VcpuMode = share(VcpuMode())
        self.arch: VcpuArch = share(VcpuArch(mp_state, apic))
        self.run_page: KvmRun = share(KvmRun())
        self.watched = Watched()
        entries = vm.arch.dirty_ring_entries
        self.dirty_ring = DirtyRing(entries) if entries else None
        self.run_delay_ns: Callable[[], int] = no_delay
        self.apic = apic

    @property
    @abstractmethod
    def guest(self) -> Registers:
        """Who executes the instructions."""

    @abstractmethod
    async def kvm_arch_vcpu_ioctl_run(self) -> int:
        """KVM_RUN between the read side's lock and unlock: 0 with an exit in the page, or a negative errno."""

    async def get_mp_state(self) -> MpState:
        """KVM_GET_MP_STATE."""
        return await self.arch.get_mp_state()

    async def set_special_registers(self, changes: Mapping[str, object], tid: str) -> None:
        """KVM_SET_SREGS for the named registers, and of a segment or table for the named members, with nobody between.

        Errors as ``Registers.set_special_registers``.
        """

        def body() -> None:
            self.guest.set_special_registers(overlay(changes, self.guest.special_registers))

        await self.with_mutex(body, tid)

    @abstractmethod
    async def set_mp_state(self, mp_state: MpState, tid: str) -> None:
        """KVM_SET_MP_STATE. EINVAL: a state that cannot be set here."""

    async def read_apic_msrs(self, indices: Sequence[int]) -> list[int]:
        """KVM_GET_MSRS of MSRs of an APIC in the kernel: the values up to the first that there is not."""
        return []

    async def write_apic_msrs(self, entries: Sequence[tuple[int, int]]) -> int:
        """KVM_SET_MSRS of such: how many were taken, in order."""
        return 0

    @abstractmethod
    async def get_lapic(self, tid: str) -> bytes:
        """KVM_GET_LAPIC: 1,024 bytes. EINVAL: no in-kernel irqchip."""

    @abstractmethod
    async def set_lapic(self, page: bytes, tid: str) -> None:
        """KVM_SET_LAPIC. EINVAL: no in-kernel irqchip."""

    @abstractmethod
    async def report_tpr_access(self, enabled: bool, tid: str) -> None:
        """KVM_TPR_ACCESS_REPORTING."""

    @abstractmethod
    async def set_vapic_addr(self, address: int, tid: str) -> None:
        """KVM_SET_VAPIC_ADDR; 0: none. EINVAL: no in-kernel irqchip, or no memory there."""

    @abstractmethod
    async def interrupt(self, vector: int, tid: str) -> None:
        """KVM_INTERRUPT. EINVAL: ``vector`` not below 256; ENXIO: the irqchip is in the kernel."""

    @abstractmethod
    async def inject_nmi(self, tid: str) -> None:
        """KVM_NMI."""

    @property
    def has_local_apic(self) -> bool:
        """There is an irqchip in the kernel."""
        return self.apic is not None

    @property
    def kvm_arch(self) -> KvmArch:
        """What userspace has set up of its VM."""
        return self.vm.arch

    @property
    def is_boot_vcpu(self) -> bool:
        """It is the one that starts by itself (``kvm_vcpu_is_reset_bsp``)."""
        return self.id == self.vm.arch.boot_vcpu_id

    @property
    def share(self) -> Share:
        """How the VM's driver takes hold of shared objects."""
        return self.vm.share

    @property
    def memslots(self) -> Memslots:
        """Guest-physical memory."""
        return self.vm.memslots

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
            r = self.run_page.load_registers(self) or await self.run_under_read_side()
            self.run_page.store_registers(self)
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
            self.show_mode(OUTSIDE_GUEST_MODE)
            await self.task.set_running()
            raise
        finally:
            await self.arch.srcu_read_unlock(self.vm.srcu)
            await self.vm.variant.run_end(self, held)

    async def with_mutex(self, body: Callable[[], T], tid: str) -> T:
        """Run ``body`` as a vCPU ioctl other than KVM_RUN: it waits until KVM_RUN has left (``vcpu->mutex``)."""
        await self.vm.check_alive("vcpu ioctl")
        await self.mutex.lock(tid)
        try:
            return body()
        finally:
            await self.mutex.unlock()

    # -- other threads -----------------------------------------------------------------------------------

    def make_request(self, request: Request) -> Awaitable[None]:
        """``kvm_make_request``: report it, and set its bit once awaited."""
        self.show_request(request)
        return self.requests.make(request)

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
            self.show_mode(EXITING_GUEST_MODE)
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

    def leave_to_user(self, r: int, exit_reason: ExitReason, exit: UserExit | None) -> RunResult:
        """Shape what userspace sees of ``r`` and of the shared page. EIO: the VM is dead."""
        if r == EXIT:
            self.watched.counters.exited(exit)
        elif r == -errno.EINTR:
            self.watched.interrupted()
        elif r == -errno.EIO:
            raise KvmError(errno.EIO, "KVM_RUN", f"virtual machine {self.vm.id} is dead")
        self.vm.trace(KVM_USERSPACE_EXIT, self.id, of_userspace_exit(exit_reason, -r))
        if r == EXIT:
            return RunResult(0, None, exit_reason, exit, None)
        return left_without_exit(-r, exit_reason, self.watched.cause if r == -errno.EINTR else None)


async def make_all_cpus_request(vcpus: Iterable[AnyVcpu], request: Request) -> int:
    """``kvm_make_all_cpus_request``: set the bit on each vCPU, wake sleepers, IPI those in guest mode.

    With ``WAIT`` returns only after every interrupted CPU took its IPI, that is, left guest mode; a vCPU
    that was woken from sleep is not waited for, and none is waited for to leave KVM_RUN. Returns the
    number of vCPUs that were interrupted or woken.
    """
    action, wakeup, wait = not request & NO_ACTION, not request & NO_WAKEUP, bool(request & WAIT)
    targets: list[AnyVcpu] = []
    reached = 0
    for vcpu in vcpus:
        if action:
            await vcpu.make_request(request)
        if wakeup and await vcpu.wake_up():
            reached += 1
            continue
        old = await vcpu.mode.exiting()
        if old is IN_GUEST_MODE:
            vcpu.show_mode(EXITING_GUEST_MODE)
        if old is IN_GUEST_MODE or (wait and old is not OUTSIDE_GUEST_MODE):
            await vcpu.mode.send_ipi()
            vcpu.ipi_sent()
            targets.append(vcpu)
            reached += 1
    if wait:
        for vcpu in targets:
            await vcpu.mode.wait_taken()
    return reached


async def clear_all_cpus_request(vcpus: Iterable[AnyVcpu], request: Request) -> int:
    """``kvm_clear_all_cpus_request``: a plain loop, no lock, no barrier; returns how many bits were set."""
    cleared = 0
    for vcpu in vcpus:
        cleared += await vcpu.requests.clear(request)
    return cleared
