"""The patch as posted, but with one semaphore per VM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kickstand.core.kvm_main import clear_all_cpus_request, make_all_cpus_request
from kickstand.core.shared.requests import KVM_REQ_USERSPACE_KICK, Request
from kickstand.core.shared.rwsem import READ, RwSemaphore
from kickstand.core.trace import WAITING
from kickstand.core.variants.base import Variant

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from kickstand.core.atomics import Task
    from kickstand.core.kvm_main import AnyVcpu
    from kickstand.core.vm import Vm


class Sticky(Variant):
    """The patch as posted, one semaphore per VM: the request stays until RESUME."""

    def __init__(self, vm: Vm) -> None:
        super().__init__(vm)
        self.memory_transaction: RwSemaphore = vm.share(RwSemaphore(steal=vm.switches.rwsem_steal))

    async def kick(self, task: Task) -> bool:
        opened, self.open_windows = not self.open_windows, 1
        await make_all_cpus_request(await self.vm.online_vcpus(), Request.USERSPACE_KICK)
        await self.wait_for_readers(task)
        return opened

    async def wait_for_readers(self, task: Task) -> None:
        """Every vCPU that is in KVM_RUN leaves it: nobody stays a writer for longer than that."""
        if await self.memory_transaction.down_write(task, killable=self.vm.switches.killable):
            await self.memory_transaction.up_write()

    async def resume(self, task: Task) -> int:
        self.open_windows = 0
        return await clear_all_cpus_request(await self.vm.online_vcpus(), Request.USERSPACE_KICK)

    async def take_back(self, task: Task, *, opened: bool) -> None:
        if opened:
            self.open_windows = 0
            await clear_all_cpus_request(await self.vm.online_vcpus(), Request.USERSPACE_KICK)

    async def run_begin(self, vcpu: AnyVcpu) -> object | None:
        semaphore = self.memory_transaction
        if await semaphore.read_or_queue(vcpu.tid):
            return True
        vcpu.show(WAITING)
        return await semaphore.wait(vcpu.task, READ, killable=self.vm.switches.killable) or None

    def run_end(self, vcpu: AnyVcpu, held: object) -> Awaitable[None]:
        return self.memory_transaction.up_read()

    def entry_test(self, vcpu: AnyVcpu) -> Awaitable[bool]:
        return vcpu.requests.test(KVM_REQ_USERSPACE_KICK)

    def exit_test(self, vcpu: AnyVcpu) -> Awaitable[bool]:
        return vcpu.requests.test(KVM_REQ_USERSPACE_KICK)

    def block_test(self, vcpu: AnyVcpu) -> Awaitable[bool]:
        return vcpu.requests.test(KVM_REQ_USERSPACE_KICK)
