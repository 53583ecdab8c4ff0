"""A machine of the real /dev/kvm, with the methods of every other machine.

What differs: the kernel answers; KVM_GET_REGS waits for KVM_RUN to end, as there; and a destroyed machine first
gets its vCPUs out of KVM_RUN by a signal. Kick and resume are QEMU's accel-blocker for every variant that would
need a changed kernel, and ``describe`` says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from app.core.trace import VcpuState
from app.core.uapi import Fd, MpState
from app.core.vm import Switches, System, Vm
from app.guests.kvm import device
from app.guests.kvm.vcpu import DeviceVcpu
from app.guests.kvm.vm import DeviceVm
from app.runtime.history import keeps_history
from app.runtime.machine import Machine
from app.runtime.tasks import perform

T = TypeVar("T")
LEAVE_S = 5.0


@keeps_history("get_regs", "get_sregs", "get_mp_state", "set_mp_state", "set_cpuid_supported")
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

    async def get_regs(self, vcpu_id: int) -> dict[str, int]:
        """KVM_GET_REGS; waits for KVM_RUN to end."""
        return await self._in_turn(vcpu_id, self._device_vcpu(vcpu_id).guest.registers)

    async def get_sregs(self, vcpu_id: int) -> dict[str, object]:
        """KVM_GET_SREGS; waits for KVM_RUN to end."""
        return await self._in_turn(vcpu_id, self._device_vcpu(vcpu_id).guest.special_registers)

    async def get_mp_state(self, vcpu_id: int) -> MpState:
        """KVM_GET_MP_STATE; waits for KVM_RUN to end."""
        return await self._in_turn(vcpu_id, self._device_vcpu(vcpu_id).read_mp_state)

    async def set_mp_state(self, vcpu_id: int, mp_state: int) -> None:
        """KVM_SET_MP_STATE; waits for KVM_RUN to end."""
        vcpu = self._device_vcpu(vcpu_id)
        await self._in_turn(vcpu_id, lambda: vcpu.write_mp_state(mp_state))

    async def set_cpuid_supported(self, vcpu_id: int) -> None:
        """KVM_SET_CPUID2 with what KVM_GET_SUPPORTED_CPUID lists. EINVAL once the vCPU has been in guest mode."""
        vcpu = self._device_vcpu(vcpu_id)
        await self._in_turn(vcpu_id, lambda: vcpu.set_cpuid(self.vm.device.supported_cpuid()))

    async def raw_ioctl(self, fd: Fd, request: int, vcpu_id: int | None = None) -> int:
        """An ioctl with argument 0 on a descriptor that does not know it, as far as ``core.uapi`` goes."""
        self.check_raw(fd, request)
        if fd is Fd.VCPU and vcpu_id is not None:
            vcpu = self._device_vcpu(vcpu_id)
            return await self._in_turn(vcpu_id, lambda: device.issue(vcpu.fd, request))
        return device.issue(self.vm.fd if fd is Fd.VM else self.vm.device.fd, request)

    # -- life ------------------------------------------------------------------------------------------------

    async def destroy(self) -> None:
        """As ``Machine.destroy``; every vCPU leaves KVM_RUN first, and every descriptor is closed."""
        if not self._dead:
            await perform(self.vm.destroy(), self.choose)
            await self._leave_kvm_run()
        try:
            await super().destroy()
        finally:
            self.vm.close()

    async def _leave_kvm_run(self) -> None:
        async with asyncio.timeout(LEAVE_S):
            while inside := [vcpu for vcpu in self.vm.vcpus.values() if vcpu.watched.state is VcpuState.GUEST]:
                for vcpu in inside:
                    vcpu.guest.kick()
                await asyncio.sleep(0.001)

    def describe(self) -> dict[str, Any]:
        """The VM's shape; ``kicked_by`` is the variant that stands in for one that needs a changed kernel."""
        return super().describe() | {"kicked_by": self.vm.variant.name}
