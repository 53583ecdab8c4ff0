"""``struct kvm_vcpu_arch``: what x86 adds to a vCPU, as far as it is part of the protocol."""

from __future__ import annotations

from typing import Any

from kickstand.core.arch.cpu.waiting import NO_START, Start, Waiting
from kickstand.core.arch.irq.lapic import Effect, Lapic
from kickstand.core.arch.irq.message import Delivery, Message
from kickstand.core.arch.irq.mode import RefusedError
from kickstand.core.arch.irq.registers import LVTCMCI
from kickstand.core.atomics import Shared, atomic, plain
from kickstand.core.run.exits import Access
from kickstand.core.shared.rwsem import Srcu
from kickstand.core.uapi import MpState

NO_EVENTS = False, False, Waiting.NONE


class VcpuArch(Shared):
    """``vcpu->arch``: multiprocessing state, events that wait for delivery, the access that waits for userspace.

    ``apic`` is the local APIC, None without an in-kernel irqchip.
    """

    __slots__ = (
        "mp_state", "pending", "nmi", "init", "sipi", "srcu_index", "extint", "external", "eoi_exit", "tpr_access",
        "apic",
    )  # fmt: skip
    FIELDS = (
        "mp_state",
        "pending",
        "irr",
        "nmi",
        "init",
        "sipi",
        "srcu_index",
        "extint",
        "external",
        "eoi_exit",
        "tpr_access",
    )

    def __init__(self, mp_state: MpState, apic: Lapic | None = None) -> None:
        super().__init__()
        self.mp_state = mp_state
        self.pending: Access | None = None  # complete_userspace_io
        self.apic = apic
        self.nmi = False
        self.init = False
        self.sipi: int | None = None
        self.srcu_index: int | None = None
        self.extint = False  # the wire from the 8259 pair
        self.external: int | None = None  # what KVM_INTERRUPT queued beside a local APIC: pending_external_vector
        self.eoi_exit: int | None = None  # pending_ioapic_eoi, for userspace's IOAPIC
        self.tpr_access: tuple[int, bool] | None = None  # RIP, and whether it was a write, for userspace

    def state(self) -> tuple[Any, ...]:
        """In the order of ``FIELDS``; the APIC's own value last."""
        apic = self.apic
        return (
            self.mp_state, self.pending, () if apic is None else apic.requested, self.nmi, self.init, self.sipi,
            self.srcu_index, self.extint, self.external, self.eoi_exit, self.tpr_access,
            None if apic is None else apic.state(),
        )  # fmt: skip

    def load(self, state: tuple[Any, ...]) -> None:
        """Put a value of ``state`` back."""
        (
            self.mp_state, self.pending, _, self.nmi, self.init, self.sipi, self.srcu_index, self.extint,
            self.external, self.eoi_exit, self.tpr_access, apic,
        ) = state  # fmt: skip
        if self.apic is not None:
            self.apic.load(apic)

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

    # -- events ------------------------------------------------------------------------------------------

    @atomic
    async def queue_nmi(self) -> None:
        """KVM_NMI."""
        self.nmi = True

    @atomic
    async def queue_external(self, vector: int) -> bool:
        """KVM_INTERRUPT beside a local APIC; false if one waits already."""
        if self.external is not None:
            return False
        self.external = vector
        return True

    @atomic
    async def set_extint(self, high: bool) -> bool:
        """The 8259's wire changes; true if this CPU would take an interrupt from it."""
        self.extint = high
        return high and (self.apic is None or self.apic.takes_extint)

    @atomic
    async def events(self) -> tuple[bool, bool, Waiting]:
        """Pending: (INIT or a SIPI that is awaited, NMI, interrupt)."""
        quiet = self.sipi is self.external is None and not (self.init or self.nmi or self.extint)
        if quiet and (self.apic is None or not self.apic.irr):
            return NO_EVENTS  # as it is nearly always
        starting = self.init or (self.sipi is not None and self.mp_state is MpState.INIT_RECEIVED)
        return starting, self.nmi, self._waiting()

    def _waiting(self) -> Waiting:
        apic = self.apic
        if apic is None:
            return Waiting.NONE
        if (self.extint or self.external is not None) and apic.takes_extint:
            return Waiting.EXTINT
        return Waiting.NONE if apic.highest() is None else Waiting.APIC

    @atomic
    async def take_nmi(self) -> bool:
        """The NMI is about to be delivered."""
        taken, self.nmi = self.nmi, False
        return taken

    @atomic
    async def take_vector(self) -> int | None:
        """The APIC's highest pending vector is about to be delivered."""
        return None if self.apic is None else self.apic.take()

    @atomic
    async def take_external(self) -> int | None:
        """What KVM_INTERRUPT queued is about to be delivered."""
        taken, self.external = self.external, None
        return taken

    @atomic
    async def accept_init_sipi(self, *, boot: bool = False) -> Start:
        """``kvm_apic_accept_events``: INIT_RECEIVED after INIT (the boot CPU starts at once), RUNNABLE after SIPI.

        A SIPI that nobody awaits is dropped, and with INIT what waited for delivery (``kvm_vcpu_reset``).
        """
        if not self.init and self.sipi is None:
            return NO_START
        reset, self.init = self.init, False
        if reset:
            self.mp_state = MpState.RUNNABLE if boot else MpState.INIT_RECEIVED
            self.nmi, self.external = False, None
            if self.apic is not None:
                self.apic.reset()
        vector, self.sipi = self.sipi, None
        if vector is None or self.mp_state is not MpState.INIT_RECEIVED:
            return Start(reset, None)
        self.mp_state = MpState.RUNNABLE
        return Start(reset, vector)

    # -- the local APIC ----------------------------------------------------------------------------------

    @atomic
    async def is_named(self, message: Message) -> bool:
        """The APIC is there and the message's destination includes it."""
        return self.apic is not None and self.apic.enabled and self.apic.is_named(message)

    @atomic
    async def is_candidate(self, message: Message) -> bool:
        """It is named, and enabled by software: one of those among which the lowest priority is looked for."""
        return self.apic is not None and self.apic.accepts and self.apic.is_named(message)

    @atomic
    async def accept(self, message: Message) -> bool:
        """``__apic_accept_irq``: note what arrives; false if it is ignored."""
        mode, fixed = message.delivery, (Delivery.FIXED, Delivery.LOWEST)
        if mode in fixed:
            if self.apic is None or (message.level_triggered and not message.assert_level):
                return False
            return self.apic.accept(message.vector, level_triggered=message.level_triggered)
        if mode is Delivery.NMI:
            self.nmi = True
        elif mode is Delivery.INIT:
            if message.level_triggered and not message.assert_level:
                return False
            self.init, self.sipi = True, None
        elif mode is Delivery.STARTUP:
            self.sipi = message.vector
        return mode in (Delivery.NMI, Delivery.INIT, Delivery.STARTUP, Delivery.REMRD)

    @atomic
    async def deliver_cmci(self) -> bool:
        """``kvm_apic_local_deliver`` of a corrected machine check; false if it is masked or there is no APIC."""
        found = None if self.apic is None else self.apic.local(LVTCMCI)
        if self.apic is None or found is None:
            return False
        mode, vector = found
        if mode == Delivery.FIXED:
            return self.apic.accept(vector)
        if mode == Delivery.NMI:
            self.nmi = True
        return mode == Delivery.NMI

    @atomic
    async def end_of_interrupt(self) -> Effect:
        """The handler of the highest vector in service is over."""
        return Effect() if self.apic is None else self.apic.ended()

    @atomic
    async def read_apic(self, gpa: int, length: int, now: int) -> bytes:
        """A load from the APIC page."""
        assert self.apic is not None
        return self.apic.read_page(gpa, length, now)

    @atomic
    async def write_apic(self, gpa: int, data: bytes, now: int) -> Effect:
        """A store to the APIC page."""
        assert self.apic is not None
        return self.apic.write_page(gpa, data, now)

    @atomic
    async def read_apic_msr(self, index: int, now: int) -> int | None:
        """RDMSR of one of the APIC's; None: #GP."""
        assert self.apic is not None
        try:
            return self.apic.read_msr(index, now)
        except RefusedError:
            return None

    @atomic
    async def write_apic_msr(self, index: int, value: int, now: int) -> Effect | None:
        """WRMSR of one of the APIC's; None: #GP."""
        assert self.apic is not None
        try:
            return self.apic.write_msr(index, value, now)
        except RefusedError:
            return None

    @atomic
    async def set_apic_base(self, value: int) -> None:
        """Userspace sets APIC_BASE, with SET_SREGS or SET_MSRS."""
        assert self.apic is not None
        self.apic.set_base(value)

    @atomic
    async def set_tsc_deadline(self, deadline: int, expires: int) -> None:
        """WRMSR of TSC_DEADLINE; ``expires``: when the time stamp counter gets there."""
        assert self.apic is not None
        self.apic.set_tsc_deadline(deadline, expires)

    @atomic
    async def queue_eoi_exit(self, vector: int) -> None:
        """Userspace's IOAPIC has to know that this vector's service is over."""
        self.eoi_exit = vector

    @atomic
    async def take_eoi_exit(self) -> int | None:
        """Userspace is about to be told."""
        taken, self.eoi_exit = self.eoi_exit, None
        return taken

    @atomic
    async def set_task_priority(self, priority: int) -> None:
        """The guest has moved it (all eight bits), by CR8 or in the VAPIC word."""
        assert self.apic is not None
        self.apic.set_task_priority(priority)

    @atomic
    async def vapic_word(self) -> int:
        """What the guest shall find in its VAPIC word."""
        assert self.apic is not None
        return self.apic.vapic_word

    @atomic
    async def report_tpr_access(self, rip: int, *, is_write: bool) -> None:
        """Userspace is to be told where the guest has accessed its task priority."""
        self.tpr_access = rip, is_write

    @atomic
    async def take_tpr_access(self) -> tuple[int, bool] | None:
        """It is about to be told."""
        taken, self.tpr_access = self.tpr_access, None
        return taken

    @atomic
    async def timer_fired(self, now: int) -> tuple[bool, int | None]:
        """The APIC timer's time may have come: whether it interrupts, and when it is due next."""
        assert self.apic is not None
        return self.apic.timer_fired(now), self.apic.alarm

    @atomic
    async def timer_expires(self) -> int | None:
        """When the APIC timer is due, if that makes a difference."""
        return None if self.apic is None else self.apic.alarm

    @atomic
    async def apic_registers(self, now: int) -> bytes:
        """KVM_GET_LAPIC."""
        assert self.apic is not None
        return self.apic.registers(now)

    @atomic
    async def set_apic_registers(self, page: bytes, now: int) -> bool:
        """KVM_SET_LAPIC; false if these cannot be set."""
        assert self.apic is not None
        try:
            self.apic.set_registers(page, now)
        except RefusedError:
            return False
        return True

    # -- the access that waits for userspace -------------------------------------------------------------

    @atomic
    async def expect_completion(self, exit: Access) -> None:
        """Set ``complete_userspace_io``: the next KVM_RUN finishes this access first."""
        self.pending = exit

    @atomic
    async def take_completion(self) -> Access | None:
        """Return and clear ``complete_userspace_io``."""
        taken, self.pending = self.pending, None
        return taken

    @atomic
    async def srcu_read_lock(self, srcu: Srcu) -> None:
        """``kvm_vcpu_srcu_read_lock``."""
        self.srcu_index = srcu.enter()

    @atomic
    @plain(barrier="smp_mb__after_srcu_read_unlock")
    async def srcu_read_unlock(self, srcu: Srcu) -> None:
        """``kvm_vcpu_srcu_read_unlock``."""
        if self.srcu_index is not None:
            srcu.exit(self.srcu_index)
            self.srcu_index = None
