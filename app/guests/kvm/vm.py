"""A virtual machine of the real kernel as the core's ``Vm``.

Every ioctl goes to the kernel and its answer is the kernel's; ``memslots`` is a copy of what succeeded, for
observers. The two proposed ioctls do not exist there: they are what a VMM can do in userspace.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import re
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from kickstand.core.arch.coalesced import CoalescedIo, Entry
from kickstand.core.atomics import Task, outside
from kickstand.core.errors import KvmError
from kickstand.core.ioctls.slots import trace_slot
from kickstand.core.kvm_main import AnyVcpu
from kickstand.core.memslots import Change, Region, Settled, Slot
from kickstand.core.memslots.dirty_pages import DirtyPages
from kickstand.core.trace import Tracer
from kickstand.core.uapi import (
    KVM_CLEAR_DIRTY_LOG,
    KVM_DIRTY_LOG,
    KVM_USERSPACE_MEMORY_REGION,
    PAGE_SHIFT,
    MemFlag,
)
from kickstand.core.variants import variant as find_variant
from kickstand.core.vm import Switches, System, Vm
from kickstand.core.wiring.interrupts import Interrupts
from kickstand.guests.host_memory import HostMemory
from kickstand.guests.kvm import device
from kickstand.guests.kvm.addresses import Addresses
from kickstand.guests.kvm.device import Device
from kickstand.guests.kvm.interrupts import DeviceInterrupts
from kickstand.guests.kvm.thread import Worker
from kickstand.guests.kvm.vcpu import DeviceVcpu

IN_USERSPACE = ("none", "accel_blocker", "signal")
DIRTY_BYTE = re.compile(rb"[^\0]")


def userspace_variant(name: str) -> str:
    """The variant that does what ``name`` stands for without a changed kernel: itself, or QEMU's accel-blocker."""
    find_variant(name)
    return name if name in IN_USERSPACE else "accel_blocker"


class DeviceRing(CoalescedIo):
    """The kernel's ring of coalesced writes, which is mapped with each vCPU."""

    def __init__(self, vm: DeviceVm) -> None:
        super().__init__()
        self._vm = vm

    def drain(self) -> list[Entry]:
        vcpu = next(iter(self._vm.vcpus.values()), None)
        return vcpu.page.take_coalesced() if isinstance(vcpu, DeviceVcpu) else []


class DeviceVm(Vm):
    """Raises ``KvmError`` EOPNOTSUPP, with the reason, where /dev/kvm cannot be used."""

    def __init__(
        self,
        vm_id: str,
        variant: str,
        memory: HostMemory,
        *,
        system: System,
        irqchip: bool = False,
        switches: Switches,
        trace: Tracer,
    ) -> None:
        self.device = Device()
        self.fd = self.device.create_vm()
        self.addresses = Addresses(memory)
        self._worker: Worker | None = None
        self._closed = False
        self._deleted: dict[int, DirtyPages] = {}  # the last log of slots that were deleted
        super().__init__(
            vm_id, find_variant(userspace_variant(variant)), _no_guest, system=system, switches=switches, trace=trace
        )
        self.arch.coalesced = DeviceRing(self)
        self.interrupts: Interrupts = DeviceInterrupts(self.fd, self)
        if irqchip:
            try:
                self._create_irqchip()
            except KvmError:
                self.close()
                raise

    async def _in_worker(self, work: Callable[[], Any], then: Callable[[], None] = lambda: None) -> None:
        """Make a call in the VM's thread; ``then`` follows its success even if nobody waits any more."""
        if self._worker is None:
            self._worker = Worker(f"{self.id}/slots")
        future = self._worker.call(work)
        future.add_done_callback(lambda done: None if done.cancelled() or done.exception() else then())
        error = await outside(_settled(future))
        if error is not None:
            raise error

    # -- vCPUs -----------------------------------------------------------------------------------------------

    async def create_vcpu(self, vcpu_id: int, task: Task) -> AnyVcpu:
        """KVM_CREATE_VCPU, and KVM_SET_CPUID2 with everything the kernel supports."""
        await self.check_alive("KVM_CREATE_VCPU")
        fd = device.ioctl(self.fd, "CREATE_VCPU", vcpu_id)
        try:
            vcpu = DeviceVcpu(self, vcpu_id, fd, self.device)
        except BaseException:
            os.close(fd)
            raise
        self.vcpus[vcpu_id] = vcpu
        await self.variant.vcpu_created(vcpu)
        await self.lifetime.add(vcpu_id)
        return vcpu

    # -- memory ----------------------------------------------------------------------------------------------

    async def set_region(self, region: Region) -> Change:
        old = self.memslots.slots.get(region.slot)
        await self._remember_log(region)
        value = {
            "slot": region.slot,
            "flags": region.flags,
            "guest_phys_addr": region.guest_phys_addr,
            "memory_size": region.memory_size,
            "userspace_addr": self.addresses.of_slot(region),
        }
        try:
            await self._in_worker(
                partial(device.write, self.fd, "SET_USER_MEMORY_REGION", KVM_USERSPACE_MEMORY_REGION, value),
                partial(self._copy, region),
            )
        finally:
            self.addresses.keep_only(self.memslots.slots.values())
        return _change(old, self.memslots.slots.get(region.slot))

    def _copy(self, region: Region) -> None:
        """Repeat a slot that the kernel made or removed."""
        new = _slot(region) if region.memory_size else None
        old = self.memslots.slots.get(region.slot)
        _at_once(self.memslots.publish(((region.slot, new),)))
        shown = new or old
        if shown is not None:
            trace_slot(self.trace, _change(old, new), shown)

    async def _set_regions(self, regions: Sequence[Region]) -> list[Change]:
        raise KvmError(errno.ENOTTY, "KVM_SET_USER_MEMORY_REGION_LIST", "a real kernel does not know this ioctl")

    async def restore_slots(self, settled: Settled) -> None:
        """The undo of a transaction. The kernel's bitmap of a deleted slot is gone; what it held is remembered here."""
        before, _ = settled
        for slot in [slot for slot in self.memslots.slots.values() if before.get(slot.id) != slot]:
            await self.set_region(Region(slot.id, 0, 0, 0, 0))
        for slot in before.values():
            if slot.id not in self.memslots.slots:
                log = self._deleted.get(slot.id, DirtyPages())
                await self.set_region(slot.region())
                if slot.logged:
                    self.memslots.dirty[slot.id] = log

    async def _remember_log(self, region: Region) -> None:
        """Read the log of a slot that is about to be deleted, as VMMs do."""
        old = self.memslots.slots.get(region.slot)
        if old is None or not old.logged:
            self._deleted.pop(region.slot, None)
        elif not region.memory_size:
            log = DirtyPages(await self._fetch_dirty(region.slot))
            self._deleted[region.slot] = log
            self.memslots.dirty[region.slot] = log.copy()  # in case the kernel refuses

    async def _fetch_dirty(self, slot: int) -> DirtyPages:
        known = self.memslots.slots.get(slot)
        bitmap = ctypes.create_string_buffer(_bitmap_bytes(known.npages if known is not None else 0))
        value = {"slot": slot, "dirty_bitmap": ctypes.addressof(bitmap)}
        await self._in_worker(partial(device.write, self.fd, "GET_DIRTY_LOG", KVM_DIRTY_LOG, value))
        pages = self.memslots.dirty.get(slot, DirtyPages())
        self.memslots.dirty[slot] = DirtyPages()
        pages.update(_pages(bitmap.raw))
        return pages

    async def _clear_dirty(self, slot: int, first_page: int, num_pages: int, bits: tuple[int, ...] | None) -> None:
        known = self.memslots.slots.get(slot)
        pages = min(num_pages, known.npages if known is not None else 0)
        bitmap = bytearray(_bitmap_bytes(pages))
        asked = range(pages) if bits is None else bits
        for bit in asked:
            if bit < pages:
                bitmap[bit // 8] |= 1 << bit % 8
        buffer = (ctypes.c_char * len(bitmap)).from_buffer(bitmap)
        value = {
            "slot": slot,
            "num_pages": num_pages,
            "first_page": first_page,
            "dirty_bitmap": ctypes.addressof(buffer),
        }
        await self._in_worker(partial(device.write, self.fd, "CLEAR_DIRTY_LOG", KVM_CLEAR_DIRTY_LOG, value))
        if known is not None and slot in self.memslots.dirty:
            self.memslots.dirty[slot].difference_update(frozenset(first_page + bit for bit in asked))

    # -- interrupts ------------------------------------------------------------------------------------------

    def _create_irqchip(self) -> None:
        device.ioctl(self.fd, "CREATE_IRQCHIP")
        self.irqchip = True

    async def create_irqchip(self, *, split: bool = False, pins: int = 0) -> None:
        """KVM_CREATE_IRQCHIP. EOPNOTSUPP: a split one."""
        await self.check_alive("KVM_CREATE_IRQCHIP")
        if split:
            raise KvmError(errno.EOPNOTSUPP, "KVM_ENABLE_CAP", "a split irqchip is for emulated machines")
        self._create_irqchip()

    # -- the end ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close every descriptor, once. No vCPU is in KVM_RUN any more."""
        if self._closed:
            return
        self._closed = True
        for vcpu in self.vcpus.values():
            if isinstance(vcpu, DeviceVcpu):
                vcpu.close()
        if self._worker is not None:
            self._worker.stop()
            self._worker.join(1.0)
        os.close(self.fd)
        self.device.close()
        self.addresses.keep_only(())


async def _settled(future: asyncio.Future[Any]) -> KvmError | None:
    """Wait for a call, which goes on if the waiter is cancelled; its failure is a value here."""
    try:
        await asyncio.shield(future)
    except KvmError as error:
        return error
    return None


def _no_guest(_vcpu: AnyVcpu) -> Any:
    """A vCPU of the kernel makes its own."""
    return None


def _slot(region: Region) -> Slot:
    return Slot(
        region.slot,
        region.guest_phys_addr >> PAGE_SHIFT,
        region.memory_size >> PAGE_SHIFT,
        MemFlag(region.flags),
        region.userspace_addr,
    )


def _change(old: Slot | None, new: Slot | None) -> Change:
    if old is None or new is None:
        return Change.NOTHING if old is new else Change.DELETE if new is None else Change.CREATE
    if old.base_gfn != new.base_gfn:
        return Change.MOVE
    return Change.NOTHING if old == new else Change.FLAGS_ONLY


def _bitmap_bytes(pages: int) -> int:
    return max(8, -(-pages // 64) * 8)


def _pages(bitmap: bytes) -> tuple[int, ...]:
    return tuple(
        found.start() * 8 + bit
        for found in DIRTY_BYTE.finditer(bitmap)
        for bit in range(8)
        if bitmap[found.start()] >> bit & 1
    )


def _at_once(core: Coroutine[Any, Any, Any]) -> None:
    """Perform an operation that never blocks."""
    with contextlib.suppress(StopIteration):
        core.send(None)
