"""What the threads of a scenario do: one class an operation, its fields being the arguments in a file.

An operation has the name of its class in snake case. ``perform`` is what a thread does; the docstring's first line is
what users read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from kickstand.core.atomics import Killed
from kickstand.core.memslots import Region
from kickstand.explore.world.scenarios.items import Number, Operation, RegionItem, number, one_of
from kickstand.explore.world.threads import VmmThread

APIC_BUS = 0xFEE00000  # where MSIs are written; the vCPU's id stands from bit 12 on


class Kick(Operation):
    """Close the userspace gate, then KVM_KICK_ALL_RUNNING_VCPUS."""

    async def perform(self, thread: VmmThread) -> None:
        await thread.kick()


class Resume(Operation):
    """KVM_RESUME_ALL_KICKED_VCPUS, then open the userspace gate."""

    async def perform(self, thread: VmmThread) -> None:
        await thread.resume()


class SetMemoryRegion(RegionItem, Operation):
    """KVM_SET_USER_MEMORY_REGION; size 0 deletes."""

    @classmethod
    def of(cls, region: Region) -> SetMemoryRegion:
        """The call with ``region`` as its argument."""
        return cls(
            slot=region.slot,
            flags=region.flags,
            gpa=region.guest_phys_addr,
            size=region.memory_size,
            host=region.userspace_addr,
        )

    async def perform(self, thread: VmmThread) -> None:
        await thread.vm.set_user_memory_region(self.region(), thread.task)


class MemoryTransaction(Operation):
    """Operations under protection: as the variant protects (KICK, each in order, RESUME; or one list ioctl), or so."""

    operations: tuple[Any, ...]
    protect: Annotated[str, one_of("kick", "none", "list", "variant")] = "variant"

    async def perform(self, thread: VmmThread) -> None:
        kind = thread.vm.variant.protects_by if self.protect == "variant" else self.protect
        if kind == "kick":
            await thread.kick()
        try:
            if kind == "list":
                await self.listed(thread)
            else:
                await thread.each(self.operations)
        except Killed:  # as the server ends one whose caller has gone
            if kind == "kick":
                await thread.resume()
            raise
        if kind == "kick":
            await thread.resume()

    async def listed(self, thread: VmmThread) -> None:
        """All slot changes in one list ioctl, after everything else in the transaction."""
        for operation in self.operations:
            if not isinstance(operation, SetMemoryRegion):
                await operation.perform(thread)
        regions = [operation.region() for operation in self.operations if isinstance(operation, SetMemoryRegion)]
        await thread.vm.set_user_memory_region_list(regions, thread.task)


class GetDirtyLog(Operation):
    """KVM_GET_DIRTY_LOG."""

    slot: Number

    async def perform(self, thread: VmmThread) -> None:
        await thread.vm.get_dirty_log(self.slot, thread.task)


class CreateVcpu(Operation):
    """KVM_CREATE_VCPU, and its thread starts; ``id`` is one of ``hotplug``."""

    vcpu_of = ("id", "hotplug")
    id: Number

    async def perform(self, thread: VmmThread) -> None:
        await thread.vm.create_vcpu(self.id, thread.task)
        await thread.around.created[self.id].set()


class Signal(Operation):
    """A signal to a vCPU's thread."""

    vcpu_of = ("vcpu", "vcpus")
    vcpu: Number

    async def perform(self, thread: VmmThread) -> None:
        await thread.vm.vcpus[self.vcpu].send_signal()


class Interrupt(Operation):
    """An interrupt for a vCPU: an MSI to its local APIC, KVM_INTERRUPT where the irqchip is userspace's."""

    vcpu_of = ("vcpu", "vcpus")
    vcpu: Number
    vector: Annotated[int, number(16, 255)] = 32

    async def perform(self, thread: VmmThread) -> None:
        if thread.vm.irqchip:
            await thread.vm.signal_msi(APIC_BUS | self.vcpu << 12, self.vector)
        else:
            await thread.vm.vcpus[self.vcpu].interrupt(self.vector, thread.task.tid)


class Msi(Operation):
    """KVM_SIGNAL_MSI: ``address`` and ``data`` as a device writes them."""

    address: Number
    data: Number

    async def perform(self, thread: VmmThread) -> None:
        await thread.vm.signal_msi(self.address, self.data)


class Nmi(Operation):
    """KVM_NMI: waits until the vCPU is out of KVM_RUN, as every ioctl of a vCPU does."""

    vcpu_of = ("vcpu", "vcpus")
    vcpu: Number

    async def perform(self, thread: VmmThread) -> None:
        await thread.vm.vcpus[self.vcpu].inject_nmi(thread.task.tid)


class ImmediateExit(Operation):
    """Write ``immediate_exit`` of a vCPU's shared page: KVM_RUN answers EINTR as long as it is set."""

    vcpu_of = ("vcpu", "vcpus")
    vcpu: Number
    value: bool = True

    async def perform(self, thread: VmmThread) -> None:
        await thread.vm.vcpus[self.vcpu].run_page.set_immediate_exit(self.value)


class ReadSlots(Operation):
    """An ioctl that translates a guest address (KVM_TRANSLATE and its like)."""

    gpa: Number

    async def perform(self, thread: VmmThread) -> None:
        variant = thread.vm.variant
        if not await variant.ioctl_begin(thread.task):
            return
        await thread.vm.memslots.lookup(self.gpa)
        await variant.ioctl_end(thread.task)


class Lock(Operation):
    """Take a mutex of userspace."""

    lock: str

    async def perform(self, thread: VmmThread) -> None:
        await thread.around.locks[self.lock].lock(thread.task.tid)


class Unlock(Operation):
    """Give it back."""

    lock: str

    async def perform(self, thread: VmmThread) -> None:
        await thread.around.locks[self.lock].unlock_by(thread.task.tid)


class Post(Operation):
    """Tell those who wait for an event that it has happened."""

    event: str

    async def perform(self, thread: VmmThread) -> None:
        await thread.around.events[self.event].post()


class Wait(Operation):
    """Wait for an event, and take it."""

    event: str

    async def perform(self, thread: VmmThread) -> None:
        await thread.around.events[self.event].wait()


class Kill(Operation):
    """SIGKILL for another thread, by the name of its column: the ioctl that it waits in is undone, and it ends."""

    thread: str

    async def perform(self, thread: VmmThread) -> None:
        await thread.around.fates[self.thread].kill()
        vcpu = thread.around.vcpus.get(self.thread)
        if vcpu is not None:
            await vcpu.send_signal()


class ProvidePage(Operation):
    """The page that one of ``faults`` waits for arrives."""

    vcpu_of = ("vcpu", "faults")
    vcpu: Number

    async def perform(self, thread: VmmThread) -> None:
        await thread.around.pages[self.vcpu].set()


OPERATIONS: dict[str, type[Operation]] = {
    kind.name(): kind
    for kind in (
        Kick,
        Resume,
        SetMemoryRegion,
        MemoryTransaction,
        GetDirtyLog,
        CreateVcpu,
        Signal,
        Interrupt,
        Msi,
        Nmi,
        ImmediateExit,
        ReadSlots,
        ProvidePage,
        Lock,
        Unlock,
        Post,
        Wait,
        Kill,
    )
}


def all_of(operations: tuple[Operation, ...]) -> Iterator[Operation]:
    """Every operation, those inside transactions included."""
    for operation in operations:
        yield operation
        if isinstance(operation, MemoryTransaction):
            yield from all_of(operation.operations)
