"""Bonzini's alternative to the semaphore."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.core.rwsem import Srcu
from app.core.variants.sticky import Sticky

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from app.core.atomics import Task
    from app.core.vcpu import Vcpu
    from app.core.vm import Vm


class SrcuVariant(Sticky):
    """An SRCU read section in place of the semaphore: readers never wait behind a writer."""

    def __init__(self, vm: Vm) -> None:
        super().__init__(vm)
        self.transactions: Srcu = vm.share(Srcu())

    async def wait_for_readers(self, task: Task) -> None:
        await self.transactions.synchronize()

    async def run_begin(self, vcpu: Vcpu) -> object | None:
        index = await self.transactions.read_lock()
        return (index,)

    def run_end(self, vcpu: Vcpu, held: object) -> Awaitable[None]:
        assert isinstance(held, tuple)
        (index,) = held
        return self.transactions.read_unlock(index)
