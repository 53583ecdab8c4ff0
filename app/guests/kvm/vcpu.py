"""A vCPU of the real kernel as the core's ``Vcpu``: the same mutex, page, counters and events around a real KVM_RUN."""

from __future__ import annotations

import ctypes
import errno
import os

from kickstand.core.atomics import Killed, outside
from kickstand.core.errors import KvmError
from kickstand.core.kvm_main import AnyVcpu
from kickstand.core.run.exits import IoExit, MmioExit
from kickstand.core.run.run_page import Cause
from kickstand.core.shared.requests import IN_GUEST_MODE, OUTSIDE_GUEST_MODE
from kickstand.core.trace import VcpuState
from kickstand.core.uapi import KVM_INTERRUPT, KVM_LAPIC_STATE, KVM_MP_STATE, ExitReason, MpState
from kickstand.core.uapi.structures import KVM_TPR_ACCESS_CTL, KVM_VAPIC_ADDR
from kickstand.core.vm import Vm
from kickstand.guests.kvm import device
from kickstand.guests.kvm.device import Device
from kickstand.guests.kvm.page import DeviceRunPage
from kickstand.guests.kvm.registers import DeviceRegisters
from kickstand.guests.kvm.thread import VcpuThread

JOIN_S = 5.0


class DeviceVcpu(AnyVcpu):
    """``fd`` is the descriptor of KVM_CREATE_VCPU; it is closed here."""

    def __init__(self, vm: Vm, vcpu_id: int, fd: int, device: Device) -> None:
        super().__init__(vm, vcpu_id, MpState.RUNNABLE)
        self.fd = fd
        self.run_page = self.page = DeviceRunPage(fd, device.page_size)
        self.thread = VcpuThread(self.tid, fd, lambda: self.task.signal or self.vm.lifetime.dead)
        self._registers = DeviceRegisters(fd, self.thread)
        self.set_cpuid(device.supported_cpuid())
        self.read_mp_state()

    @property
    def guest(self) -> DeviceRegisters:
        """The registers; executing instructions is the kernel's business."""
        return self._registers

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
        self.show_mode(IN_GUEST_MODE)
        try:
            r = await outside(self.thread.call(self.thread.run))
        except Killed:
            self.thread.interrupt()
            raise
        await self.mode.leave()
        self.show_mode(OUTSIDE_GUEST_MODE)
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
            self.trace_access(exit)
        return r

    # -- other ioctls ----------------------------------------------------------------------------------------

    async def set_mp_state(self, mp_state: MpState, tid: str) -> None:
        """KVM_SET_MP_STATE."""
        await self.with_mutex(lambda: self.write_mp_state(mp_state), tid)

    async def get_lapic(self, tid: str) -> bytes:
        """KVM_GET_LAPIC."""
        page = await self.with_mutex(lambda: device.read(self.fd, "GET_LAPIC", KVM_LAPIC_STATE)["regs"], tid)
        return bytes(page)

    async def set_lapic(self, page: bytes, tid: str) -> None:
        """KVM_SET_LAPIC."""
        await self.with_mutex(lambda: device.write(self.fd, "SET_LAPIC", KVM_LAPIC_STATE, {"regs": page}), tid)

    async def report_tpr_access(self, enabled: bool, tid: str) -> None:
        """KVM_TPR_ACCESS_REPORTING."""
        control = {"enabled": int(enabled), "flags": 0}
        await self.with_mutex(lambda: device.write(self.fd, "TPR_ACCESS_REPORTING", KVM_TPR_ACCESS_CTL, control), tid)

    async def set_vapic_addr(self, address: int, tid: str) -> None:
        """KVM_SET_VAPIC_ADDR."""
        await self.with_mutex(
            lambda: device.write(self.fd, "SET_VAPIC_ADDR", KVM_VAPIC_ADDR, {"vapic_addr": address}), tid
        )

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
