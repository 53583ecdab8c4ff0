"""KVM's userspace ABI on x86-64: limits, names, structures and ioctl numbers.

``linux/kvm.h`` in Python, plus the two ioctls of October 2022. Every name a user meets (in JSON, in a
script, in a trace) is made here, so that it cannot drift from the number a VMM passes to ``ioctl``.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import Enum, IntEnum, IntFlag
from typing import TYPE_CHECKING

from kickstand.core.uapi import structures
from kickstand.core.uapi.layout import ADDR, PADDING, S64, U8, U16, U32, U64, Array, Bytes, Struct, struct

if TYPE_CHECKING:
    from collections.abc import Iterable

API_VERSION = 12
PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
NR_MEMSLOTS = 32764  # 32767 less the three that KVM keeps for itself on x86
MAX_SLOT_PAGES = 2**31 - 1  # the kernel counts a slot's pages in an int when it logs dirty ones
MAX_VCPUS = 1024
MAX_IRQ_ROUTES = 4096
MAX_VCPU_ID = 4096
TSC_KHZ = 1_000_000  # an emulated time stamp counter has no rate of its own: it counts nanoseconds
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
    SET_TSS_ADDR = 4
    VAPIC = 6
    EXT_CPUID = 7
    NR_VCPUS = 9
    NR_MEMSLOTS = 10
    MP_STATE = 14
    COALESCED_MMIO = 15
    SYNC_MMU = 16
    DESTROY_MEMORY_REGION_WORKS = 21
    USER_NMI = 22
    JOIN_MEMORY_REGIONS_WORKS = 30
    IRQ_ROUTING = 25
    IRQ_INJECT_STATUS = 26
    IRQFD = 32
    PIT2 = 33
    PIT_STATE2 = 35
    IOEVENTFD = 36
    INTERNAL_ERROR_DATA = 40
    VCPU_EVENTS = 41
    MAX_VCPUS = 66
    GET_TSC_KHZ = 61
    SET_IDENTITY_MAP_ADDR = 37
    DEBUGREGS = 50
    XSAVE = 55
    XCRS = 56
    SYNC_REGS = 74
    SIGNAL_MSI = 77
    IRQFD_RESAMPLE = 82
    READONLY_MEM = 81
    X86_SMM = 117
    DISABLE_QUIRKS = 116
    SPLIT_IRQCHIP = 121
    X2APIC_API = 129
    MULTI_ADDRESS_SPACE = 118
    MAX_VCPU_ID = 128
    IMMEDIATE_EXIT = 136
    MANUAL_DIRTY_LOG_PROTECT2 = 168
    GET_MSR_FEATURES = 153
    HALT_POLL = 182
    DIRTY_LOG_RING = 192
    SREGS2 = 200
    EXIT_ON_EMULATION_FAILURE = 204
    XSAVE2 = 208
    DISABLE_QUIRKS2 = 213
    DIRTY_LOG_RING_ACQ_REL = 223
    USER_MEMORY2 = 231
    X86_APIC_BUS_CYCLES_NS = 237
    CLOCKSOURCE = 8
    NOP_IO_DELAY = 12
    SET_GUEST_DEBUG = 23
    MCE = 31
    SET_BOOT_CPU_ID = 34
    ADJUST_CLOCK = 39
    X86_ROBUST_SINGLESTEP = 51
    TSC_CONTROL = 60
    TSC_DEADLINE_TIMER = 72
    KVMCLOCK_CTRL = 76
    VCPU_ATTRIBUTES = 127
    X86_DISABLE_EXITS = 143
    MSR_PLATFORM_INFO = 159
    COALESCED_PIO = 162
    X86_USER_SPACE_MSR = 188
    X86_MSR_FILTER = 189
    ENFORCE_PV_FEATURE_CPUID = 190
    STEAL_TIME = 187
    SET_GUEST_DEBUG2 = 195
    EXIT_HYPERCALL = 201
    BINARY_STATS_FD = 203
    VM_TSC_CONTROL = 214

    @property
    def kernel_name(self) -> str:
        """The name in ``linux/kvm.h``: ``KVM_CAP_IRQCHIP``."""
        return f"KVM_CAP_{self.name}"


class Quirk(IntFlag):
    """``KVM_X86_QUIRK_*``: what KVM does otherwise than hardware unless userspace disables it."""

    LINT0_REENABLED = 1 << 0  # the boot CPU's LINT0 takes interrupts from the 8259 pair after a reset
    LAPIC_MMIO_HOLE = 1 << 2  # the page of an APIC that is disabled or in x2APIC mode is the kernel's all the same
    FIX_HYPERCALL_INSN = 1 << 5  # the other vendor's hypercall instruction is overwritten with this one's
    MWAIT_NEVER_UD_FAULTS = 1 << 6  # MONITOR and MWAIT do nothing where CPUID does not have them


QUIRKS = sum(Quirk)  # those that can be disabled here


class X2ApicApi(IntFlag):
    """``KVM_X2APIC_API_*``."""

    USE_32BIT_IDS = 1
    DISABLE_BROADCAST_QUIRK = 2


# What KVM_CHECK_EXTENSION answers: the value of a real KVM where the emulator does the thing, and 0, which
# tells a VMM to do without, where it does not. The recommended number of vCPUs is the number of online
# CPUs on a real machine; an emulated vCPU needs none, so it is the maximum here.
CAPABILITIES: dict[Cap, int] = dict.fromkeys(Cap, 0) | {
    Cap.IRQCHIP: 1,
    Cap.SPLIT_IRQCHIP: 1,
    Cap.DISABLE_QUIRKS: 1,
    Cap.DISABLE_QUIRKS2: QUIRKS,
    Cap.X2APIC_API: sum(X2ApicApi),
    Cap.X86_APIC_BUS_CYCLES_NS: 1,
    Cap.VAPIC: 1,
    Cap.IRQ_ROUTING: MAX_IRQ_ROUTES,
    Cap.IRQ_INJECT_STATUS: 1,
    Cap.PIT2: 1,
    Cap.PIT_STATE2: 1,
    Cap.USER_MEMORY: 1,
    Cap.EXT_CPUID: 1,
    Cap.DEBUGREGS: 1,
    Cap.XSAVE: 1,
    Cap.XCRS: 1,
    Cap.SREGS2: 1,
    Cap.XSAVE2: 4096,
    Cap.GET_MSR_FEATURES: 1,
    Cap.USER_MEMORY2: 1,
    Cap.SET_TSS_ADDR: 1,
    Cap.SET_IDENTITY_MAP_ADDR: 1,
    Cap.GET_TSC_KHZ: 1,
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
    Cap.SET_BOOT_CPU_ID: 1,
    Cap.MSR_PLATFORM_INFO: 1,
    Cap.X86_DISABLE_EXITS: 6,  # HLT and PAUSE
    Cap.EXIT_ON_EMULATION_FAILURE: 1,
    Cap.ENFORCE_PV_FEATURE_CPUID: 1,
    Cap.X86_USER_SPACE_MSR: 1,
    Cap.DIRTY_LOG_RING: 1 << 20,  # bytes
    Cap.DIRTY_LOG_RING_ACQ_REL: 1 << 20,
    Cap.COALESCED_MMIO: 2,  # the page of a vCPU's mapping that has the ring
    Cap.COALESCED_PIO: 1,
    Cap.SET_GUEST_DEBUG: 1,
    Cap.SET_GUEST_DEBUG2: 0x1F0003,  # all that its control can be
    Cap.MCE: 32,  # banks
    Cap.CLOCKSOURCE: 1,
    Cap.NOP_IO_DELAY: 1,
    Cap.ADJUST_CLOCK: 0xE,  # TSC_STABLE, REALTIME, HOST_TSC
    Cap.KVMCLOCK_CTRL: 1,
    Cap.TSC_CONTROL: 1,
    Cap.VM_TSC_CONTROL: 1,
    Cap.TSC_DEADLINE_TIMER: 1,
    Cap.VCPU_ATTRIBUTES: 1,
    Cap.X86_MSR_FILTER: 1,
    Cap.EXIT_HYPERCALL: 1 << 12,  # KVM_HC_MAP_GPA_RANGE
}


def check_extension(capability: int) -> int:
    """KVM_CHECK_EXTENSION: 0 for what there is not, whether it has a name here or not."""
    try:
        return CAPABILITIES[Cap(capability)]
    except ValueError:
        return 0


KVM_USERSPACE_MEMORY_REGION = struct(
    "kvm_userspace_memory_region",
    ("slot flags", U32),
    ("guest_phys_addr", ADDR),
    ("memory_size", U64),
    ("userspace_addr", ADDR),
)
KVM_USERSPACE_MEMORY_REGION2 = struct(
    "kvm_userspace_memory_region2",
    ("slot flags", U32),
    ("guest_phys_addr", ADDR),
    ("memory_size", U64),
    ("userspace_addr", ADDR),
    ("guest_memfd_offset", U64),
    ("guest_memfd", U32),
    (PADDING, Bytes(116)),
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
KVM_SREGS2 = struct(
    "kvm_sregs2",
    ("cs ds es fs gs ss tr ldt", KVM_SEGMENT),
    ("gdt idt", KVM_DTABLE),
    ("cr0 cr2 cr3 cr4 cr8 efer apic_base flags", ADDR),
    ("pdptrs", Array(ADDR, 4)),
)
KVM_MP_STATE = struct("kvm_mp_state", ("mp_state", U32))
KVM_INTERRUPT = struct("kvm_interrupt", ("irq", U32))
KVM_IRQ_LEVEL = struct("kvm_irq_level", ("irq level", U32))
KVM_MSI = struct("kvm_msi", ("address_lo address_hi data flags devid", U32), (PADDING, Bytes(12)))
KVM_LAPIC_STATE = struct("kvm_lapic_state", ("regs", Bytes(1024)))
KVM_IRQCHIP = struct("kvm_irqchip", ("chip_id", U32), (PADDING, U32), ("chip", Bytes(512)))
KVM_PIT_CONFIG = struct("kvm_pit_config", ("flags", U32), (PADDING, Bytes(60)))
KVM_PIT_CHANNEL_STATE = struct(
    "kvm_pit_channel_state",
    ("count", U32),
    ("latched_count", U16),
    ("count_latched status_latched status read_state write_state write_latch rw_mode mode bcd gate", U8),
    ("count_load_time", S64),
)
KVM_PIT_STATE2 = struct(
    "kvm_pit_state2", ("channels", Array(KVM_PIT_CHANNEL_STATE, 3)), ("flags", U32), ("reserved", Array(U32, 9))
)
KVM_IRQ_ROUTING = struct("kvm_irq_routing", ("nr flags", U32))
KVM_IRQ_ROUTING_ENTRY = struct("kvm_irq_routing_entry", ("gsi type flags", U32), (PADDING, U32), ("u", Bytes(32)))
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
    ExitReason.TPR_ACCESS: structures.TPR_ACCESS_EXIT,
    ExitReason.IOAPIC_EOI: structures.EOI_EXIT,
    ExitReason.X86_RDMSR: structures.MSR_EXIT,
    ExitReason.X86_WRMSR: structures.MSR_EXIT,
    ExitReason.DEBUG: structures.DEBUG_EXIT,
    ExitReason.HYPERCALL: structures.HYPERCALL_EXIT,
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
    _both(Fd.SYSTEM, 0x02, "GET_MSR_INDEX_LIST", 4),
    _both(Fd.SYSTEM, 0x05, "GET_SUPPORTED_CPUID", 8),
    _both(Fd.SYSTEM, 0x09, "GET_EMULATED_CPUID", 8),
    _both(Fd.SYSTEM, 0x0A, "GET_MSR_FEATURE_INDEX_LIST", 4),
    _both(Fd.SYSTEM, 0x88, "GET_MSRS", 8),
    _read(Fd.SYSTEM, 0x9D, "X86_GET_MCE_CAP_SUPPORTED", struct("__u64", ("mcg_cap", ADDR))),
    _plain(Fd.VM, 0x03, "CHECK_EXTENSION"),
    _plain(Fd.VM, 0x41, "CREATE_VCPU"),
    _write(Fd.VM, 0x42, "GET_DIRTY_LOG", KVM_DIRTY_LOG),
    _plain(Fd.VM, 0x44, "SET_NR_MMU_PAGES"),
    _plain(Fd.VM, 0x45, "GET_NR_MMU_PAGES"),
    _write(Fd.VM, 0x46, "SET_USER_MEMORY_REGION", KVM_USERSPACE_MEMORY_REGION),
    _plain(Fd.VM, 0x47, "SET_TSS_ADDR"),
    _write(Fd.VM, 0x48, "SET_IDENTITY_MAP_ADDR", struct("__u64", ("address", ADDR))),
    _write(Fd.VM, 0x49, "SET_USER_MEMORY_REGION2", KVM_USERSPACE_MEMORY_REGION2),
    _plain(Fd.VM, 0x60, "CREATE_IRQCHIP"),
    _write(Fd.VM, 0x61, "IRQ_LINE", KVM_IRQ_LEVEL),
    _both(Fd.VM, 0x62, "GET_IRQCHIP", KVM_IRQCHIP),
    Ioctl("KVM_SET_IRQCHIP", Fd.VM, 0x63, Direction.READ, KVM_IRQCHIP.size, KVM_IRQCHIP),  # the kernel's own slip
    _both(Fd.VM, 0x67, "IRQ_LINE_STATUS", KVM_IRQ_LEVEL),
    _write(Fd.VM, 0x6A, "SET_GSI_ROUTING", KVM_IRQ_ROUTING),
    _write(Fd.VM, 0x76, "IRQFD", 32),
    _write(Fd.VM, 0x77, "CREATE_PIT2", KVM_PIT_CONFIG),
    _write(Fd.VM, 0x79, "IOEVENTFD", 64),
    _read(Fd.VM, 0x9F, "GET_PIT2", KVM_PIT_STATE2),
    _write(Fd.VM, 0xA0, "SET_PIT2", KVM_PIT_STATE2),
    _write(Fd.VM, 0xA3, "ENABLE_CAP", KVM_ENABLE_CAP),
    _plain(Fd.VM, 0xA3, "GET_TSC_KHZ"),
    _write(Fd.VM, 0xA5, "SIGNAL_MSI", KVM_MSI),
    _both(Fd.VM, 0xC0, "CLEAR_DIRTY_LOG", KVM_CLEAR_DIRTY_LOG),
    _plain(Fd.VM, 0x78, "SET_BOOT_CPU_ID"),
    _write(Fd.VM, 0x67, "REGISTER_COALESCED_MMIO", structures.KVM_COALESCED_MMIO_ZONE),
    _write(Fd.VM, 0x68, "UNREGISTER_COALESCED_MMIO", structures.KVM_COALESCED_MMIO_ZONE),
    _write(Fd.VM, 0x7B, "SET_CLOCK", structures.KVM_CLOCK_DATA),
    _read(Fd.VM, 0x7C, "GET_CLOCK", structures.KVM_CLOCK_DATA),
    _plain(Fd.VM, 0xA2, "SET_TSC_KHZ"),
    _write(Fd.VM, 0xC6, "X86_SET_MSR_FILTER", structures.KVM_MSR_FILTER),
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
    _read(Fd.VCPU, 0x8E, "GET_LAPIC", KVM_LAPIC_STATE),
    _write(Fd.VCPU, 0x8F, "SET_LAPIC", KVM_LAPIC_STATE),
    _write(Fd.VCPU, 0x90, "SET_CPUID2", 8),
    _both(Fd.VCPU, 0x91, "GET_CPUID2", 8),
    _both(Fd.VCPU, 0x92, "TPR_ACCESS_REPORTING", structures.KVM_TPR_ACCESS_CTL),
    _write(Fd.VCPU, 0x93, "SET_VAPIC_ADDR", structures.KVM_VAPIC_ADDR),
    _read(Fd.VCPU, 0x98, "GET_MP_STATE", KVM_MP_STATE),
    _write(Fd.VCPU, 0x99, "SET_MP_STATE", KVM_MP_STATE),
    _plain(Fd.VCPU, 0x9A, "NMI"),
    _write(Fd.VCPU, 0x9B, "SET_GUEST_DEBUG", structures.KVM_GUEST_DEBUG),
    _write(Fd.VCPU, 0x9C, "X86_SETUP_MCE", struct("__u64", ("mcg_cap", ADDR))),
    _write(Fd.VCPU, 0x9E, "X86_SET_MCE", structures.KVM_X86_MCE),
    _plain(Fd.VCPU, 0xA2, "SET_TSC_KHZ"),
    _plain(Fd.VCPU, 0xAD, "KVMCLOCK_CTRL"),
    _write(Fd.VCPU, 0xE1, "SET_DEVICE_ATTR", structures.KVM_DEVICE_ATTR),
    _write(Fd.VCPU, 0xE2, "GET_DEVICE_ATTR", structures.KVM_DEVICE_ATTR),
    _write(Fd.VCPU, 0xE3, "HAS_DEVICE_ATTR", structures.KVM_DEVICE_ATTR),
    _read(Fd.VCPU, 0x9F, "GET_VCPU_EVENTS", KVM_VCPU_EVENTS),
    _write(Fd.VCPU, 0xA0, "SET_VCPU_EVENTS", KVM_VCPU_EVENTS),
    _read(Fd.VCPU, 0xA1, "GET_DEBUGREGS", 128),
    _write(Fd.VCPU, 0xA2, "SET_DEBUGREGS", 128),
    _plain(Fd.VCPU, 0xA3, "GET_TSC_KHZ"),
    _read(Fd.VCPU, 0xA4, "GET_XSAVE", 4096),
    _write(Fd.VCPU, 0xA5, "SET_XSAVE", 4096),
    _read(Fd.VCPU, 0xA6, "GET_XCRS", 392),
    _write(Fd.VCPU, 0xA7, "SET_XCRS", 392),
    _write(Fd.VCPU, 0xA3, "ENABLE_CAP", KVM_ENABLE_CAP),
    _plain(Fd.VCPU, 0xB7, "SMI"),
    _read(Fd.VCPU, 0xCC, "GET_SREGS2", KVM_SREGS2),
    _write(Fd.VCPU, 0xCD, "SET_SREGS2", KVM_SREGS2),
    _plain(Fd.VCPU, 0xCE, "GET_STATS_FD"),
    _read(Fd.VCPU, 0xCF, "GET_XSAVE2", 4096),
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
