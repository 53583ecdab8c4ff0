"""Bonzini's alternative to the semaphore."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kickstand.core.shared.rwsem import Srcu
from kickstand.core.variants.sticky import Sticky

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from kickstand.core.atomics import Task
    from kickstand.core.kvm_main import AnyVcpu
    from kickstand.core.vm import Vm


class SrcuVariant(Sticky):
    """An SRCU read section in place of the semaphore: readers never wait behind a writer."""

    def __init__(self, vm: Vm) -> None:
        super().__init__(vm)
        self.transactions: Srcu = vm.share(Srcu())

    async def wait_for_readers(self, task: Task) -> None:
        await self.transactions.synchronize()

    async def run_begin(self, vcpu: AnyVcpu) -> object | None:
        index = await self.transactions.read_lock()
        return (index,)

    def run_end(self, vcpu: AnyVcpu, held: object) -> Awaitable[None]:
        assert isinstance(held, tuple)
        (index,) = held
        return self.transactions.read_unlock(index)
