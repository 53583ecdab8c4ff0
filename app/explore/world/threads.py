"""What runs in a scenario besides the kernel: userspace's vCPU threads, VMM threads, and what they share.

The objects here are userspace's (a resume flag) or the observer's (phases of a transaction, what KVM_RUN
answered): properties are stated in their terms, and a counterexample shows them as steps.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from kickstand.core.atomics import Killed, Mutex, Shared, Task, atomic, blocked
from kickstand.core.errors import KvmError
from kickstand.core.run.exits import Asked, Exit, InternalErrorExit, IoExit, MmioExit, RetryExit
from kickstand.core.uapi import ExitReason
from kickstand.explore.world.killing import Fate
from kickstand.guests.program import Step
from kickstand.guests.script import Piece, ScriptGuest

if TYPE_CHECKING:
    from kickstand.core.guest import Cpu
    from kickstand.core.run.run_page import KvmRun, RunResult
    from kickstand.core.vcpu import Vcpu
    from kickstand.core.vm import Vm


class Moment(StrEnum):
    """When a vCPU's thread does what its VMM wrote for it."""

    START = "start"
    BEFORE_RUN = "before_run"
    AFTER_RUN = "after_run"
    IO = "io"
    MMIO = "mmio"
    EINTR = "eintr"


class Stage(IntEnum):
    """Where a VMM thread is in its transaction."""

    OUTSIDE = 0
    KICKING = 1
    WINDOW = 2  # KICK has returned, RESUME has not begun
    RESUMING = 3


class Transaction(Shared):
    """The stage of one VMM thread's transaction."""

    __slots__ = ("stage",)
    FIELDS = ("stage",)

    def __init__(self) -> None:
        super().__init__()
        self.stage = Stage.OUTSIDE

    @atomic
    async def kick_begins(self) -> None:
        """The VMM calls KICK."""
        self.stage = Stage.KICKING

    @atomic
    async def kick_returned(self) -> None:
        """KICK has returned: the window is open."""
        self.stage = Stage.WINDOW

    @atomic
    async def resume_begins(self) -> None:
        """The VMM calls RESUME: the window closes."""
        self.stage = Stage.RESUMING

    @atomic
    async def resume_returned(self) -> None:
        """RESUME has returned."""
        self.stage = Stage.OUTSIDE


class ResumeFlag(Shared):
    """What a well-behaved userspace waits for after EINTR: cleared before KICK, set after RESUME."""

    __slots__ = ("proceed",)
    FIELDS = ("proceed",)

    def __init__(self) -> None:
        super().__init__()
        self.proceed = True

    @atomic
    async def clear(self) -> None:
        """Before KICK."""
        self.proceed = False

    @atomic
    async def set(self) -> None:
        """After RESUME."""
        self.proceed = True
        self.changed()

    @atomic
    async def wait(self) -> None:
        """After EINTR: until the flag is set."""
        while not self.proceed:
            await blocked(self)


class Gate(Shared):
    """Something that happens once: a vCPU is created, a page arrives."""

    __slots__ = ("open",)
    FIELDS = ("open",)

    def __init__(self) -> None:
        super().__init__()
        self.open = False

    @atomic
    async def set(self) -> None:
        """It has happened."""
        self.open = True
        self.changed()

    @atomic
    async def is_open(self) -> bool:
        """It has happened."""
        return self.open

    @atomic
    async def wait(self) -> None:
        """Wait for it."""
        while not self.open:
            await blocked(self)

    @atomic
    async def wait_interruptible(self, task: Task) -> bool:
        """Wait for it; false if a signal comes first."""
        while not self.open:
            if task.signal:
                return False
            await blocked(self, task)
        return True


class Lock(Mutex):
    """A mutex of userspace (QEMU's BQL), first come, first served; it may be held from one call to the next."""

    __slots__ = ()

    @atomic
    async def lock_or_queue(self, tid: str) -> bool:
        return await super().lock_or_queue(tid)

    @atomic
    async def wait_turn(self, tid: str) -> None:
        await super().wait_turn(tid)

    @atomic
    async def unlock_by(self, tid: str) -> None:
        """Give it back. An assertion: it is this thread's."""
        assert self.owner == tid, f"{tid} unlocks what {self.owner or 'nobody'} holds"
        await super().unlock()


class Event(Shared):
    """Something that one thread of userspace tells another (a flag with a condition variable, an eventfd)."""

    __slots__ = ("posted",)
    FIELDS = ("posted",)

    def __init__(self) -> None:
        super().__init__()
        self.posted = False

    @atomic
    async def post(self) -> None:
        """It has happened."""
        self.posted = True
        self.changed()

    @atomic
    async def wait(self) -> None:
        """Wait for it, and take note: the next one waits for the next time."""
        while not self.posted:
            await blocked(self)
        self.posted = False


@dataclass(frozen=True, slots=True)
class Return:
    """What KVM_RUN answered: an errno (0: an exit), the exit as it is shown, the guest address it is about.

    ``access``: which of a VMM's handlers it is for, if it is an access.
    """

    errno: int
    exit: str = ""
    gpa: int | None = None
    writes: bool = False
    access: Moment | None = None

    def __str__(self) -> str:
        if self.errno:
            return f"-1 {errno.errorcode[self.errno]}"
        return f"0 {self.exit}" + (f" {self.gpa:#x}" if self.gpa is not None else "")


class Userspace(Shared):
    """One vCPU thread in userspace: a place for what it sees of KVM_RUN to show as steps."""

    __slots__ = ()

    @atomic
    async def exit_handled(self, page: KvmRun) -> None:
        """Userspace has done what the shared page asked for, and forgets it."""
        page.exit_reason = ExitReason.UNKNOWN
        page.exit = None

    @atomic
    async def access_completed(self) -> None:
        """KVM_RUN finishes the access that userspace was asked to do, or one it was not told of."""

    @atomic
    async def handle_signal(self, task: Task, page: KvmRun, sets_immediate_exit: bool) -> None:
        """A signal that is not blocked here: its handler runs before anything else does."""
        if task.signal:
            task.signal = False
            page.immediate_exit = page.immediate_exit or sets_immediate_exit

    @atomic
    async def run_returned(self, what: Return) -> None:
        """KVM_RUN answered ``what``."""


def describe(result: RunResult) -> Return:
    """Shape a KVM_RUN result as userspace looks at it."""
    if result.errno:
        return Return(result.errno)
    exit = result.exit
    if isinstance(exit, MmioExit):
        return Return(0, "MMIO write" if exit.is_write else "MMIO read", exit.phys_addr, exit.is_write, Moment.MMIO)
    if isinstance(exit, InternalErrorExit):
        return Return(0, "INTERNAL_ERROR", exit.gpa)
    if isinstance(exit, IoExit):
        return Return(0, f"IO {exit.direction}", access=Moment.IO)
    return Return(0, exit.reason.name if exit is not None else "")


class ExploredGuest(ScriptGuest):
    """The script guest, without contents of memory; may have a page that is not there yet."""

    def __init__(self, vcpu: Vcpu, program: Sequence[Step], userspace: Userspace, fault: Gate | None) -> None:
        super().__init__(vcpu, None, program)
        self.vcpu = vcpu
        self.userspace = userspace
        self.fault = fault

    async def touch(self, cpu: Cpu, step: Step, piece: Piece) -> Exit | None:
        """An access that faults leaves guest mode and waits in the kernel, inside KVM_RUN, for page or signal."""
        if self.fault is not None and not await self.fault_resolved(self.fault):
            return RetryExit(piece.gpa)
        return await super().touch(cpu, step, piece)

    async def complete(self, cpu: Cpu, pending: Asked, reply: bytes | None) -> Exit | None:
        """Say so if it was userspace that was asked, then as every script guest."""
        in_kernel = self.vcpu.in_kernel
        if in_kernel is None or not in_kernel.answers(pending):
            await self.userspace.access_completed()
        return await super().complete(cpu, pending, reply)

    async def fault_resolved(self, fault: Gate) -> bool:
        """True if the page is there; else wait for it outside guest mode, after which the access is retried."""
        if await fault.is_open():
            return True
        vcpu = self.vcpu
        await vcpu.mode.leave()
        await vcpu.arch.srcu_read_lock(vcpu.vm.srcu)  # as ``vcpu_enter_guest`` does after an exit
        await fault.wait_interruptible(vcpu.task)
        await vcpu.arch.srcu_read_unlock(vcpu.vm.srcu)
        return False


class Operation(Protocol):
    """What a VMM thread does at a time: see ``operations``."""

    async def perform(self, thread: VmmThread) -> None:
        """Do it. ``KvmError`` where the ioctl fails."""


@dataclass(slots=True)
class Surroundings:
    """What threads of userspace meet each other with, by name or vCPU."""

    created: dict[int, Gate]
    pages: dict[int, Gate]
    locks: dict[str, Lock]
    events: dict[str, Event]
    fates: dict[str, Fate]  # of the threads that somebody kills
    vcpus: dict[str, Vcpu]  # by the name of their thread


@dataclass(slots=True, eq=False)
class VmmThread:
    """Performs a list of script operations on one VM; ``fate``: somebody may kill it."""

    vm: Vm
    task: Task
    transaction: Any
    flag: ResumeFlag
    around: Surroundings
    fate: Fate | None = None

    async def run(self, operations: Sequence[Operation], *, loop: bool) -> None:
        """Perform all ``operations``, once or for ever."""
        while True:
            await self.each(operations)
            if not loop:
                return

    async def each(self, operations: Sequence[Operation]) -> None:
        """Perform each operation. One that fails is given up, as a VMM logs and goes on."""
        for operation in operations:
            if self.fate is not None and not await self.fate.is_alive():
                raise Killed
            try:  # noqa: SIM105  # a fresh context manager each time would make each local state a new one
                await operation.perform(self)
            except KvmError:
                pass

    async def kick(self) -> None:
        """Close the userspace gate, then KVM_KICK_ALL_RUNNING_VCPUS; whoever is killed in there opens it again."""
        await self.flag.clear()
        await self.transaction.kick_begins()
        try:
            await self.vm.kick_all_running_vcpus(self.task)
        except Killed:
            await self.transaction.resume_returned()
            await self.flag.set()
            raise
        await self.transaction.kick_returned()

    async def resume(self) -> None:
        """KVM_RESUME_ALL_KICKED_VCPUS, then open the userspace gate."""
        await self.transaction.resume_begins()
        await self.vm.resume_all_kicked_vcpus(self.task)
        await self.transaction.resume_returned()
        await self.flag.set()
