"""What QEMU ships: ``accel/accel-blocker.c``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kickstand.core.shared.userspace import IoctlCounts
from kickstand.core.variants.base import Variant

if TYPE_CHECKING:
    from kickstand.core.atomics import Task
    from kickstand.core.kvm_main import AnyVcpu
    from kickstand.core.vm import Vm

VM_COUNT = "vm"


class AccelBlocker(Variant):
    """QEMU's accel-blocker: userspace counts its ioctls, holds new ones back and signals those inside."""

    def __init__(self, vm: Vm) -> None:
        super().__init__(vm)
        self.ioctls: IoctlCounts = vm.share(IoctlCounts())

    async def kick(self, task: Task) -> bool:
        """``accel_ioctl_inhibit_begin``: no recursion; the holder's own ioctls pass (it holds the BQL)."""
        opened = await self.ioctls.inhibit(task.process)
        self.open_windows = 1
        while True:
            await self.ioctls.reset_event()
            for vcpu in await self.vm.online_vcpus():
                if await self.ioctls.is_inside(vcpu.tid):
                    await vcpu.run_page.set_immediate_exit(True)
                    await vcpu.send_signal()
            if await self.ioctls.idle():
                return opened
            await self.ioctls.wait_event()  # an ioctl ended; whoever is still inside is kicked again

    async def resume(self, task: Task) -> int:
        """``accel_ioctl_inhibit_end``."""
        self.open_windows = 0
        return await self.ioctls.permit()

    async def take_back(self, task: Task, *, opened: bool) -> None:
        if opened:
            await self.resume(task)

    def load(self, saved: dict[str, Any], process: str) -> None:
        super().load(saved, process)
        self.ioctls.inhibitor = process if self.open_windows else None

    async def ioctl_begin(self, task: Task, vcpu: AnyVcpu | None = None) -> bool:
        """``accel_ioctl_begin``, ``accel_cpu_ioctl_begin``: wait while the count is locked at zero."""
        if vcpu is None:
            return await self.ioctls.begin_unless_inhibited(VM_COUNT, task.process, task)
        return await self.ioctls.begin_unless_inhibited(vcpu.tid, vcpu.tid, vcpu.task)

    async def ioctl_end(self, task: Task, vcpu: AnyVcpu | None = None) -> None:
        await self.ioctls.end(VM_COUNT if vcpu is None else vcpu.tid, task.tid)

    async def eintr(self, vcpu: AnyVcpu) -> None:
        await vcpu.task.take_signal()
        await vcpu.run_page.set_immediate_exit(False)
