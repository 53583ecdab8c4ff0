"""A vCPU of the real kernel as the core's ``Vcpu``: the same mutex, page, counters and events around a real KVM_RUN."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import TYPE_CHECKING

from app.core.atomics import Killed, outside
from app.core.errors import KvmError
from app.core.guest import IoExit, MmioExit
from app.core.run_page import Cause
from app.core.trace import VcpuState
from app.core.uapi import KVM_INTERRUPT, KVM_MP_STATE, ExitReason, MpState
from app.core.vcpu import Vcpu
from app.guests.kvm import device
from app.guests.kvm.guest import DeviceGuest
from app.guests.kvm.page import DeviceRunPage
from app.guests.kvm.thread import VcpuThread

if TYPE_CHECKING:
    from app.guests.kvm.vm import DeviceVm

JOIN_S = 5.0


class DeviceVcpu(Vcpu):
    """``fd`` is the descriptor of KVM_CREATE_VCPU; it is closed here."""

    def __init__(self, vm: DeviceVm, vcpu_id: int, fd: int) -> None:
        self.fd = fd
        super().__init__(vm, vcpu_id, MpState.RUNNABLE)
        self.run_page = self.page = DeviceRunPage(fd, vm.page_size)
        self.thread = VcpuThread(self.tid, fd, lambda: self.task.signal or self.vm.lifetime.dead)
        self.guest = DeviceGuest(fd, self.thread)
        self.set_cpuid(vm.device.supported_cpuid())
        self.read_mp_state()

    def set_cpuid(self, table: bytes) -> None:
        """KVM_SET_CPUID2."""
        device.ioctl(self.fd, "SET_CPUID2", ctypes.create_string_buffer(table, len(table)))

    def read_mp_state(self) -> MpState:
        """KVM_GET_MP_STATE."""
        self.arch.mp_state = MpState(device.read(self.fd, "GET_MP_STATE", KVM_MP_STATE)["mp_state"])
        return self.arch.mp_state

    def write_mp_state(self, mp_state: int) -> None:
        """KVM_SET_MP_STATE, for any number."""
        device.write(self.fd, "SET_MP_STATE", KVM_MP_STATE, {"mp_state": mp_state})
        self.read_mp_state()

    # -- KVM_RUN ---------------------------------------------------------------------------------------------

    async def kvm_arch_vcpu_ioctl_run(self) -> int:
        """KVM_RUN on the vCPU's own thread; what is inside it, the guest or the kernel, cannot be told apart."""
        if self.vm.lifetime.dead:
            return -errno.EIO
        self.arch.pending = None  # the kernel completes the access first
        self.entered()
        await self.mode.enter()
        try:
            r = await outside(self.thread.call(self.thread.run))
        except Killed:
            self.thread.interrupt()
            raise
        await self.mode.leave()
        self.show(VcpuState.KERNEL)
        return self._left(r)

    def _left(self, r: int) -> int:
        if self.vm.lifetime.dead:
            return -errno.EIO
        exit = self.page.taken()
        if self.vm.irqchip:
            self.read_mp_state()
        if r == -errno.EINTR:
            signalled = self.run_page.exit_reason is ExitReason.INTR and not self.run_page.immediate_exit
            self.watched.counters.signal_exits += signalled
            return self.interrupted_by(Cause.SIGNAL if signalled else Cause.IMMEDIATE_EXIT)
        if r == 0 and isinstance(exit, IoExit | MmioExit):
            self.arch.pending = exit
            self._trace_access(exit)
        return r

    # -- other ioctls ----------------------------------------------------------------------------------------

    async def set_mp_state(self, mp_state: MpState, tid: str) -> None:
        """KVM_SET_MP_STATE."""
        await self.with_mutex(lambda: self.write_mp_state(mp_state), tid)

    async def interrupt(self, vector: int, tid: str) -> None:
        """KVM_INTERRUPT."""
        await self.with_mutex(lambda: device.write(self.fd, "INTERRUPT", KVM_INTERRUPT, {"irq": vector}), tid)

    async def inject_nmi(self, tid: str) -> None:
        """KVM_NMI."""
        await self.with_mutex(lambda: device.ioctl(self.fd, "NMI"), tid)

    # -- the end ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the thread, which is not in KVM_RUN any more, and close the descriptor."""
        self.thread.stop()
        if not self.thread.join(JOIN_S):
            raise KvmError(errno.EBUSY, "close", f"vcpu {self.id} does not leave KVM_RUN")
        self.page.close()
        os.close(self.fd)
