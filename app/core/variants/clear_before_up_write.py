"""Alternative (b) of the thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kickstand.core.kvm_main import clear_all_cpus_request, make_all_cpus_request
from kickstand.core.shared.requests import Request
from kickstand.core.variants.sticky import Sticky

if TYPE_CHECKING:
    from kickstand.core.atomics import Task


class ClearBeforeUpWrite(Sticky):
    """KICK clears all requests right before up_write; there is no RESUME."""

    async def kick(self, task: Task) -> bool:
        vcpus = await self.vm.online_vcpus()
        await make_all_cpus_request(vcpus, Request.USERSPACE_KICK)
        if await self.memory_transaction.down_write(task, killable=self.vm.switches.killable):
            await clear_all_cpus_request(vcpus, Request.USERSPACE_KICK)
            await self.memory_transaction.up_write()
        return True

    async def resume(self, task: Task) -> int:
        return 0
