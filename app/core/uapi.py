"""KVM's userspace ABI on x86-64: limits, names, structures and ioctl numbers.

``linux/kvm.h`` in Python, plus the two ioctls of October 2022. Every name a user meets (in JSON, in a
script, in a trace) is made here, so that it cannot drift from the number a VMM passes to ``ioctl``.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import Enum, IntEnum, IntFlag
from typing import TYPE_CHECKING

from app.core.layout import ADDR, PADDING, U8, U16, U32, U64, Array, Bytes, Struct, struct

if TYPE_CHECKING:
    from collections.abc import Iterable

API_VERSION = 12
PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
NR_MEMSLOTS = 32764  # 32767 less the three that KVM keeps for itself on x86
MAX_SLOT_PAGES = 2**31 - 1  # the kernel counts a slot's pages in an int when it logs dirty ones
MAX_VCPUS = 1024
MAX_VCPU_ID = 4096
MMAP_SIZE = 3 * PAGE_SIZE  # KVM_GET_VCPU_MMAP_SIZE: kvm_run, the port data, the coalesced ring
PIO_PAGE_OFFSET = 1  # the page of that mapping which kvm_run.io.data_offset points to


class ExitReason(IntEnum):
    """``kvm_run.exit_reason``."""

    UNKNOWN = 0
    EXCEPTION = 1
    IO = 2
    HYPERCALL = 3
    DEBUG = 4
    HLT = 5
    MMIO = 6
    IRQ_WINDOW_OPEN = 7
    SHUTDOWN = 8
    FAIL_ENTRY = 9
    INTR = 10
    SET_TPR = 11
    TPR_ACCESS = 12
    S390_SIEIC = 13
    S390_RESET = 14
    DCR = 15
    NMI = 16
    INTERNAL_ERROR = 17
    OSI = 18
    PAPR_HCALL = 19
    S390_UCONTROL = 20
    WATCHDOG = 21
    S390_TSCH = 22
    EPR = 23
    SYSTEM_EVENT = 24
    S390_STSI = 25
    IOAPIC_EOI = 26
    HYPERV = 27
    ARM_NISV = 28
    X86_RDMSR = 29
    X86_WRMSR = 30
    DIRTY_RING_FULL = 31
    AP_RESET_HOLD = 32
    X86_BUS_LOCK = 33
    XEN = 34
    RISCV_SBI = 35
    RISCV_CSR = 36
    NOTIFY = 37
    LOONGARCH_IOCSR = 38
    MEMORY_FAULT = 39
    TDX = 40

    @property
    def kernel_name(self) -> str:
        """The name in ``linux/kvm.h``: ``KVM_EXIT_IO``."""
        return f"KVM_EXIT_{self.name}"


class IoDirection(IntEnum):
    """``kvm_run.io.direction``."""

    IN = 0
    OUT = 1


class MpState(IntEnum):
    """``kvm_mp_state.mp_state``: the multiprocessing state of a vCPU."""

    RUNNABLE = 0
    UNINITIALIZED = 1
    INIT_RECEIVED = 2
    HALTED = 3
    SIPI_RECEIVED = 4
    STOPPED = 5
    CHECK_STOP = 6
    OPERATING = 7
    LOAD = 8
    AP_RESET_HOLD = 9
    SUSPENDED = 10


class InternalError(IntEnum):
    """``kvm_run.internal.suberror``."""

    EMULATION = 1
    SIMUL_EX = 2
    DELIVERY_EV = 3
    UNEXPECTED_EXIT_REASON = 4


class SystemEvent(IntEnum):
    """``kvm_run.system_event.type``."""

    SHUTDOWN = 1
    RESET = 2
    CRASH = 3
    WAKEUP = 4
    SUSPEND = 5
    SEV_TERM = 6


class MemFlag(IntFlag):
    """``kvm_userspace_memory_region.flags``. Unknown bits are kept, so that they can be refused by value."""

    LOG_DIRTY_PAGES = 1
    READONLY = 2

    @property
    def names(self) -> list[str]:
        """The names of the set bits, lowest first; bits without a name as one ``"0x..."``."""
        known = [flag for flag in MemFlag if flag in self]
        unknown = int(self) & ~sum(map(int, known))
        return [flag.name or "" for flag in known] + ([hex(unknown)] if unknown else [])

    @classmethod
    def from_names(cls, names: Iterable[str]) -> MemFlag:
        """Return the flags so named (``KVM_MEM_`` in front is allowed). Raises ValueError for an unknown name."""
        flags = cls(0)
        for name in names:
            try:
                flags |= cls[name.removeprefix("KVM_MEM_")]
            except KeyError:
                raise ValueError(f"{name!r} is not one of {', '.join(cls.__members__)}") from None
        return flags


class Cap(IntEnum):
    """The argument of KVM_CHECK_EXTENSION."""

    IRQCHIP = 0
    USER_MEMORY = 3
    NR_VCPUS = 9
    NR_MEMSLOTS = 10
    MP_STATE = 14
    COALESCED_MMIO = 15
    SYNC_MMU = 16
    DESTROY_MEMORY_REGION_WORKS = 21
    USER_NMI = 22
    JOIN_MEMORY_REGIONS_WORKS = 30
    IRQFD = 32
    IOEVENTFD = 36
    INTERNAL_ERROR_DATA = 40
    VCPU_EVENTS = 41
    MAX_VCPUS = 66
    SYNC_REGS = 74
    SIGNAL_MSI = 77
    READONLY_MEM = 81
    X86_SMM = 117
    MULTI_ADDRESS_SPACE = 118
    MAX_VCPU_ID = 128
    IMMEDIATE_EXIT = 136
    MANUAL_DIRTY_LOG_PROTECT2 = 168
    HALT_POLL = 182
    DIRTY_LOG_RING = 192
    EXIT_ON_EMULATION_FAILURE = 204
    DIRTY_LOG_RING_ACQ_REL = 223

    @property
    def kernel_name(self) -> str:
        """The name in ``linux/kvm.h``: ``KVM_CAP_IRQCHIP``."""
        return f"KVM_CAP_{self.name}"


# What KVM_CHECK_EXTENSION answers: the value of a real KVM where the emulator does the thing, and 0, which
# tells a VMM to do without, where it does not. The recommended number of vCPUs is the number of online
# CPUs on a real machine; an emulated vCPU needs none, so it is the maximum here.
CAPABILITIES: dict[Cap, int] = dict.fromkeys(Cap, 0) | {
    Cap.IRQCHIP: 1,
    Cap.USER_MEMORY: 1,
    Cap.NR_VCPUS: MAX_VCPUS,
    Cap.NR_MEMSLOTS: NR_MEMSLOTS,
    Cap.MP_STATE: 1,
    Cap.SYNC_MMU: 1,
    Cap.DESTROY_MEMORY_REGION_WORKS: 1,
    Cap.USER_NMI: 1,
    Cap.JOIN_MEMORY_REGIONS_WORKS: 1,
    Cap.INTERNAL_ERROR_DATA: 1,
    Cap.VCPU_EVENTS: 1,
    Cap.MAX_VCPUS: MAX_VCPUS,
    Cap.SIGNAL_MSI: 1,
    Cap.READONLY_MEM: 1,
    Cap.MAX_VCPU_ID: MAX_VCPU_ID,
    Cap.IMMEDIATE_EXIT: 1,
    Cap.MANUAL_DIRTY_LOG_PROTECT2: 3,
}


KVM_USERSPACE_MEMORY_REGION = struct(
    "kvm_userspace_memory_region",
    ("slot flags", U32),
    ("guest_phys_addr", ADDR),
    ("memory_size", U64),
    ("userspace_addr", ADDR),
)
KVM_DIRTY_LOG = struct("kvm_dirty_log", ("slot", U32), (PADDING, U32), ("dirty_bitmap", ADDR))
KVM_CLEAR_DIRTY_LOG = struct(
    "kvm_clear_dirty_log", ("slot num_pages", U32), ("first_page", U64), ("dirty_bitmap", ADDR)
)
KVM_REGS = struct("kvm_regs", ("rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags", ADDR))
KVM_SEGMENT = struct(
    "kvm_segment",
    ("base", ADDR),
    ("limit", U32),
    ("selector", U16),
    ("type present dpl db s l g avl unusable", U8),
    (PADDING, U8),
)
KVM_DTABLE = struct("kvm_dtable", ("base", ADDR), ("limit", U16), (PADDING, Array(U16, 3)))
KVM_SREGS = struct(
    "kvm_sregs",
    ("cs ds es fs gs ss tr ldt", KVM_SEGMENT),
    ("gdt idt", KVM_DTABLE),
    ("cr0 cr2 cr3 cr4 cr8 efer apic_base", ADDR),
    ("interrupt_bitmap", Array(ADDR, 4)),
)
KVM_MP_STATE = struct("kvm_mp_state", ("mp_state", U32))
KVM_INTERRUPT = struct("kvm_interrupt", ("irq", U32))
KVM_IRQ_LEVEL = struct("kvm_irq_level", ("irq level", U32))
KVM_MSI = struct("kvm_msi", ("address_lo address_hi data flags devid", U32), (PADDING, Bytes(12)))
KVM_TRANSLATION = struct(
    "kvm_translation",
    ("linear_address physical_address", ADDR),
    ("valid writeable usermode", U8),
    (PADDING, Bytes(5)),
)
KVM_ENABLE_CAP = struct("kvm_enable_cap", ("cap flags", U32), ("args", Array(U64, 4)), (PADDING, Bytes(64)))
KVM_VCPU_EVENTS = struct(
    "kvm_vcpu_events",
    ("exception", struct("exception", ("injected nr has_error_code pending", U8), ("error_code", U32))),
    ("interrupt", struct("interrupt", ("injected nr soft shadow", U8))),
    ("nmi", struct("nmi", ("injected pending masked", U8), (PADDING, U8))),
    ("sipi_vector flags", U32),
    ("smi", struct("smi", ("smm pending smm_inside_nmi latched_init", U8))),
    ("triple_fault", struct("triple_fault", ("pending", U8))),
    (PADDING, Bytes(26)),
    ("exception_has_payload", U8),
    ("exception_payload", ADDR),
)

# The page that a vCPU shares with userspace. Its union is 256 bytes here and has one structure per exit below.
KVM_RUN = struct(
    "kvm_run",
    ("request_interrupt_window immediate_exit", U8),
    (PADDING, Bytes(6)),
    ("exit_reason", U32),
    ("ready_for_interrupt_injection if_flag", U8),
    ("flags", U16),
    ("cr8 apic_base", ADDR),
    ("exit", Bytes(256)),
    ("kvm_valid_regs kvm_dirty_regs", U64),
    ("sync_regs", Bytes(2048)),
)
KVM_RUN_EXITS: dict[ExitReason, Struct] = {
    ExitReason.IO: struct("io", ("direction size", U8), ("port", U16), ("count", U32), ("data_offset", U64)),
    ExitReason.MMIO: struct("mmio", ("phys_addr", ADDR), ("data", Bytes(8)), ("len", U32), ("is_write", U8)),
    ExitReason.INTERNAL_ERROR: struct("internal", ("suberror ndata", U32), ("data", Array(ADDR, 16))),
    ExitReason.SYSTEM_EVENT: struct("system_event", ("type ndata", U32), ("data", Array(ADDR, 16))),
    ExitReason.FAIL_ENTRY: struct("fail_entry", ("hardware_entry_failure_reason", ADDR), ("cpu", U32)),
}


class Fd(Enum):
    """The three kinds of descriptor that take ioctls."""

    SYSTEM = "system"
    VM = "vm"
    VCPU = "vcpu"


class Direction(IntFlag):
    """Which way an ioctl's payload goes, seen from userspace (``_IOC_WRITE``: into the kernel)."""

    NONE = 0
    WRITE = 1
    READ = 2


@dataclass(frozen=True, slots=True)
class Ioctl:
    """One ioctl of one kind of descriptor.

    ``size`` is the payload's size as the request encodes it: 0 where the argument is a plain number, and the
    size of the header alone where a list follows. ``payload`` describes those bytes where Kickstand reads them.
    """

    name: str
    fd: Fd
    nr: int
    direction: Direction = Direction.NONE
    size: int = 0
    payload: Struct | None = None

    @property
    def request(self) -> int:
        """The number userspace passes to ``ioctl``: the kernel's ``_IOC(direction, 0xAE, nr, size)``."""
        return self.direction << 30 | self.size << 16 | 0xAE << 8 | self.nr


def _plain(fd: Fd, nr: int, name: str) -> Ioctl:
    return Ioctl(f"KVM_{name}", fd, nr)


def _write(fd: Fd, nr: int, name: str, payload: Struct | int) -> Ioctl:
    return _carrying(fd, nr, name, Direction.WRITE, payload)


def _read(fd: Fd, nr: int, name: str, payload: Struct | int) -> Ioctl:
    return _carrying(fd, nr, name, Direction.READ, payload)


def _both(fd: Fd, nr: int, name: str, payload: Struct | int) -> Ioctl:
    return _carrying(fd, nr, name, Direction.READ | Direction.WRITE, payload)


def _carrying(fd: Fd, nr: int, name: str, direction: Direction, payload: Struct | int) -> Ioctl:
    if isinstance(payload, Struct):
        return Ioctl(f"KVM_{name}", fd, nr, direction, payload.size, payload)
    return Ioctl(f"KVM_{name}", fd, nr, direction, payload)


IOCTLS: tuple[Ioctl, ...] = (
    _plain(Fd.SYSTEM, 0x00, "GET_API_VERSION"),
    _plain(Fd.SYSTEM, 0x01, "CREATE_VM"),
    _plain(Fd.SYSTEM, 0x03, "CHECK_EXTENSION"),
    _plain(Fd.SYSTEM, 0x04, "GET_VCPU_MMAP_SIZE"),
    _both(Fd.SYSTEM, 0x05, "GET_SUPPORTED_CPUID", 8),
    _plain(Fd.VM, 0x03, "CHECK_EXTENSION"),
    _plain(Fd.VM, 0x41, "CREATE_VCPU"),
    _write(Fd.VM, 0x42, "GET_DIRTY_LOG", KVM_DIRTY_LOG),
    _plain(Fd.VM, 0x44, "SET_NR_MMU_PAGES"),
    _write(Fd.VM, 0x46, "SET_USER_MEMORY_REGION", KVM_USERSPACE_MEMORY_REGION),
    _plain(Fd.VM, 0x47, "SET_TSS_ADDR"),
    _write(Fd.VM, 0x48, "SET_IDENTITY_MAP_ADDR", 8),
    _write(Fd.VM, 0x49, "SET_USER_MEMORY_REGION2", 160),
    _plain(Fd.VM, 0x60, "CREATE_IRQCHIP"),
    _write(Fd.VM, 0x61, "IRQ_LINE", KVM_IRQ_LEVEL),
    _write(Fd.VM, 0x6A, "SET_GSI_ROUTING", 8),
    _write(Fd.VM, 0x76, "IRQFD", 32),
    _write(Fd.VM, 0x77, "CREATE_PIT2", 64),
    _write(Fd.VM, 0x79, "IOEVENTFD", 64),
    _write(Fd.VM, 0xA3, "ENABLE_CAP", KVM_ENABLE_CAP),
    _write(Fd.VM, 0xA5, "SIGNAL_MSI", KVM_MSI),
    _both(Fd.VM, 0xC0, "CLEAR_DIRTY_LOG", KVM_CLEAR_DIRTY_LOG),
    _plain(Fd.VM, 0xC7, "RESET_DIRTY_RINGS"),
    _plain(Fd.VM, 0xCE, "GET_STATS_FD"),
    _plain(Fd.VM, 0xD2, "KICK_ALL_RUNNING_VCPUS"),
    _plain(Fd.VM, 0xD3, "RESUME_ALL_KICKED_VCPUS"),
    _plain(Fd.VCPU, 0x80, "RUN"),
    _read(Fd.VCPU, 0x81, "GET_REGS", KVM_REGS),
    _write(Fd.VCPU, 0x82, "SET_REGS", KVM_REGS),
    _read(Fd.VCPU, 0x83, "GET_SREGS", KVM_SREGS),
    _write(Fd.VCPU, 0x84, "SET_SREGS", KVM_SREGS),
    _both(Fd.VCPU, 0x85, "TRANSLATE", KVM_TRANSLATION),
    _write(Fd.VCPU, 0x86, "INTERRUPT", KVM_INTERRUPT),
    _both(Fd.VCPU, 0x88, "GET_MSRS", 8),
    _write(Fd.VCPU, 0x89, "SET_MSRS", 8),
    _write(Fd.VCPU, 0x8B, "SET_SIGNAL_MASK", 4),
    _read(Fd.VCPU, 0x8C, "GET_FPU", 416),
    _write(Fd.VCPU, 0x8D, "SET_FPU", 416),
    _read(Fd.VCPU, 0x8E, "GET_LAPIC", 1024),
    _write(Fd.VCPU, 0x8F, "SET_LAPIC", 1024),
    _write(Fd.VCPU, 0x90, "SET_CPUID2", 8),
    _read(Fd.VCPU, 0x98, "GET_MP_STATE", KVM_MP_STATE),
    _write(Fd.VCPU, 0x99, "SET_MP_STATE", KVM_MP_STATE),
    _plain(Fd.VCPU, 0x9A, "NMI"),
    _write(Fd.VCPU, 0x9B, "SET_GUEST_DEBUG", 72),
    _read(Fd.VCPU, 0x9F, "GET_VCPU_EVENTS", KVM_VCPU_EVENTS),
    _write(Fd.VCPU, 0xA0, "SET_VCPU_EVENTS", KVM_VCPU_EVENTS),
    _plain(Fd.VCPU, 0xB7, "SMI"),
    _read(Fd.VCPU, 0xCC, "GET_SREGS2", 320),
    _write(Fd.VCPU, 0xCD, "SET_SREGS2", 320),
    _plain(Fd.VCPU, 0xCE, "GET_STATS_FD"),
)

_BY_REQUEST = {(ioctl.fd, ioctl.request): ioctl for ioctl in IOCTLS}
_BY_NAME = {ioctl.name: ioctl for ioctl in reversed(IOCTLS)}


def ioctl_by_request(fd: Fd, request: int) -> Ioctl | None:
    """Return the ioctl that this kind of descriptor knows by this whole request code, or None."""
    return _BY_REQUEST.get((fd, request))


def ioctl_by_name(name: str) -> Ioctl:
    """Return the ioctl of that name, ``KVM_`` in front or not. Raises KeyError for an unknown name."""
    return _BY_NAME[f"KVM_{name.removeprefix('KVM_')}"]


def unknown_errno(fd: Fd) -> int:
    """Return the errno of an ioctl that the descriptor does not know."""
    return errno.ENOTTY if fd is Fd.VM else errno.EINVAL
