"""One virtual machine: its vCPUs, its memory slots, and the ioctls of the VM descriptor.

``kick_all_running_vcpus`` and ``resume_all_kicked_vcpus`` are the two proposed ioctls; what they do is the
variant's business. Every public coroutine is one ioctl as a VMM issues it: the part of a variant that
lives in userspace (``ioctl_begin``, ``ioctl_end``) surrounds the part that lives in the kernel.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from kickstand.core.arch.irq.clock import Clock
from kickstand.core.arch.kvm_arch import ENABLE_CAP, KvmArch
from kickstand.core.atomics import Killed, Mutex, Shared, Task, atomic, plain
from kickstand.core.errors import KvmError
from kickstand.core.ioctls.slots import SlotIoctls
from kickstand.core.kvm_main import AnyVcpu, make_all_cpus_request
from kickstand.core.memslots import Memslots
from kickstand.core.shared.requests import Request
from kickstand.core.shared.rwsem import RwSemaphore, Srcu
from kickstand.core.trace import Tracepoint, Tracer, no_trace
from kickstand.core.uapi import MAX_VCPUS, MpState
from kickstand.core.vcpu import Vcpu
from kickstand.core.wiring.interrupts import Interrupts

if TYPE_CHECKING:
    from kickstand.core.guest import Guest
    from kickstand.core.variants import Variant

S = TypeVar("S", bound=Shared)
T = TypeVar("T")


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
    @plain()
    async def is_dead(self) -> bool:
        """``kvm->vm_dead``."""
        return self.dead

    @atomic
    async def kill(self) -> None:
        """``kvm_vm_dead``."""
        self.dead = True

    @atomic
    @plain()
    async def vcpus(self) -> tuple[int, ...]:
        """What ``kvm_for_each_vcpu`` visits."""
        return self.online

    @atomic
    async def add(self, vcpu_id: int) -> None:
        """The last step of KVM_CREATE_VCPU: from now on requests reach the vCPU."""
        self.online += (vcpu_id,)


class Vm(SlotIoctls):
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
        clock: Clock | None = None,
        share: Callable[[Any], Any] = unshared,
        trace: Tracer = no_trace,
    ) -> None:
        self.id = vm_id
        self.share = share
        self.trace = trace
        self.make_guest = make_guest
        self.flush_guests = flush_guests  # the engine caches translations, as hardware does
        self.system = system or System(share)
        self.arch = KvmArch()
        self.irqchip = False
        self.switches = switches
        self.lifetime: Lifetime = share(Lifetime())
        self.memslots: Memslots = share(Memslots())
        self.slots_lock: Mutex = share(Mutex())
        self.srcu: Srcu = share(Srcu())
        self.vcpus: dict[int, AnyVcpu] = {}
        self.variant = variant(self)
        self.interrupts = Interrupts(self, clock or Clock())
        if irqchip:
            self._add_irqchip()

    # -- the two proposed ioctls -------------------------------------------------------------------------

    async def kick_all_running_vcpus(self, task: Task) -> bool:
        """KVM_KICK_ALL_RUNNING_VCPUS: returns once no vCPU is in KVM_RUN (if the variant keeps its word).

        True if the call changed something: the first of nested kicks does. Raises EIO on a dead VM. If the
        caller is killed, the kick is taken back.
        """
        await self.check_alive("KVM_KICK_ALL_RUNNING_VCPUS")
        self.trace(Tracepoint.KVM_KICK_ALL, None, {"phase": "requested"})
        was_open = bool(self.variant.open_windows)
        try:
            changed = await self.variant.kick(task)
        except Killed:
            await self.variant.take_back(task, opened=not was_open)
            self.trace(Tracepoint.KVM_KICK_ALL, None, {"phase": "taken back"})
            raise
        self.trace(Tracepoint.KVM_KICK_ALL, None, {"phase": "completed"})
        return changed

    async def resume_all_kicked_vcpus(self, task: Task) -> int:
        """KVM_RESUME_ALL_KICKED_VCPUS: returns how many requests or holds it cleared; 0 without a kick."""
        await self.check_alive("KVM_RESUME_ALL_KICKED_VCPUS")
        self.trace(Tracepoint.KVM_RESUME_ALL, None, {"phase": "requested"})
        cleared = await self.variant.resume(task)
        self.trace(Tracepoint.KVM_RESUME_ALL, None, {"phase": "completed"})
        return cleared

    # -- vCPUs -------------------------------------------------------------------------------------------

    def prepare_vcpu(self, vcpu_id: int) -> Vcpu:
        """Make the structure of a vCPU that is not online yet."""
        boots = vcpu_id == self.arch.boot_vcpu_id or not self.irqchip
        mp_state = MpState.RUNNABLE if boots else MpState.UNINITIALIZED
        vcpu = Vcpu(self, vcpu_id, mp_state)
        self.variant.init_vcpu(vcpu)
        return vcpu

    async def create_vcpu(self, vcpu_id: int, task: Task) -> AnyVcpu:
        """KVM_CREATE_VCPU. EINVAL: id or number over the limit; EEXIST: the id is taken; EIO: dead VM."""
        name = "KVM_CREATE_VCPU"
        await self.check_alive(name)
        online = await self.lifetime.vcpus()
        if not 0 <= vcpu_id < self.arch.max_vcpu_ids:
            raise KvmError(errno.EINVAL, name, f"vcpu id {vcpu_id} is not below {self.arch.max_vcpu_ids}", field="id")
        if len(online) >= MAX_VCPUS:
            raise KvmError(errno.EINVAL, name, f"a VM has at most {MAX_VCPUS} vcpus")
        if vcpu_id in online:
            raise KvmError(errno.EEXIST, name, f"vcpu {vcpu_id} exists", field="id")
        vcpu = self.vcpus.get(vcpu_id) or self.prepare_vcpu(vcpu_id)
        self.vcpus[vcpu_id] = vcpu
        await self.variant.vcpu_created(vcpu)
        await self.lifetime.add(vcpu_id)
        return vcpu

    async def online_vcpus(self) -> tuple[AnyVcpu, ...]:
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
            await vcpu.make_request(Request.UNBLOCK)
            await vcpu.wake_up()

    # -- interrupts --------------------------------------------------------------------------------------

    async def create_irqchip(self, *, split: bool = False, pins: int = 0) -> None:
        """KVM_CREATE_IRQCHIP, or with ``split`` KVM_CAP_SPLIT_IRQCHIP for ``pins`` of userspace's IOAPIC.

        EEXIST: there is one, or with ``split`` a vCPU; EINVAL: a vCPU exists.
        """
        name = ENABLE_CAP if split else "KVM_CREATE_IRQCHIP"
        await self.check_alive(name)
        if self.irqchip:
            raise KvmError(errno.EEXIST, name, "the irqchip exists")
        if self.vcpus:
            raise KvmError(errno.EEXIST if split else errno.EINVAL, name, "it must come before the first vcpu")
        self.arch.nr_reserved_ioapic_pins = pins
        self._add_irqchip(split=split)

    def _add_irqchip(self, *, split: bool = False) -> None:
        self.irqchip = True
        self.interrupts.create(split=split)

    async def set_apic_bus_cycle(self, cycle_ns: int) -> None:
        """KVM_CAP_X86_APIC_BUS_CYCLES_NS. ENXIO: no irqchip; EINVAL: a vCPU exists, or as ``check_bus_cycle``."""
        self.arch.check_bus_cycle(cycle_ns)
        if not self.irqchip:
            raise KvmError(errno.ENXIO, ENABLE_CAP, "there is no in-kernel irqchip")
        if self.vcpus:
            raise KvmError(errno.EINVAL, ENABLE_CAP, "it must come before the first vcpu")
        self.arch.apic_bus_cycle_ns = cycle_ns

    async def irq_line(self, irq: int, level: int) -> int:
        """KVM_IRQ_LINE; answer and errors as ``Interrupts.irq_line``."""
        return await self.interrupts.irq_line(irq, level)

    async def signal_msi(self, address: int, data: int, flags: int = 0) -> int:
        """KVM_SIGNAL_MSI; answer and errors as ``Interrupts.signal_msi``."""
        return await self.interrupts.signal_msi(address, data, flags)
