"""No new ioctl: the kernel infers from the slot changes when vCPUs have to be held."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from kickstand.core.atomics import Shared, Task, atomic, blocked
from kickstand.core.uapi import PAGE_SHIFT
from kickstand.core.variants.holds import Holds

if TYPE_CHECKING:
    from kickstand.core.kvm_main import AnyVcpu
    from kickstand.core.memslots import Region
    from kickstand.core.vm import Vm

Range = tuple[int, int]  # first page, and the one after the last


class Holes(Shared):
    """The memory that a process has deleted and not covered again, and which of its threads has deleted last."""

    __slots__ = ("deleter", "thread", "ranges")
    FIELDS = ("deleter", "thread", "ranges")

    def __init__(self) -> None:
        super().__init__()
        self.deleter: str | None = None
        self.thread: str | None = None
        self.ranges: tuple[Range, ...] = ()

    @atomic
    async def open(self, process: str, tid: str, gone: Range) -> bool:
        """``tid`` deletes these pages; true for the first hole of its process. Processes that delete are serialised."""
        while self.deleter not in (None, process):
            await blocked(self)
        first, self.deleter, self.thread = self.deleter is None, process, tid
        self.ranges += (gone,)
        return first

    @atomic
    async def cover(self, process: str, there: Range) -> bool:
        """A thread of ``process`` has created these pages; true if that closes the last hole."""
        if process != self.deleter:
            return False
        self.ranges = tuple(rest for hole in self.ranges for rest in _without(hole, there))
        return self._closed()

    @atomic
    async def forget(self, tid: str) -> bool:
        """``tid`` goes on to KVM_RUN: what it has deleted is gone for good. True if it had deleted something."""
        if tid != self.thread:
            return False
        self.ranges = ()
        return self._closed()

    @atomic
    async def settle(self, process: str) -> bool:
        """``process`` says that what it has deleted is gone for good. True if it had deleted something."""
        if process != self.deleter:
            return False
        self.ranges = ()
        return self._closed()

    def _closed(self) -> bool:
        if self.ranges:
            return False
        self.deleter = self.thread = None
        self.changed()
        return True


def _without(hole: Range, there: Range) -> list[Range]:
    parts = ((hole[0], min(hole[1], there[0])), (max(hole[0], there[1]), hole[1]))
    return [(first, end) for first, end in parts if first < end]


class Inferred(Holds):
    """A DELETE holds all vCPUs until its thread's next KVM_RUN, or until CREATE covers what is gone."""

    protects_by: ClassVar[str] = "none"

    def __init__(self, vm: Vm) -> None:
        super().__init__(vm)
        self.holes: Holes = vm.share(Holes())

    async def kick(self, task: Task) -> bool:
        """There is no such ioctl."""
        return False

    async def resume(self, task: Task) -> int:
        """What the caller's process has deleted is gone for good. Nobody else needs this ioctl."""
        return await super().resume(task) if await self.holes.settle(task.process) else 0

    async def take_back(self, task: Task, *, opened: bool) -> None:
        """Nothing was done."""

    async def region_begin(self, region: Region, task: Task) -> None:
        if region.memory_size:
            return
        slot = dict(await self.vm.memslots.active()).get(region.slot)
        if slot is None:
            return
        if await self.holes.open(task.process, task.tid, (slot.base_gfn, slot.end_gfn)):
            await super().kick(task)

    async def region_end(self, region: Region, task: Task) -> None:
        first = region.guest_phys_addr >> PAGE_SHIFT
        there = (first, first + (region.memory_size >> PAGE_SHIFT))
        if region.memory_size and await self.holes.cover(task.process, there):
            await super().resume(task)

    async def regions_done(self, task: Task) -> None:
        if await self.holes.forget(task.tid):
            await super().resume(task)

    async def run_begin(self, vcpu: AnyVcpu) -> object | None:
        await self.regions_done(vcpu.task)
        return await super().run_begin(vcpu)
