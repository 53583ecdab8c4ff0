"""A machine of the real /dev/kvm, with the methods of every other machine.

What differs: the kernel answers; KVM_GET_REGS waits for KVM_RUN to end, as there; and a destroyed machine first
gets its vCPUs out of KVM_RUN by a signal. Kick and resume are QEMU's accel-blocker for every variant that would
need a changed kernel, and ``describe`` says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from kickstand.core.trace import VcpuState
from kickstand.core.uapi import Fd, Ioctl, MpState
from kickstand.core.vm import Switches, System, Vm
from kickstand.guests.kvm import device
from kickstand.guests.kvm.vcpu import DeviceVcpu
from kickstand.guests.kvm.vm import DeviceVm
from kickstand.runtime.calls.arguments import Memory
from kickstand.runtime.driver.tasks import perform
from kickstand.runtime.machine import Machine

T = TypeVar("T")
LEAVE_S = 5.0


class DeviceMachine(Machine):
    """``KvmError`` EOPNOTSUPP, with the reason, where the device cannot be used."""

    vm: DeviceVm

    def _make_vm(self, system: System, switches: Switches, *, irqchip: bool) -> Vm:
        return DeviceVm(
            self.id, self.variant, self.memory, system=system, irqchip=irqchip, switches=switches, trace=self.trace
        )

    def _device_vcpu(self, vcpu_id: int) -> DeviceVcpu:
        vcpu = self.vcpu(vcpu_id)
        assert isinstance(vcpu, DeviceVcpu)
        return vcpu

    async def _in_turn(self, vcpu_id: int, body: Callable[[], T]) -> T:
        """An ioctl of a vCPU: it waits until KVM_RUN has left."""
        return await self.call(self.vcpu(vcpu_id).with_mutex(body, self.thread().tid))

    # -- ioctls ----------------------------------------------------------------------------------------------

    async def _look(self, vcpu_id: int, read: Callable[[], T]) -> T:
        return await self._in_turn(vcpu_id, read)

    async def _mp_state(self, vcpu_id: int) -> MpState:
        return await self._in_turn(vcpu_id, self._device_vcpu(vcpu_id).read_mp_state)

    async def _set_mp_state(self, vcpu_id: int, mp_state: int) -> None:
        vcpu = self._device_vcpu(vcpu_id)
        await self._in_turn(vcpu_id, lambda: vcpu.write_mp_state(mp_state))

    async def _set_cpuid_supported(self, vcpu_id: int) -> None:
        vcpu = self._device_vcpu(vcpu_id)
        await self._in_turn(vcpu_id, lambda: vcpu.set_cpuid(self.vm.device.supported_cpuid()))

    async def raw_ioctl(self, fd: Fd, request: int, vcpu_id: int | None = None) -> int:
        """An ioctl with argument 0 on a descriptor that does not know it, as far as ``core.uapi`` goes."""
        self.check_raw(fd, request)
        if fd is Fd.VCPU and vcpu_id is not None:
            vcpu = self._device_vcpu(vcpu_id)
            return await self._in_turn(vcpu_id, lambda: device.issue(vcpu.fd, request))
        return device.issue(self.vm.fd if fd is Fd.VM else self.vm.device.fd, request)

    async def issue(self, abi: Ioctl, number: int, memory: Memory, vcpu_id: int | None) -> int:
        """An ioctl whose structure lies in ``memory``, which the kernel finds at the same addresses."""
        if vcpu_id is None:
            return device.issue_at(self.vm.fd, abi.request, number, memory)
        vcpu = self._device_vcpu(vcpu_id)
        return await self._in_turn(vcpu_id, lambda: device.issue_at(vcpu.fd, abi.request, number, memory))

    # -- life ------------------------------------------------------------------------------------------------

    async def destroy(self) -> None:
        """As ``Machine.destroy``; every vCPU leaves KVM_RUN first, and every descriptor is closed."""
        if not self._dead:
            await perform(self.vm.destroy(), self.choose)
            await self._leave_kvm_run()
        await super().destroy()

    async def _close(self) -> None:
        try:
            self.vm.close()
        finally:
            await super()._close()

    async def _leave_kvm_run(self) -> None:
        async with asyncio.timeout(LEAVE_S):
            while inside := [vcpu for vcpu in self.vm.vcpus.values() if vcpu.watched.state is VcpuState.GUEST]:
                for vcpu in inside:
                    vcpu.guest.kick()
                await asyncio.sleep(0.001)

    def shape(self) -> dict[str, Any]:
        """The VM's shape; ``kicked_by`` is the variant that stands in for one that needs a changed kernel."""
        return super().shape() | {"kicked_by": self.vm.variant.name}
