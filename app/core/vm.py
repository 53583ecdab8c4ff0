"""One virtual machine: its vCPUs, its memory slots, and the ioctls of the VM descriptor.

``kick_all_running_vcpus`` and ``resume_all_kicked_vcpus`` are the two proposed ioctls; what they do is the
variant's business. Every public coroutine is one ioctl as a VMM issues it: the part of a variant that
lives in userspace (``ioctl_begin``, ``ioctl_end``) surrounds the part that lives in the kernel.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from app.core.atomics import Killed, Mutex, Shared, Task, atomic
from app.core.errors import KvmError
from app.core.memslots import ADDRESS_SPACES, SET_MEMORY, Change, Memslots, Plan, Region, Slot, invalidated, plan
from app.core.requests import Request, make_all_cpus_request
from app.core.rwsem import RwSemaphore, Srcu
from app.core.trace import Event, Tracer, no_trace
from app.core.uapi import MAX_VCPU_ID, MAX_VCPUS, NR_MEMSLOTS, MpState
from app.core.vcpu import Vcpu

if TYPE_CHECKING:
    from app.core.guest import Guest
    from app.core.variants import Variant

S = TypeVar("S", bound=Shared)
T = TypeVar("T")
BSP_VCPU_ID = 0  # the vCPU that starts by itself; KVM_SET_BOOT_CPU_ID, which would change it, is not emulated
GSI_COUNT = 24
FIRST_EXTERNAL_VECTOR = 32


@dataclass(frozen=True, slots=True)
class Switches:
    """Choices that are orthogonal to the variant."""

    rwsem_steal: bool = False  # a reader may take a semaphore that has just become free
    killable: bool = False  # waiting for the semaphore ends with a signal
    exit_test: str = "before_r"  # as posted; "after_r" is the repaired order that loses no exit


DEFAULT_SWITCHES = Switches()


def unshared(shared: S) -> S:
    """How the server shares objects: as they are."""
    return shared


class System:
    """The kvm module: what all VMs have in common."""

    def __init__(self, share: Callable[[Any], Any] = unshared) -> None:
        self.memory_transaction: RwSemaphore = share(RwSemaphore())


class Lifetime(Shared):
    """Whether the VM is dead, and which vCPUs are online, in order of creation."""

    __slots__ = ("dead", "online")
    FIELDS = ("dead", "online")

    def __init__(self) -> None:
        super().__init__()
        self.dead = False
        self.online: tuple[int, ...] = ()

    @atomic
    async def is_dead(self) -> bool:
        """``kvm->vm_dead``."""
        return self.dead

    @atomic
    async def kill(self) -> None:
        """``kvm_vm_dead``."""
        self.dead = True

    @atomic
    async def vcpus(self) -> tuple[int, ...]:
        """What ``kvm_for_each_vcpu`` visits."""
        return self.online

    @atomic
    async def add(self, vcpu_id: int) -> None:
        """The last step of KVM_CREATE_VCPU: from now on requests reach the vCPU."""
        self.online += (vcpu_id,)


class Vm:
    """``struct kvm``.

    ``variant`` and ``make_guest`` are factories; ``share`` is how a driver takes hold of shared objects;
    ``trace`` receives events.
    """

    def __init__(
        self,
        vm_id: str,
        variant: Callable[[Vm], Variant],
        make_guest: Callable[[Vcpu], Guest],
        *,
        system: System | None = None,
        irqchip: bool = False,
        switches: Switches = DEFAULT_SWITCHES,
        flush_guests: bool = False,
        share: Callable[[Any], Any] = unshared,
        trace: Tracer = no_trace,
    ) -> None:
        self.id = vm_id
        self.share = share
        self.trace = trace
        self.make_guest = make_guest
        self.flush_guests = flush_guests  # the engine caches translations, as hardware does
        self.system = system or System(share)
        self.irqchip = irqchip
        self.switches = switches
        self.lifetime: Lifetime = share(Lifetime())
        self.memslots: Memslots = share(Memslots())
        self.slots_lock: Mutex = share(Mutex())
        self.srcu: Srcu = share(Srcu())
        self.vcpus: dict[int, Vcpu] = {}
        self.variant = variant(self)

    # -- the two proposed ioctls -------------------------------------------------------------------------

    async def kick_all_running_vcpus(self, task: Task) -> bool:
        """KVM_KICK_ALL_RUNNING_VCPUS: returns once no vCPU is in KVM_RUN (if the variant keeps its word).

        True if the call changed something: the first of nested kicks does. Raises EIO on a dead VM. If the
        caller is killed, the kick is taken back.
        """
        await self.check_alive("KVM_KICK_ALL_RUNNING_VCPUS")
        self.trace(Event.KVM_KICK_ALL, None, {"phase": "requested"})
        try:
            changed = await self.variant.kick(task)
        except Killed:
            await self.variant.take_back(task)
            self.trace(Event.KVM_KICK_ALL, None, {"phase": "taken back"})
            raise
        self.trace(Event.KVM_KICK_ALL, None, {"phase": "completed"})
        return changed

    async def resume_all_kicked_vcpus(self, task: Task) -> int:
        """KVM_RESUME_ALL_KICKED_VCPUS: returns how many requests or holds it cleared; 0 without a kick."""
        await self.check_alive("KVM_RESUME_ALL_KICKED_VCPUS")
        self.trace(Event.KVM_RESUME_ALL, None, {"phase": "requested"})
        cleared = await self.variant.resume(task)
        self.trace(Event.KVM_RESUME_ALL, None, {"phase": "completed"})
        return cleared

    # -- vCPUs -------------------------------------------------------------------------------------------

    def prepare_vcpu(self, vcpu_id: int) -> Vcpu:
        """Make the structure of a vCPU that is not online yet."""
        boots = vcpu_id == BSP_VCPU_ID or not self.irqchip
        mp_state = MpState.RUNNABLE if boots else MpState.UNINITIALIZED
        return Vcpu(self, vcpu_id, mp_state)

    async def create_vcpu(self, vcpu_id: int, task: Task) -> Vcpu:
        """KVM_CREATE_VCPU. EINVAL: id or number over the limit; EEXIST: the id is taken; EIO: dead VM."""
        name = "KVM_CREATE_VCPU"
        await self.check_alive(name)
        online = await self.lifetime.vcpus()
        if not 0 <= vcpu_id < MAX_VCPU_ID:
            raise KvmError(errno.EINVAL, name, f"vcpu id {vcpu_id} is not below {MAX_VCPU_ID}", field="id")
        if len(online) >= MAX_VCPUS:
            raise KvmError(errno.EINVAL, name, f"a VM has at most {MAX_VCPUS} vcpus")
        if vcpu_id in online:
            raise KvmError(errno.EEXIST, name, f"vcpu {vcpu_id} exists", field="id")
        vcpu = self.vcpus.get(vcpu_id) or self.prepare_vcpu(vcpu_id)
        self.vcpus[vcpu_id] = vcpu
        await self.variant.vcpu_created(vcpu)
        await self.lifetime.add(vcpu_id)
        return vcpu

    async def online_vcpus(self) -> tuple[Vcpu, ...]:
        """The vCPUs that requests reach now."""
        return tuple([self.vcpus[vcpu_id] for vcpu_id in await self.lifetime.vcpus()])

    async def check_alive(self, ioctl: str) -> None:
        """Every ioctl on a dead VM is EIO."""
        if await self.lifetime.is_dead():
            raise KvmError(errno.EIO, ioctl, f"virtual machine {self.id} is dead")

    async def destroy(self) -> None:
        """``kvm_vm_dead``: every KVM_RUN ends with EIO, sleeping vCPUs included."""
        await self.lifetime.kill()
        vcpus = await self.online_vcpus()
        await make_all_cpus_request(vcpus, Request.VM_DEAD)
        for vcpu in vcpus:
            await vcpu.requests.make(Request.UNBLOCK)
            await vcpu.wake_up()

    # -- memory ------------------------------------------------------------------------------------------

    async def set_user_memory_region(self, region: Region, task: Task) -> Change:
        """KVM_SET_USER_MEMORY_REGION: create, delete (size 0), move, or change flags; says which.

        Errors as ``memslots.plan``, EIO on a dead VM. Returns after every guest has dropped the old map.
        """
        await self.check_alive(SET_MEMORY)
        return await self.with_slots_lock(task, partial(self._set_region, region))

    async def _set_region(self, region: Region) -> Change:
        slots = await self.memslots.active()
        what = plan(dict(slots), region)
        if what.change in (Change.DELETE, Change.MOVE):
            await self._invalidate((what,))
        if what.change is not Change.NOTHING:
            await self.memslots.publish(((region.slot, what.new),))
            await self.srcu.synchronize()
            self._trace_slot(what)
        return what.change

    async def _invalidate(self, plans: Sequence[Plan]) -> None:
        """``kvm_invalidate_memslot``: INVALID copies first, so that no new translation is made; then zap."""
        stand_ins = tuple((what.old.id, invalidated(what.old)) for what in plans if what.old is not None)
        await self.memslots.publish(stand_ins, final=False)
        await self.srcu.synchronize()
        await self._flush()

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
        after = dict(active)
        plans: list[Plan] = []
        for region in regions:
            what = plan(after, region)
            plans.append(what)
            if what.new is None:
                after.pop(region.slot, None)
            else:
                after[region.slot] = what.new
        gone = [Plan(Change.DELETE, old, None) for slot, old in active.items() if after.get(slot) != old]
        if gone:
            await self._invalidate(gone)
        touched = tuple((slot, after.get(slot)) for slot in dict.fromkeys(region.slot for region in regions))
        await self.memslots.publish(touched)
        await self.srcu.synchronize()
        for what in plans:
            self._trace_slot(what)
        return [what.change for what in plans]

    async def restore_slots(self, state: tuple[Any, ...], task: Task) -> None:
        """Put the slots and bitmaps of ``memslots.state`` back: the undo of a transaction that failed midway."""
        await self.with_slots_lock(task, partial(self._restore, state))

    async def _restore(self, state: tuple[Any, ...]) -> None:
        await self.memslots.restore(state)
        await self._flush()

    async def get_dirty_log(self, slot: int, task: Task) -> tuple[int, ...]:
        """KVM_GET_DIRTY_LOG: the pages of ``slot`` written since the last call, sorted; and forget them.

        EINVAL: no such slot number; ENOENT: the slot is absent or not logged.
        """
        await self.check_alive("KVM_GET_DIRTY_LOG")
        return await self.with_slots_lock(task, partial(self._fetch_dirty, slot))

    async def _fetch_dirty(self, slot: int) -> tuple[int, ...]:
        await self._logged("KVM_GET_DIRTY_LOG", slot)
        pages = await self.memslots.fetch_dirty(slot)
        await self._flush()  # the next write to each page is seen again
        return pages

    async def clear_dirty_log(
        self, slot: int, first_page: int, num_pages: int, bits: Sequence[int], task: Task
    ) -> None:
        """KVM_CLEAR_DIRTY_LOG: forget ``first_page + n`` for every n in ``bits`` below ``num_pages``.

        EINVAL: ``first_page`` no multiple of 64, or a range past the end, or ``num_pages`` no multiple of
        64 without reaching the end; ENOENT as for GET.
        """
        await self.check_alive("KVM_CLEAR_DIRTY_LOG")
        await self.with_slots_lock(task, partial(self._clear_dirty, slot, first_page, num_pages, tuple(bits)))

    async def _clear_dirty(self, slot: int, first_page: int, num_pages: int, bits: tuple[int, ...]) -> None:
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
        await self.memslots.clear_dirty(slot, tuple(first_page + bit for bit in bits if bit < num_pages))
        await self._flush()

    async def _logged(self, ioctl: str, slot: int) -> Slot:
        _check_slot_number(ioctl, slot)
        active = await self.memslots.active()
        found = dict(active).get(slot)
        if found is None or not found.logged:
            raise KvmError(errno.ENOENT, ioctl, f"slot {slot} is absent or not logged", field="slot")
        return found

    async def with_slots_lock(self, task: Task, body: Callable[[], Awaitable[T]]) -> T:
        """Run ``body`` as an ioctl that uses the slots: under ``slots_lock``, and held where a variant holds these."""
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

    # -- interrupts --------------------------------------------------------------------------------------

    async def create_irqchip(self) -> None:
        """KVM_CREATE_IRQCHIP. EEXIST: there is one; EINVAL: a vCPU exists already."""
        await self.check_alive("KVM_CREATE_IRQCHIP")
        if self.irqchip:
            raise KvmError(errno.EEXIST, "KVM_CREATE_IRQCHIP", "the irqchip exists")
        if self.vcpus:
            raise KvmError(errno.EINVAL, "KVM_CREATE_IRQCHIP", "it must come before the first vcpu")
        self.irqchip = True

    async def irq_line(self, irq: int, level: int) -> None:
        """KVM_IRQ_LINE: a rising edge reaches the boot CPU as vector 32 + ``irq``. ENXIO: no irqchip."""
        await self.check_alive("KVM_IRQ_LINE")
        if not self.irqchip:
            raise KvmError(errno.ENXIO, "KVM_IRQ_LINE", "there is no in-kernel irqchip")
        self.trace(Event.KVM_SET_IRQ, None, {"gsi": irq, "level": level})
        vcpus = await self.online_vcpus()
        if level and 0 <= irq < GSI_COUNT and vcpus:
            await self.interrupt(vcpus[0], FIRST_EXTERNAL_VECTOR + irq)

    async def signal_msi(self, address: int, data: int) -> bool:
        """KVM_SIGNAL_MSI: vector ``data & 0xff`` to the vCPU whose APIC id the address names.

        True if a vCPU took it. EINVAL: no irqchip.
        """
        await self.check_alive("KVM_SIGNAL_MSI")
        if not self.irqchip:
            raise KvmError(errno.EINVAL, "KVM_SIGNAL_MSI", "there is no in-kernel irqchip")
        self.trace(Event.KVM_MSI_SET_IRQ, None, {"address": address, "data": data})
        vcpus = await self.online_vcpus()
        targets = [vcpu for vcpu in vcpus if vcpu.id == address >> 12 & 0xFF]
        for vcpu in targets:
            await self.interrupt(vcpu, data & 0xFF)
        return bool(targets)

    async def interrupt(self, vcpu: Vcpu, vector: int) -> None:
        """The irqchip raises ``vector`` at ``vcpu``: queue it, ask for it to be looked at, kick."""
        await vcpu.arch.queue_vector(vector)
        await vcpu.requests.make(Request.EVENT)
        await vcpu.kick()

    def _trace_slot(self, what: Plan) -> None:
        slot = what.new or what.old
        if slot is not None:
            trace_slot(self.trace, what.change, slot)


def trace_slot(trace: Tracer, change: Change, slot: Slot) -> None:
    """Report that a slot came, went or changed."""
    where = {"slot": slot.id, "gpa": slot.region().guest_phys_addr, "npages": slot.npages}
    trace(Event.KVM_MEMSLOT, None, {"change": change.value, **where})


def _check_slot_number(ioctl: str, slot: int) -> None:
    if slot < 0 or slot >> 16 >= ADDRESS_SPACES or slot & 0xFFFF >= NR_MEMSLOTS:
        raise KvmError(errno.EINVAL, ioctl, f"slot number {slot} is not below {NR_MEMSLOTS}", field="slot")
