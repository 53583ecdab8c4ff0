"""What the kernel core asks of a guest engine, and what an engine sees of its vCPU.

An engine executes a vCPU's instructions. It knows guest-physical memory and nothing of KVM_RUN, requests
or the semaphore. The core calls ``enter``; the engine runs until something only the kernel or userspace
can do (an *exit*), or until an IPI reaches its CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeGuard, runtime_checkable

from kickstand.core.arch.cpu.cpuid import Entry
from kickstand.core.arch.cpu.mce import MachineCheck, Signal
from kickstand.core.arch.kvm_arch import KvmArch
from kickstand.core.memslots import Memslots
from kickstand.core.memslots.dirty_ring import DirtyRing
from kickstand.core.run.exits import Asked, Exit, WindowExit
from kickstand.core.shared.requests import VcpuMode

Share = Callable[[Any], Any]
"""How a driver takes hold of a shared object: what it returns is used in its place."""


class Cpu(Protocol):
    """A vCPU as its guest engine sees it."""

    @property
    def id(self) -> int:
        """The number that KVM_CREATE_VCPU was given."""
        ...

    @property
    def mode(self) -> VcpuMode:
        """Its interrupt line: a pending IPI takes the CPU out of guest mode."""
        ...

    @property
    def memslots(self) -> Memslots:
        """Guest-physical memory."""
        ...

    @property
    def kvm_arch(self) -> KvmArch:
        """What userspace has set up of its VM."""
        ...

    @property
    def dirty_ring(self) -> DirtyRing | None:
        """Where pages of logged slots are noted; None: in the slots' bitmaps."""
        ...

    @property
    def is_boot_vcpu(self) -> bool:
        """It is the one that starts by itself."""
        ...

    @property
    def has_local_apic(self) -> bool:
        """The kernel has an APIC for it, and answers the MSRs of that (``MsrExit``)."""
        ...

    @property
    def share(self) -> Share:
        """To be called for every shared object that the engine has of its own."""
        ...

    def run_delay_ns(self) -> int:
        """How long its thread has waited for a CPU of the host, as far as that is known."""
        ...

    async def wants_interrupt_window(self) -> bool:
        """The guest shall leave with ``WindowExit`` once it would take an interrupt."""
        ...


def no_delay() -> int:
    """``Cpu.run_delay_ns`` until a VMM with threads of its own says otherwise: on an event loop nobody has waited."""
    return 0


class Registers(Protocol):
    """What there is of every vCPU, also of one that the real kernel executes: registers, and a way to stop it."""

    def registers(self) -> dict[str, int]:
        """KVM_GET_REGS."""
        ...

    def set_registers(self, registers: Mapping[str, int]) -> None:
        """KVM_SET_REGS for the named registers."""
        ...

    def special_registers(self) -> dict[str, object]:
        """KVM_GET_SREGS."""
        ...

    def set_special_registers(self, changes: Mapping[str, object]) -> None:
        """KVM_SET_SREGS for the named registers; ``KvmError`` EINVAL for an invalid combination."""
        ...

    def kick(self) -> None:
        """An IPI is on its way: an engine on a thread of its own stops at the next instruction."""
        ...

    def close(self) -> None:
        """The vCPU is gone: give back threads and memory."""
        ...


class Structures(Protocol):
    """A CPU's state in KVM's structures; what is set is checked as the kernel does (``KvmError`` EINVAL)."""

    fpu: bytes
    xsave: bytes
    debug_registers: bytes
    events: dict[str, Any]

    def translate(self, address: int) -> int | None:
        """KVM_TRANSLATE: the guest-physical address; None where there is none."""
        ...


class Counter(Protocol):
    """A time-stamp counter: ``khz`` ticks in a millisecond, ``offset`` to the host's at that rate."""

    @property
    def khz(self) -> int: ...

    @property
    def offset(self) -> int: ...

    def set_khz(self, khz: int) -> None:
        """It goes on from where it is, at another rate."""
        ...

    def set_offset(self, offset: int) -> None:
        """It jumps; counters of vCPUs to come follow it."""
        ...


@runtime_checkable
class Modelled(Protocol):
    """An engine whose CPU has CPUID and MSRs."""

    @property
    def cpuid(self) -> Sequence[Entry]:
        """KVM_GET_CPUID2."""
        ...

    @property
    def structures(self) -> Structures:
        """The rest of its state."""
        ...

    def set_cpuid(self, entries: Iterable[Entry]) -> None:
        """KVM_SET_CPUID2; ``KvmError`` as ``cpuid.check_entries``."""
        ...

    @property
    def counter(self) -> Counter:
        """Its time-stamp counter."""
        ...

    def set_up_machine_checks(self, mcg_cap: int) -> None:
        """KVM_X86_SETUP_MCE; ``KvmError`` as ``mce.set_up``."""
        ...

    def machine_check(self, error: MachineCheck) -> Signal:
        """KVM_X86_SET_MCE: what else has to be done about it; ``KvmError`` as ``mce.report``."""
        ...

    def set_guest_debug(self, control: int, registers: Sequence[int]) -> None:
        """KVM_SET_GUEST_DEBUG; ``KvmError`` EBUSY: an exception is to be injected, and one waits already."""
        ...

    def tell_paused(self) -> bool:
        """KVM_KVMCLOCK_CTRL; False: the guest has no clock that could say so."""
        ...

    def enforce_pv(self, *, enforced: bool) -> None:
        """KVM_CAP_ENFORCE_PV_FEATURE_CPUID: of KVM's own features only those are there that CPUID lists."""
        ...

    def read_msrs(self, indices: Iterable[int]) -> list[int]:
        """KVM_GET_MSRS: the values up to the first that there is not."""
        ...

    def write_msrs(self, entries: Iterable[tuple[int, int]]) -> int:
        """KVM_SET_MSRS: how many were taken; the next one was refused."""
        ...


@runtime_checkable
class Executes(Protocol):
    """An engine that executes machine code, and can reach the guest's memory for the kernel."""

    @property
    def instruction_pointer(self) -> int:
        """RIP of the instruction whose access is being answered."""
        ...

    def ns_until(self, tsc: int) -> int:
        """How long it takes the time stamp counter to get there; 0 if it has been there."""
        ...

    def read_memory(self, gpa: int, length: int) -> bytes | None:
        """``kvm_read_guest``, within a page; None where there is no memory."""
        ...

    def write_memory(self, gpa: int, data: bytes) -> bool:
        """``kvm_write_guest``, within a page, and logged; false where there is no memory to write."""
        ...


def is_modelled(guest: object) -> TypeGuard[Modelled]:
    """``isinstance``, which looks at every member of a protocol each time (before Python 3.12)."""
    kind = type(guest)
    known = _MODELLED.get(kind)
    if known is None:
        known = _MODELLED[kind] = isinstance(guest, Modelled)
    return known


_MODELLED: dict[type, bool] = {}


class Guest(Registers, Protocol):
    """A guest engine: the CPU of one vCPU.

    The coroutines run as part of KVM_RUN and may await the core's operations, ``preempt`` and ``outside``;
    the plain methods are called between them, on the same thread.
    """

    async def enter(self, cpu: Cpu, /) -> Exit:
        """Execute until an exit; ``InterruptedExit`` as soon as an IPI is pending for the CPU."""
        ...

    async def complete(self, cpu: Cpu, pending: Asked, reply: bytes | None, /) -> Exit | None:
        """Finish the access behind ``pending`` with the device's answer, executing nothing beyond it.

        ``reply`` None means that userspace wrote nothing: the bytes that lie in the shared page count.
        Returns a further exit of the same instruction, or None when it is finished.
        """
        ...

    def next_element(self) -> Exit | None:
        """The kernel itself took a write that is complete: the next exit if the same instruction repeats it."""
        ...

    def interrupts_allowed(self) -> bool:
        """The guest would take an interrupt now."""
        ...

    @property
    def event_waits(self) -> bool:
        """An event handed over for delivery still waits (``interrupt.injected``): no other comes in."""
        ...

    def interrupt(self, vector: int) -> None:
        """Deliver this interrupt at the next entry; one that still waits is replaced."""
        ...

    def nmi(self) -> None:
        """Deliver an NMI at the next entry."""
        ...

    @property
    def handles_interrupts(self) -> bool:
        """False: it has no handlers. An interrupt is over as soon as it is delivered, and its APIC comes up enabled."""
        ...

    @property
    def task_priority(self) -> int | None:
        """CR8 (0 to 15), which is the upper half of the APIC's TPR; None: no such register."""
        ...

    def set_task_priority(self, priority: int) -> None:
        """CR8 follows a write to TPR."""
        ...

    def reset(self) -> None:
        """``kvm_vcpu_reset`` on INIT: registers as after INIT; what waited for delivery is forgotten."""
        ...

    def start_at(self, vector: int) -> None:
        """A SIPI: start in real mode at ``vector << 12``."""
        ...

    def window_exit(self) -> WindowExit | None:
        """The exit for an open interrupt window, or None while it is closed."""
        ...

    @property
    def source(self) -> object:
        """What is executed besides guest memory, as JSON; None where that is all. It is replaced, never changed."""
        ...

    def saved(self) -> dict[str, Any]:
        """The CPU as JSON, without ``source``; not while it is in guest mode on a thread of its own."""
        ...

    def load(self, saved: Mapping[str, Any], source: object, *, pending: bool) -> None:
        """Become the CPU that was saved. ``pending``: KVM_RUN will complete the access at which it stopped.

        ``KvmError`` EINVAL, ``KeyError``, ``TypeError`` or ``ValueError``: this engine cannot have saved that.
        """
        ...
