"""vCPU requests and the vCPU's mode: what one thread uses to make a vCPU leave guest mode.

The order matters everywhere here: a requester sets the bit and then looks at the mode; a vCPU sets the
mode and then looks at the bits. At least one of the two sees the other (``vcpu-requests.rst``).
"""

from __future__ import annotations

from enum import IntEnum

from kickstand.core.atomics import Shared, atomic, blocked, plain

REQUEST_MASK = 0xFF
NO_WAKEUP = 0x100
WAIT = 0x200
NO_ACTION = 0x400
ARCH_BASE = 8


def _arch(nr: int, flags: int = 0) -> int:
    return (nr + ARCH_BASE) | flags


class Request(IntEnum):
    """``KVM_REQ_*`` as the kernel encodes them: bit number in the low byte, flags above it.

    ``nr`` is the bit number in ``vcpu->requests``, ``bit`` the same as a mask.
    """

    nr: int
    bit: int

    def __init__(self, value: int) -> None:
        self.nr = value & REQUEST_MASK
        self.bit = 1 << self.nr

    TLB_FLUSH = 0 | WAIT | NO_WAKEUP
    VM_DEAD = 1 | WAIT | NO_WAKEUP
    UNBLOCK = 2
    OUTSIDE_GUEST_MODE = 0 | NO_ACTION | WAIT | NO_WAKEUP
    MIGRATE_TIMER = _arch(0)
    REPORT_TPR_ACCESS = _arch(1)
    TRIPLE_FAULT = _arch(2)
    MMU_SYNC = _arch(3)
    CLOCK_UPDATE = _arch(4)
    LOAD_MMU_PGD = _arch(5)
    EVENT = _arch(6)
    APF_HALT = _arch(7)
    STEAL_UPDATE = _arch(8)
    NMI = _arch(9)
    PMU = _arch(10)
    PMI = _arch(11)
    SMI = _arch(12)
    MASTERCLOCK_UPDATE = _arch(13)
    MCLOCK_INPROGRESS = _arch(14, WAIT | NO_WAKEUP)
    SCAN_IOAPIC = _arch(15, WAIT | NO_WAKEUP)
    GLOBAL_CLOCK_UPDATE = _arch(16)
    APIC_PAGE_RELOAD = _arch(17, WAIT | NO_WAKEUP)
    HV_CRASH = _arch(18)
    IOAPIC_EOI_EXIT = _arch(19)
    HV_RESET = _arch(20)
    HV_EXIT = _arch(21)
    HV_STIMER = _arch(22)
    LOAD_EOI_EXITMAP = _arch(23)
    GET_NESTED_STATE_PAGES = _arch(24)
    APICV_UPDATE = _arch(25, WAIT | NO_WAKEUP)
    TLB_FLUSH_CURRENT = _arch(26)
    TLB_FLUSH_GUEST = _arch(27, WAIT | NO_WAKEUP)
    APF_READY = _arch(28)
    MSR_FILTER_CHANGED = _arch(29)
    UPDATE_CPU_DIRTY_LOGGING = _arch(30, WAIT | NO_WAKEUP)
    MMU_FREE_OBSOLETE_ROOTS = _arch(31, WAIT | NO_WAKEUP)
    USERSPACE_KICK = _arch(32, WAIT)

    @property
    def kernel_name(self) -> str:
        """``KVM_REQ_USERSPACE_KICK``."""
        return f"KVM_REQ_{self.name}"


def request_names(bits: int) -> list[str]:
    """Name the requests in a word of bits, lowest first."""
    return [name for bit, name in _NAMES if bits & bit] if bits else []


_NAMES = [(r.bit, r.kernel_name) for r in sorted(Request, key=lambda r: r.nr) if not r & NO_ACTION]


KVM_REQ_USERSPACE_KICK, KVM_REQ_UNBLOCK = Request.USERSPACE_KICK, Request.UNBLOCK  # plain names: see ``trace``


class RequestBits(Shared):
    """``vcpu->requests``: one bit per request."""

    __slots__ = ("bits",)
    FIELDS = ("bits",)

    def __init__(self) -> None:
        super().__init__()
        self.bits = 0

    @atomic
    async def make(self, request: Request) -> None:
        """``kvm_make_request``."""
        self.bits |= request.bit

    @atomic
    @plain()
    async def test(self, request: Request) -> bool:
        """``kvm_test_request``: look, change nothing."""
        return bool(self.bits & request.bit)

    @atomic
    @plain()
    async def check(self, request: Request) -> bool:
        """``kvm_check_request``: look, and clear what was seen."""
        seen = bool(self.bits & request.bit)
        self.bits &= ~request.bit
        return seen

    @atomic
    async def clear(self, request: Request) -> bool:
        """``kvm_clear_request``; says whether the bit was set, for counting."""
        was = bool(self.bits & request.bit)
        self.bits &= ~request.bit
        return was

    @atomic
    @plain()
    async def pending(self) -> int:
        """``kvm_request_pending``: the whole word."""
        return self.bits


class Mode(IntEnum):
    """``vcpu->mode``."""

    OUTSIDE_GUEST_MODE = 0
    IN_GUEST_MODE = 1
    EXITING_GUEST_MODE = 2
    READING_SHADOW_PAGE_TABLES = 3


OUTSIDE_GUEST_MODE, IN_GUEST_MODE = Mode.OUTSIDE_GUEST_MODE, Mode.IN_GUEST_MODE
EXITING_GUEST_MODE = Mode.EXITING_GUEST_MODE


class VcpuMode(Shared):
    """``vcpu->mode`` and the interrupt line of the physical CPU that the vCPU occupies."""

    __slots__ = ("mode", "ipi")
    FIELDS = ("mode", "ipi")

    def __init__(self) -> None:
        super().__init__()
        self.mode: Mode = OUTSIDE_GUEST_MODE
        self.ipi = False

    @atomic
    @plain("mode")
    async def enter(self) -> None:
        """Interrupts off, then IN_GUEST_MODE: an IPI that comes now ends the guest's first instruction."""
        self.mode = IN_GUEST_MODE

    @atomic
    @plain("mode")
    async def leave(self) -> None:
        """OUTSIDE_GUEST_MODE, then interrupts on: a pending IPI is taken, and whoever waits for it goes on."""
        self.mode = OUTSIDE_GUEST_MODE
        if self.ipi:
            self.ipi = False
            self.changed()

    def stored(self) -> None:
        """The CPU has had interrupts on since it left: an IPI that came meanwhile is taken."""
        if self.mode is OUTSIDE_GUEST_MODE:
            self.ipi = False
        self.changed()

    @atomic
    async def exiting(self) -> Mode:
        """``kvm_vcpu_exiting_guest_mode``: cmpxchg(IN_GUEST, EXITING); returns the old mode."""
        old = self.mode
        if old is IN_GUEST_MODE:
            self.mode = EXITING_GUEST_MODE
        return old

    @atomic
    async def send_ipi(self) -> None:
        """Interrupt the CPU. Outside guest mode interrupts are on, and it is taken at once."""
        if self.mode is not OUTSIDE_GUEST_MODE:
            self.ipi = True
            self.changed()

    @atomic
    async def interrupted(self) -> bool:
        """An IPI is pending: the guest has to leave."""
        return self.ipi

    @atomic
    async def wait_interrupt(self) -> None:
        """A guest that has nothing to do but spin: until an IPI comes."""
        while not self.ipi:
            await blocked(self)

    @atomic
    async def wait_taken(self) -> None:
        """``smp_call_function(..., wait=true)``: until the CPU ran the handler."""
        while self.ipi:
            await blocked(self)
