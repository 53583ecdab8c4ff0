"""Alternative (c), the last proposal on the list."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kickstand.core.kvm_main import clear_all_cpus_request, make_all_cpus_request
from kickstand.core.shared.requests import Request
from kickstand.core.variants.sticky import Sticky

if TYPE_CHECKING:
    from kickstand.core.atomics import Task


class ClearAfterUpWrite(Sticky):
    """The last proposal on the list: KICK clears all requests right after up_write; there is no RESUME."""

    async def kick(self, task: Task) -> bool:
        vcpus = await self.vm.online_vcpus()
        await make_all_cpus_request(vcpus, Request.USERSPACE_KICK)
        await self.wait_for_readers(task)
        await clear_all_cpus_request(vcpus, Request.USERSPACE_KICK)
        return True

    async def resume(self, task: Task) -> int:
        return 0
