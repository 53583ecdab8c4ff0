"""Kickstand's own answer to the thread."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from kickstand.core.atomics import Shared, atomic, blocked
from kickstand.core.errors import KvmError
from kickstand.core.kvm_main import make_all_cpus_request
from kickstand.core.shared.requests import KVM_REQ_USERSPACE_KICK, Request
from kickstand.core.trace import BLOCKED
from kickstand.core.variants.base import Variant

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from kickstand.core.atomics import Task
    from kickstand.core.kvm_main import AnyVcpu
    from kickstand.core.run.run_page import KvmRun
    from kickstand.core.vm import Vm

MOST_HOLDS = 1 << 12  # open at once; a caller that never resumes is told, before it is memory that runs out


class Window(Shared):
    """Who holds the VM's vCPUs out of KVM_RUN, and who is inside: one object, so that the two cannot disagree."""

    __slots__ = ("holders", "inside", "consumers")

    def __init__(self) -> None:
        super().__init__()
        self.holders: tuple[str, ...] = ()  # processes, one entry a hold
        self.inside: set[str] = set()  # vCPU threads in KVM_RUN
        self.consumers: tuple[str, ...] = ()  # processes inside other ioctls that use slots, one entry each

    def state(self) -> tuple[Any, ...]:
        return self.holders, frozenset(self.inside), self.consumers

    def load(self, state: tuple[Any, ...]) -> None:
        self.holders, inside, self.consumers = state
        self.inside = set(inside)

    @atomic
    async def enter(self, task: Task, page: KvmRun) -> bool:
        """Enter KVM_RUN once nobody holds; false if a signal or ``immediate_exit`` comes first."""
        while self.holders:
            if task.signal or page.immediate_exit:
                return False
            await blocked(self, task, page)
        self.inside.add(task.tid)
        return True

    @atomic
    async def leave(self, tid: str) -> None:
        """Leave KVM_RUN; the last one out lets the holders go on."""
        self.inside.discard(tid)
        if not self.inside:
            self.changed()

    @atomic
    async def is_inside(self, tid: str) -> bool:
        """Whether this vCPU thread is in KVM_RUN."""
        return tid in self.inside

    @atomic
    async def held(self) -> bool:
        """Somebody holds."""
        return bool(self.holders)

    @atomic
    async def hold(self, process: str) -> bool:
        """One more hold; true for the first. Holds of different processes are serialised. EBUSY: there are too many."""
        while self.holders and self.holders[0] != process:
            await blocked(self)
        if len(self.holders) >= MOST_HOLDS:
            detail = f"{MOST_HOLDS} holds are open, which is the most: resume first"
            raise KvmError(errno.EBUSY, "KVM_KICK_ALL_RUNNING_VCPUS", detail)
        self.holders += (process,)
        return len(self.holders) == 1

    @atomic
    async def release(self, process: str) -> int:
        """One hold less, if ``process`` has one; the last one lets everybody in. Returns what was released."""
        if process not in self.holders:
            return 0
        self.holders = self.holders[1:]
        if not self.holders:
            self.changed()
        return 1

    @atomic
    async def drained(self, process: str) -> None:
        """Wait until no vCPU is in KVM_RUN and nobody else uses the slots."""
        while self.inside or any(other != process for other in self.consumers):
            await blocked(self)

    @atomic
    async def consume(self, task: Task) -> bool:
        """Enter another ioctl that uses slots: held like KVM_RUN, unless the holder itself calls."""
        while self.holders and self.holders[0] != task.process:
            if task.signal:
                return False
            await blocked(self, task)
        self.consumers += (task.process,)
        return True

    @atomic
    async def consumed(self, process: str) -> None:
        """Leave that ioctl."""
        at = self.consumers.index(process)
        self.consumers = self.consumers[:at] + self.consumers[at + 1 :]
        self.changed()


class Holds(Variant):
    """Refcounted, serialised holds: no exit is lost, no completion runs in the window, nobody spins.

    The request only says "look at the window"; the hold is a count beside the number of vCPUs inside, so
    that only the vCPU clears its own request and RESUME has nothing to race with. A vCPU that calls
    KVM_RUN while held sleeps at the door until RESUME, a signal, or ``immediate_exit``.
    """

    def __init__(self, vm: Vm) -> None:
        super().__init__(vm)
        self.window: Window = vm.share(Window())

    @property
    def exit_test_site(self) -> str:
        """An exit that is ready goes to userspace first; the kick is seen at the door next time."""
        return "after_r"

    async def kick(self, task: Task) -> bool:
        opened = await self.window.hold(task.process)
        self.open_windows += 1
        vcpus = await self.vm.online_vcpus()
        await make_all_cpus_request(vcpus, Request.USERSPACE_KICK)
        for vcpu in vcpus:
            # A request is not seen deep in a page fault, where the page may never come; a signal is.
            if await self.window.is_inside(vcpu.tid):
                await vcpu.task.send_signal()
        await self.window.drained(task.process)
        return opened

    async def take_back(self, task: Task, *, opened: bool) -> None:
        await self.resume(task)

    async def resume(self, task: Task) -> int:
        released = await self.window.release(task.process)
        self.open_windows -= released
        return released

    def saved(self, unsettled: int = 0) -> dict[str, Any]:
        holders = self.window.holders[: max(0, len(self.window.holders) - unsettled)]
        return {"holds": len(holders)}

    def load(self, saved: dict[str, Any], process: str) -> None:
        super().load(saved, process)
        self.window.holders = (process,) * self.open_windows

    async def run_begin(self, vcpu: AnyVcpu) -> object | None:
        if self.open_windows:
            vcpu.show(BLOCKED)
        return await self.window.enter(vcpu.task, vcpu.run_page) or None

    def run_end(self, vcpu: AnyVcpu, held: object) -> Awaitable[None]:
        return self.window.leave(vcpu.tid)

    def completion_test(self, vcpu: AnyVcpu) -> Awaitable[bool]:
        return self.window.held()

    def entry_test(self, vcpu: AnyVcpu) -> Awaitable[bool]:
        return self._asked_to_leave(vcpu)

    def exit_test(self, vcpu: AnyVcpu) -> Awaitable[bool]:
        return self._asked_to_leave(vcpu)

    def block_test(self, vcpu: AnyVcpu) -> Awaitable[bool]:
        return vcpu.requests.test(KVM_REQ_USERSPACE_KICK)

    async def _asked_to_leave(self, vcpu: AnyVcpu) -> bool:
        if not await vcpu.requests.check(KVM_REQ_USERSPACE_KICK):
            return False
        return await self.window.held()

    async def ioctl_begin(self, task: Task, vcpu: AnyVcpu | None = None) -> bool:
        return vcpu is not None or await self.window.consume(task)

    async def ioctl_end(self, task: Task, vcpu: AnyVcpu | None = None) -> None:
        if vcpu is None:
            await self.window.consumed(task.process)
