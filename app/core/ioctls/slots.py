"""Ioctls of a VM descriptor about memory: slots, one by one or as a batch, and their dirty pages."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from kickstand.core.arch.kvm_arch import KvmArch
from kickstand.core.atomics import Killed, Mutex, Task, preempt
from kickstand.core.errors import KvmError
from kickstand.core.kvm_main import AnyVcpu, make_all_cpus_request
from kickstand.core.memslots import (
    ADDRESS_SPACES,
    SET_MEMORY,
    Change,
    Memslots,
    Plan,
    Region,
    Settled,
    Slot,
    SlotTable,
    invalidated,
    plan,
)
from kickstand.core.shared.requests import Request
from kickstand.core.shared.rwsem import Srcu
from kickstand.core.trace import Tracepoint, Tracer
from kickstand.core.uapi import NR_MEMSLOTS

if TYPE_CHECKING:
    from kickstand.core.variants import Variant

T = TypeVar("T")
BREATH = 512  # regions of a batch that are looked at without giving way


class SlotIoctls(ABC):
    """What they use of a VM is named here."""

    arch: KvmArch
    vcpus: dict[int, AnyVcpu]
    memslots: Memslots
    slots_lock: Mutex
    srcu: Srcu
    variant: Variant
    flush_guests: bool
    trace: Tracer

    @abstractmethod
    async def check_alive(self, ioctl: str) -> None: ...

    @abstractmethod
    async def online_vcpus(self) -> tuple[AnyVcpu, ...]: ...

    async def set_user_memory_region(self, region: Region, task: Task) -> Change:
        """KVM_SET_USER_MEMORY_REGION: create, delete (size 0), move, or change flags; says which.

        Errors as ``memslots.plan``, EIO on a dead VM. Returns after every guest has dropped the old map.
        """
        await self.check_alive(SET_MEMORY)
        await self.variant.region_begin(region, task)
        change = await self.with_slots_lock(task, partial(self.set_region, region))
        await self.variant.region_end(region, task)
        return change

    async def set_region(self, region: Region) -> Change:
        """The ioctl under ``slots_lock``. A caller that is killed before the new set is active leaves the old one."""
        what = plan(dict(await self.memslots.concerned(region)), region)
        if what.change in (Change.DELETE, Change.MOVE):
            await self._invalidate((what,))
        if what.change is not Change.NOTHING:
            await self.memslots.publish(((region.slot, what.new),))
            self._trace_slot(what)
            await self.srcu.synchronize()
        return what.change

    async def _invalidate(self, plans: Sequence[Plan]) -> None:
        """``kvm_invalidate_memslot``: INVALID copies first, so that no new translation is made; then zap."""
        valid = tuple([(what.old.id, what.old) for what in plans if what.old is not None])
        await self.memslots.publish(tuple([(slot, invalidated(old)) for slot, old in valid]), final=False)
        try:
            await self.srcu.synchronize()
            await self._flush()
        except Killed:
            await self.memslots.publish(valid)
            raise

    async def _flush(self) -> None:
        """``kvm_flush_remote_tlbs``: running guests leave guest mode once."""
        if self.flush_guests:
            vcpus = await self.online_vcpus()
            await make_all_cpus_request(vcpus, Request.TLB_FLUSH)

    async def set_user_memory_region_list(self, regions: Sequence[Region], task: Task) -> list[Change]:
        """The batch ioctl that was proposed first: all of ``regions`` in order, or none, in one publication.

        Slots that go or move are INVALID meanwhile: a guest's page fault on them is retried, an emulated
        access sees a hole. Errors as ``memslots.plan``; nothing has changed then.
        """
        await self.check_alive("KVM_SET_USER_MEMORY_REGION_LIST")
        return await self.with_slots_lock(task, partial(self._set_regions, regions))

    async def _set_regions(self, regions: Sequence[Region]) -> list[Change]:
        active = dict(await self.memslots.active())
        after = SlotTable(active.values())
        plans: list[Plan] = []
        for number, region in enumerate(regions, 1):
            try:
                what = plan(after.concerned(region), region)
            except KvmError as error:
                raise KvmError(
                    error.errno, error.ioctl, error.detail, field=error.field, operation=number - 1
                ) from None
            plans.append(what)
            after.change(((region.slot, what.new),))
            if not number % BREATH:
                await preempt()  # ``cond_resched``: nothing is published yet, and ``slots_lock`` is held
        gone = [
            Plan(Change.DELETE, old, None)
            for slot, old in active.items()
            if (now := after.slots.get(slot)) is not old and now != old
        ]
        if gone:
            await self._invalidate(gone)
        touched = tuple((slot, after.slots.get(slot)) for slot in dict.fromkeys(region.slot for region in regions))
        await self.memslots.publish(touched)
        await self._trace_slots(iter(plans))
        await self.srcu.synchronize()
        return [what.change for what in plans]

    async def _trace_slots(self, plans: Iterator[Plan]) -> None:
        """Report them, giving way now and then. They are published: a caller that is killed meanwhile reports all."""
        try:
            for number, what in enumerate(plans, 1):
                self._trace_slot(what)
                if not number % BREATH:
                    await preempt()
        finally:
            for what in plans:
                self._trace_slot(what)

    async def restore_slots(self, settled: Settled) -> None:
        """Put the slots of ``memslots.settled`` back, under ``slots_lock``: a transaction failed midway.

        No page that was dirty then, or was written since, is missing from the bitmaps.
        """
        await self.memslots.restore(settled)
        await self._flush()

    async def get_dirty_log(self, slot: int, task: Task) -> AbstractSet[int]:
        """KVM_GET_DIRTY_LOG: the pages of ``slot`` written since the last call, in order; and forget them.

        EINVAL: no such slot number; ENOENT: the slot is absent or not logged.
        """
        await self.check_alive("KVM_GET_DIRTY_LOG")
        return await self.with_slots_lock(task, partial(self._fetch_dirty, slot))

    async def _fetch_dirty(self, slot: int) -> AbstractSet[int]:
        await self._logged("KVM_GET_DIRTY_LOG", slot)
        pages = await self.memslots.fetch_dirty(slot)
        await self._flush()  # the next write to each page is seen again
        return pages

    async def clear_dirty_log(
        self, slot: int, first_page: int, num_pages: int, bits: Sequence[int] | None, task: Task
    ) -> None:
        """KVM_CLEAR_DIRTY_LOG: forget ``first_page + n`` for every n in ``bits`` (None: for all) below ``num_pages``.

        EINVAL: ``first_page`` no multiple of 64, or a range past the end, or ``num_pages`` no multiple of
        64 without reaching the end; ENOENT as for GET.
        """
        await self.check_alive("KVM_CLEAR_DIRTY_LOG")
        wanted = None if bits is None else tuple(bits)
        await self.with_slots_lock(task, partial(self._clear_dirty, slot, first_page, num_pages, wanted))

    async def _clear_dirty(self, slot: int, first_page: int, num_pages: int, bits: tuple[int, ...] | None) -> None:
        name = "KVM_CLEAR_DIRTY_LOG"
        _check_slot_number(name, slot)
        if first_page % 64:
            raise KvmError(errno.EINVAL, name, f"{first_page} is not a multiple of 64", field="first_page")
        logged = await self._logged(name, slot)
        left = logged.npages - first_page
        if left < 0 or num_pages > left or (num_pages < left and num_pages % 64):
            raise KvmError(
                errno.EINVAL,
                name,
                f"{num_pages} pages from {first_page} pass the end of the slot "
                f"({logged.npages}), or end before it and are no multiple of 64",
                field="num_pages",
            )
        if bits is None:
            await self.memslots.clear_dirty(slot, range(first_page, first_page + num_pages))
        else:
            await self.memslots.clear_dirty(slot, frozenset([first_page + bit for bit in bits if bit < num_pages]))
        await self._flush()

    async def reset_dirty_rings(self, task: Task) -> int:
        """KVM_RESET_DIRTY_RINGS: how many entries userspace had harvested; their pages are watched again.

        EINVAL: the VM has no rings.
        """
        name = "KVM_RESET_DIRTY_RINGS"
        await self.check_alive(name)
        if not self.arch.dirty_ring_entries:
            raise KvmError(errno.EINVAL, name, "pages are logged in bitmaps")
        return await self.with_slots_lock(task, self._reset_rings)

    async def _reset_rings(self) -> int:
        rings = [vcpu.dirty_ring for vcpu in self.vcpus.values() if vcpu.dirty_ring is not None]
        count = sum(ring.reset() for ring in rings)
        if count:
            await self.memslots.watch_again()
            await self._flush()
        return count

    async def _logged(self, ioctl: str, slot: int) -> Slot:
        if self.arch.dirty_ring_entries:
            raise KvmError(errno.ENXIO, ioctl, "dirty pages are in the vCPUs' rings")
        _check_slot_number(ioctl, slot)
        found = await self.memslots.get(slot)
        if found is None or not found.logged:
            raise KvmError(errno.ENOENT, ioctl, f"slot {slot} is absent or not logged", field="slot")
        return found

    async def with_slots_lock(self, task: Task, body: Callable[[], Awaitable[T]]) -> T:
        """Run ``body`` as an ioctl that uses the slots: under ``slots_lock``, and held where a variant holds these.

        EINTR: a signal came while it was held, and nothing was done. A caller that is killed gives the lock back.
        """
        if not await self.variant.ioctl_begin(task):
            raise KvmError(errno.EINTR, "ioctl", "a signal came while the ioctl was held back")
        try:
            await self.slots_lock.lock(task.tid)
            try:
                return await body()
            finally:
                await self.slots_lock.unlock()
        finally:
            await self.variant.ioctl_end(task)

    def _trace_slot(self, what: Plan) -> None:
        slot = what.new or what.old
        if slot is not None:
            trace_slot(self.trace, what.change, slot)


def trace_slot(trace: Tracer, change: Change, slot: Slot) -> None:
    """Report that a slot came, went or changed."""
    where = {"slot": slot.id, "gpa": slot.region().guest_phys_addr, "npages": slot.npages}
    trace(Tracepoint.KVM_MEMSLOT, None, {"change": change.value, **where})


def _check_slot_number(ioctl: str, slot: int) -> None:
    if slot < 0 or slot >> 16 >= ADDRESS_SPACES or slot & 0xFFFF >= NR_MEMSLOTS:
        raise KvmError(errno.EINVAL, ioctl, f"slot number {slot} is not below {NR_MEMSLOTS}", field="slot")
