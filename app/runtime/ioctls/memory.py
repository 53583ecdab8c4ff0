"""The ioctls of a machine that concern memory: the VMM's own, slots, transactions, dirty logs."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from mmap import mmap
from operator import attrgetter
from typing import Any

from kickstand.core.errors import KvmError
from kickstand.core.memslots import SET_MEMORY, Region, Slot
from kickstand.core.memslots.dirty_pages import DirtyPages
from kickstand.core.uapi import KVM_USERSPACE_MEMORY_REGION
from kickstand.guests.host_memory import Arena, Budget, HostMemory
from kickstand.guests.mapping import give_back
from kickstand.runtime.calls.arguments import BITS_PER_LONG, Argument, bitmap, set_bits
from kickstand.runtime.calls.ioctl import ioctl
from kickstand.runtime.driver.tasks import to_the_end
from kickstand.runtime.events import EventLog
from kickstand.runtime.observed import views
from kickstand.runtime.vmm.memory import RecordedMemory
from kickstand.runtime.vmm.process import Process
from kickstand.runtime.windows.transactions import Transactions
from kickstand.runtime.windows.window import Window

PORTIONS = 16  # of dirty pages that are listed in one turn of the loop


def _region2(region: Argument) -> tuple[Region]:
    return (Region(**{name: region[name] for name in KVM_USERSPACE_MEMORY_REGION.names}),)


def _fill_bitmap(pages: list[int], log: Argument) -> None:
    npages = log.target.vm.memslots.slots[log["slot"]].npages
    log.memory.write(log["dirty_bitmap"], bitmap(pages, npages))


def _pages(log: Argument) -> tuple[int, int, int, Sequence[int]]:
    """The bits are read only if the slot has so many pages: else the ioctl refuses, whatever they are."""
    slot = log.target.vm.memslots.slots.get(log["slot"])
    fits = slot is not None and log["first_page"] + log["num_pages"] <= slot.npages
    length = -(-log["num_pages"] // BITS_PER_LONG) * BITS_PER_LONG // 8
    bits = set_bits(log.memory.read(log["dirty_bitmap"], length)) if fits else ()
    return log["slot"], log["first_page"], log["num_pages"], bits


class MemoryIoctls(Process):
    """What a machine has of them. ``budget`` bounds the VMM's memory."""

    def __init__(self, vm_id: str, seed: int, log: EventLog, budget: Budget | None) -> None:
        super().__init__(vm_id, seed, log)
        self.memory: HostMemory = RecordedMemory(budget, self.history)
        self.window = Window(self)
        self.transactions = Transactions(self, self.window)
        self._mapping = asyncio.Lock()

    @ioctl("mmap", durable=True)
    async def allocate_memory(self, size: int, name: str = "", unit: bytes = b"") -> Arena:
        """The VMM's mmap, in a thread: a disk may take its time. What and errors as ``HostMemory.allocate``.

        Cancelled, it has happened or not; EIO if the VM is destroyed meanwhile.
        """
        async with self._mapping:  # addresses are given in order
            return await to_the_end(self._allocate(size, name, unit))

    async def _allocate(self, size: int, name: str, unit: bytes) -> Arena:
        if self._dead:
            raise self.gone("mmap")
        size = self.memory.check(size, name)
        self.memory.budget.take(size)
        try:
            buffer = await asyncio.to_thread(self.memory.mapped, name, size, unit)
        finally:
            self.memory.budget.take(-size, -1)
        if self._dead:
            await asyncio.to_thread(give_back, buffer)
            raise self.gone("mmap")
        return self.memory.hand_out(name, buffer, unit)

    @ioctl("write", admitted=True)  # what is written is in the memory's own file
    async def write_memory(self, hva: int, data: bytes) -> None:
        """The VMM writes its own memory. EFAULT: not all of the range is backed; nothing is written then."""
        self.memory.write(hva, data)

    @ioctl(SET_MEMORY, durable=True, recorded=True, takes=lambda region: (Region(**region.fields),))
    async def set_user_memory_region(self, region: Region) -> None:
        """KVM_SET_USER_MEMORY_REGION."""
        await self.by_thread(partial(self.vm.set_user_memory_region, region))

    @ioctl("KVM_SET_USER_MEMORY_REGION2", takes=_region2)
    async def set_user_memory_region2(self, region: Region) -> None:
        """KVM_SET_USER_MEMORY_REGION2: the same, as long as nobody has private memory."""
        await self.set_user_memory_region(region)

    @ioctl("memory_transaction", durable=True, recorded=True)
    async def memory_transaction(
        self, regions: Sequence[Region], protect: str | None = None, timeout_ms: int | None = None
    ) -> dict[str, Any]:
        """Apply ``regions`` in order, all or none; what and errors as ``transactions.Transactions.perform``."""
        return await self.transactions.perform(regions, protect or self.vm.variant.protects_by, timeout_ms)

    @ioctl("KVM_GET_DIRTY_LOG", durable=True, recorded=True, takes=lambda log: (log["slot"],), fills=_fill_bitmap)
    async def get_dirty_log(self, slot: int) -> list[int]:
        """KVM_GET_DIRTY_LOG."""
        return await _listed(await self.by_thread(partial(self.vm.get_dirty_log, slot)))

    @ioctl("KVM_CLEAR_DIRTY_LOG", durable=True, recorded=True, takes=_pages)
    async def clear_dirty_log(self, slot: int, first_page: int, num_pages: int, bits: Sequence[int] | None) -> None:
        """KVM_CLEAR_DIRTY_LOG; ``bits`` None stands for all of ``num_pages``."""
        await self.by_thread(partial(self.vm.clear_dirty_log, slot, first_page, num_pages, bits))

    def pages_from(self, slot: int, first_page: int) -> int:
        """How many pages a slot has from ``first_page`` on; 0: none, or no such slot."""
        found = self.vm.memslots.slots.get(slot)
        return max(0, found.npages - first_page) if found is not None else 0

    async def dirty_pages(self, slot: int) -> list[int]:
        """Those of a logged slot now, in order; nothing is forgotten. Of another: none."""
        return await _listed(self.vm.memslots.dirty.get(slot, ()))

    @ioctl("KVM_RESET_DIRTY_RINGS", durable=True, recorded=True, gives=int)
    async def reset_dirty_rings(self) -> int:
        """KVM_RESET_DIRTY_RINGS: how many entries were harvested. EINVAL: the VM has no rings."""
        return await self.by_thread(self.vm.reset_dirty_rings)

    @ioctl("dirty_ring", durable=True)
    async def harvest_dirty_ring(self, vcpu_id: int) -> list[tuple[int, int]]:
        """(slot, page) of what a vCPU's ring has, in order; they are marked as harvested. EINVAL: there is none."""
        ring = self.vcpu(vcpu_id).dirty_ring
        if ring is None:
            raise KvmError(errno.EINVAL, "dirty_ring", f"vcpu {vcpu_id} has no dirty ring")
        return ring.harvest()

    def regions(self) -> list[dict[str, Any]]:
        """The memory slots by number."""
        return list(self.each_region())

    def each_region(self) -> Iterator[dict[str, Any]]:
        """The memory slots that there are now by number, each described when it is asked for."""
        return _told(tuple(self.vm.memslots.slots.values()))

    async def give_memory_back(self) -> None:
        """The VM is gone, and no engine uses its memory any more."""
        self.history.shed()
        gone = self.memory.forget()
        if gone:
            await asyncio.to_thread(_give_back, gone)


def _told(slots: Iterable[Slot]) -> Iterator[dict[str, Any]]:
    """Their shapes by number; nothing of it is done before the first is asked for."""
    yield from map(views.region, sorted(slots, key=attrgetter("id")))


async def _listed(pages: Iterable[int]) -> list[int]:
    """The pages in order, listed over several turns of the loop."""
    found: list[int] = []
    log = pages if isinstance(pages, DirtyPages) else DirtyPages(pages)
    for number, portion in enumerate(log.portions(), 1):
        found += portion
        if not number % PORTIONS:
            await asyncio.sleep(0)
    return found


def _give_back(buffers: Iterable[mmap]) -> None:
    for buffer in buffers:
        give_back(buffer)
