"""``struct kvm_vcpu_arch``: what x86 adds to a vCPU, as far as it is part of the protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.core.atomics import Shared, atomic
from app.core.guest import IoExit, MmioExit
from app.core.uapi import MpState

if TYPE_CHECKING:
    from app.core.rwsem import Srcu


class VcpuArch(Shared):
    """``vcpu->arch``: multiprocessing state, events that wait for delivery, the access that waits for userspace."""

    __slots__ = ("mp_state", "pending", "irr", "nmi", "init", "sipi", "srcu_index")
    FIELDS = ("mp_state", "pending", "irr", "nmi", "init", "sipi", "srcu_index")

    def __init__(self, mp_state: MpState) -> None:
        super().__init__()
        self.mp_state = mp_state
        self.pending: IoExit | MmioExit | None = None  # complete_userspace_io
        self.irr: tuple[int, ...] = ()  # vectors that the in-kernel irqchip holds for this vCPU
        self.nmi = False
        self.init = False
        self.sipi: int | None = None
        self.srcu_index: int | None = None

    @atomic
    async def get_mp_state(self) -> MpState:
        """The multiprocessing state."""
        return self.mp_state

    @atomic
    async def set_mp_state(self, mp_state: MpState) -> None:
        """``kvm_arch_vcpu_ioctl_set_mpstate``: SIPI_RECEIVED is INIT_RECEIVED with a SIPI pending."""
        if mp_state is MpState.SIPI_RECEIVED:
            self.mp_state, self.sipi = MpState.INIT_RECEIVED, 0
        else:
            self.mp_state = mp_state

    @atomic
    async def queue_vector(self, vector: int) -> None:
        """The in-kernel irqchip accepts an interrupt; one that is pending already is merged."""
        if vector not in self.irr:
            self.irr = tuple(sorted((*self.irr, vector), reverse=True))

    @atomic
    async def queue_nmi(self) -> None:
        """KVM_NMI."""
        self.nmi = True

    @atomic
    async def queue_init(self) -> None:
        """An INIT reaches the local APIC."""
        self.init = True

    @atomic
    async def queue_sipi(self, vector: int) -> None:
        """A start-up IPI reaches the local APIC."""
        self.sipi = vector

    @atomic
    async def events(self) -> tuple[bool, bool, bool]:
        """Pending: (INIT or a SIPI that is awaited, NMI, interrupt)."""
        starting = self.init or (self.sipi is not None and self.mp_state is MpState.INIT_RECEIVED)
        return starting, self.nmi, bool(self.irr)

    @atomic
    async def take_nmi(self) -> bool:
        """The NMI is about to be delivered."""
        taken, self.nmi = self.nmi, False
        return taken

    @atomic
    async def take_vector(self) -> int | None:
        """The highest pending vector is about to be delivered."""
        if not self.irr:
            return None
        vector, *rest = self.irr
        self.irr = tuple(rest)
        return vector

    @atomic
    async def accept_init_sipi(self) -> int | None:
        """``kvm_apic_accept_events``: INIT_RECEIVED after INIT, RUNNABLE after SIPI, whose vector it returns."""
        if self.init:
            self.init = False
            self.mp_state = MpState.INIT_RECEIVED
        if self.mp_state is MpState.INIT_RECEIVED and self.sipi is not None:
            vector, self.sipi = self.sipi, None
            self.mp_state = MpState.RUNNABLE
            return vector
        return None

    @atomic
    async def expect_completion(self, exit: IoExit | MmioExit) -> None:
        """Set ``complete_userspace_io``: the next KVM_RUN finishes this access first."""
        self.pending = exit

    @atomic
    async def take_completion(self) -> IoExit | MmioExit | None:
        """Return and clear ``complete_userspace_io``."""
        taken, self.pending = self.pending, None
        return taken

    @atomic
    async def srcu_read_lock(self, srcu: Srcu) -> None:
        """``kvm_vcpu_srcu_read_lock``."""
        self.srcu_index = srcu.enter()

    @atomic
    async def srcu_read_unlock(self, srcu: Srcu) -> None:
        """``kvm_vcpu_srcu_read_unlock``."""
        if self.srcu_index is not None:
            srcu.exit(self.srcu_index)
            self.srcu_index = None
