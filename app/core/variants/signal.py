"""Borntraeger's question, whether userspace cannot do this with signals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kickstand.core.shared.userspace import IoctlCounts
from kickstand.core.variants.base import Variant

if TYPE_CHECKING:
    from kickstand.core.atomics import Task
    from kickstand.core.kvm_main import AnyVcpu
    from kickstand.core.vm import Vm


class SignalVariant(Variant):
    """A signal whose handler sets immediate_exit, and no gate: nothing keeps a vCPU from coming back."""

    def __init__(self, vm: Vm) -> None:
        super().__init__(vm)
        self.inside: IoctlCounts = vm.share(IoctlCounts())

    async def kick(self, task: Task) -> bool:
        vcpus = await self.vm.online_vcpus()
        for vcpu in vcpus:
            # Order matters: whoever is not inside when we look sees immediate_exit when it comes.
            await vcpu.run_page.set_immediate_exit(True)
            await self.inside.await_end(vcpu.tid)
            await vcpu.send_signal()
        for vcpu in vcpus:
            await self.inside.wait_left(vcpu.tid)
        return True

    async def ioctl_begin(self, task: Task, vcpu: AnyVcpu | None = None) -> bool:
        return vcpu is None or await self.inside.begin(vcpu.tid)

    async def ioctl_end(self, task: Task, vcpu: AnyVcpu | None = None) -> None:
        if vcpu is not None:
            await self.inside.end(vcpu.tid)

    async def eintr(self, vcpu: AnyVcpu) -> None:
        await vcpu.task.take_signal()
        await vcpu.run_page.set_immediate_exit(False)
