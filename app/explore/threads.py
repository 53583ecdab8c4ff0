"""What runs in a scenario besides the kernel: userspace's vCPU threads, VMM threads, and what they share.

The objects here are userspace's (a resume flag) or the observer's (phases of a transaction, what KVM_RUN
answered): properties are stated in their terms, and a counterexample shows them as steps.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from app.core.atomics import Shared, Task, atomic, blocked
from app.core.errors import KvmError
from app.core.guest import Exit, InternalErrorExit, IoExit, MmioExit, RetryExit
from app.core.memslots import Region
from app.core.uapi import ExitReason
from app.guests.script import Piece, ScriptGuest, Step

if TYPE_CHECKING:
    from app.core.run_page import KvmRun, RunResult
    from app.core.vcpu import Vcpu
    from app.core.vm import Vm


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


@dataclass(frozen=True, slots=True)
class Return:
    """What KVM_RUN answered: an errno (0: an exit), the exit's name, the guest address it is about."""

    errno: int
    exit: str = ""
    gpa: int | None = None

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
    async def run_returned(self, what: Return) -> None:
        """KVM_RUN answered ``what``."""


def describe(result: RunResult) -> Return:
    """Shape a KVM_RUN result as userspace looks at it."""
    if result.errno:
        return Return(result.errno)
    exit = result.exit
    if isinstance(exit, MmioExit):
        return Return(0, "MMIO write" if exit.is_write else "MMIO read", exit.phys_addr)
    if isinstance(exit, InternalErrorExit):
        return Return(0, "INTERNAL_ERROR", exit.gpa)
    if isinstance(exit, IoExit):
        return Return(0, f"IO {exit.direction}")
    return Return(0, exit.reason.name if exit is not None else "")


class ExploredGuest(ScriptGuest):
    """The script guest, without contents of memory; may have a page that is not there yet."""

    def __init__(self, vcpu: Vcpu, program: Sequence[Step], fault: Gate | None) -> None:
        super().__init__(vcpu, None, program)
        self.fault = fault

    async def touch(self, vcpu: Vcpu, step: Step, piece: Piece) -> Exit | None:
        """An access that faults leaves guest mode and waits in the kernel, inside KVM_RUN, for page or signal."""
        if self.fault is not None and not await self.fault_resolved(vcpu, self.fault):
            return RetryExit(piece.gpa)
        return await super().touch(vcpu, step, piece)

    async def fault_resolved(self, vcpu: Vcpu, fault: Gate) -> bool:
        """True if the page is there; else wait for it outside guest mode, after which the access is retried."""
        if await fault.is_open():
            return True
        await vcpu.mode.leave()
        await vcpu.arch.srcu_read_lock(vcpu.vm.srcu)  # as ``vcpu_enter_guest`` does after an exit
        await fault.wait_interruptible(vcpu.task)
        await vcpu.arch.srcu_read_unlock(vcpu.vm.srcu)
        return False


async def vcpu_thread(vcpu: Vcpu, userspace: Userspace, flag: ResumeFlag | None, created: Gate | None) -> None:
    """Call KVM_RUN for ever. ``flag`` None is the careless userspace."""
    if created is not None:
        await created.wait()
    while True:
        what = describe(await vcpu.run_from_userspace())
        await userspace.run_returned(what)
        await userspace.exit_handled(vcpu.run_page)
        if what.errno and flag is not None:
            await flag.wait()


class VmmThread:
    """Performs a list of script operations on one VM."""

    def __init__(
        self,
        vm: Vm,
        task: Task,
        transaction: Transaction,
        flag: ResumeFlag,
        created: Mapping[int, Gate],
        pages: Mapping[int, Gate],
    ) -> None:
        self.vm = vm
        self.task = task
        self.transaction = transaction
        self.flag = flag
        self.created = created
        self.pages = pages

    async def run(self, operations: Sequence[Mapping[str, Any]], *, loop: bool) -> None:
        """Perform all ``operations``, once or for ever. One that fails is given up, as a VMM logs and goes on."""
        while True:
            for operation in operations:
                try:  # noqa: SIM105  # a fresh context manager each time would make each local state a new one
                    await self.perform(operation["op"], operation.get("args", {}))
                except KvmError:
                    pass
            if not loop:
                return

    def perform(self, op: str, args: Mapping[str, Any]) -> Awaitable[None]:
        """One operation by its name in scripts."""
        handler: Any = getattr(self, f"op_{op}")
        done: Awaitable[None] = handler(**args)
        return done

    async def op_kick(self) -> None:
        """Close the userspace gate, then KVM_KICK_ALL_RUNNING_VCPUS."""
        await self.flag.clear()
        await self.transaction.kick_begins()
        await self.vm.kick_all_running_vcpus(self.task)
        await self.transaction.kick_returned()

    async def op_resume(self) -> None:
        """KVM_RESUME_ALL_KICKED_VCPUS, then open the userspace gate."""
        await self.transaction.resume_begins()
        await self.vm.resume_all_kicked_vcpus(self.task)
        await self.transaction.resume_returned()
        await self.flag.set()

    async def op_memory_transaction(self, operations: Sequence[Mapping[str, Any]], protect: str = "variant") -> None:
        """Protected as the variant does it: KICK, every operation, RESUME; or one list ioctl instead of a kick."""
        kind = self.vm.variant.protects_by if protect == "variant" else protect
        if kind == "kick":
            await self.op_kick()
        if kind == "list":
            await self.listed(operations)
        else:
            for operation in operations:
                try:  # noqa: SIM105  # a fresh context manager each time would make each local state a new one
                    await self.perform(operation["op"], operation.get("args", {}))
                except KvmError:
                    pass
        if kind == "kick":
            await self.op_resume()

    async def listed(self, operations: Sequence[Mapping[str, Any]]) -> None:
        """All slot changes in one list ioctl, after everything else in the transaction."""
        for operation in operations:
            if operation["op"] != "set_memory_region":
                await self.perform(operation["op"], operation.get("args", {}))
        regions = [region_of(**operation["args"]) for operation in operations if operation["op"] == "set_memory_region"]
        await self.vm.set_user_memory_region_list(regions, self.task)

    async def op_set_memory_region(self, **args: Any) -> None:
        """KVM_SET_USER_MEMORY_REGION."""
        await self.vm.set_user_memory_region(region_of(**args), self.task)

    async def op_get_dirty_log(self, slot: int) -> None:
        """KVM_GET_DIRTY_LOG."""
        await self.vm.get_dirty_log(slot, self.task)

    async def op_create_vcpu(self, id: int) -> None:
        """KVM_CREATE_VCPU, and its thread starts."""
        await self.vm.create_vcpu(id, self.task)
        await self.created[id].set()

    async def op_signal(self, vcpu: int) -> None:
        """A signal to a vCPU's thread."""
        await self.vm.vcpus[vcpu].send_signal()

    async def op_read_slots(self, gpa: int) -> None:
        """An ioctl that translates a guest address (KVM_TRANSLATE and its like)."""
        if not await self.vm.variant.ioctl_begin(self.task):
            return
        await self.vm.memslots.lookup(gpa)
        await self.vm.variant.ioctl_end(self.task)

    async def op_provide_page(self, vcpu: int) -> None:
        """The page that a guest access of ``vcpu`` waits for arrives."""
        await self.pages[vcpu].set()


def region_of(slot: int, flags: int, gpa: int, size: int, host: int = 0) -> Region:
    """The region that a ``set_memory_region`` operation names."""
    return Region(slot, flags, gpa, size, host)
