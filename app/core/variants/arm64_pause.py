"""What arm64 has for its own use: ``kvm_arm_halt_guest`` and ``kvm_arm_resume_guest``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kickstand.core.atomics import Shared, Task, atomic, blocked
from kickstand.core.kvm_main import make_all_cpus_request
from kickstand.core.run.run_page import Cause
from kickstand.core.shared.requests import Request
from kickstand.core.trace import BLOCKED, KERNEL
from kickstand.core.variants.base import Variant

if TYPE_CHECKING:
    from kickstand.core.kvm_main import AnyVcpu
    from kickstand.core.vm import Vm


class Pause(Shared):
    """``vcpu->arch.pause``, and the rcuwait that its vCPU sleeps in."""

    __slots__ = ("paused",)
    FIELDS = ("paused",)

    def __init__(self) -> None:
        super().__init__()
        self.paused = False

    @atomic
    async def set(self) -> None:
        """``vcpu->arch.pause = true``."""
        self.paused = True

    @atomic
    async def clear(self) -> bool:
        """``vcpu->arch.pause = false`` and ``rcuwait_wake_up``; says whether it was set."""
        was, self.paused = self.paused, False
        self.changed()
        return was

    @atomic
    async def wait(self, task: Task) -> bool:
        """``rcuwait_wait_event(wait, !pause, TASK_INTERRUPTIBLE)``; true if it is still paused: a signal came."""
        while self.paused and not task.signal:
            await blocked(self, task)
        return self.paused


class Arm64Pause(Variant):
    """arm64's pause: a flag for each vCPU, which sleeps inside KVM_RUN until RESUME; nobody is drained."""

    entry_cause = Cause.SIGNAL  # nothing else ends a sleep

    def __init__(self, vm: Vm) -> None:
        super().__init__(vm)
        self.pauses: dict[int, Pause] = {}

    def init_vcpu(self, vcpu: AnyVcpu) -> None:
        self.pauses[vcpu.id] = self.vm.share(Pause())

    async def kick(self, task: Task) -> bool:
        opened, self.open_windows = not self.open_windows, 1
        vcpus = await self.vm.online_vcpus()
        for vcpu in vcpus:
            await self.pauses[vcpu.id].set()
        await make_all_cpus_request(vcpus, Request.USERSPACE_KICK)
        return opened

    async def resume(self, task: Task) -> int:
        self.open_windows = 0
        return sum([await self.pauses[vcpu.id].clear() for vcpu in await self.vm.online_vcpus()])

    async def take_back(self, task: Task, *, opened: bool) -> None:
        await self.resume(task)

    def load(self, saved: dict[str, Any], process: str) -> None:
        """Where a window is open, every vCPU is paused; one that slept had taken its request."""
        super().load(saved, process)
        if self.open_windows:
            for vcpu_id, vcpu in self.vm.vcpus.items():
                self.pauses[vcpu_id].paused = True
                vcpu.requests.bits |= Request.USERSPACE_KICK.bit

    async def entry_test(self, vcpu: AnyVcpu) -> bool:
        """``check_vcpu_requests``: KVM_REQ_SLEEP. SRCU is given back, or the deletion waits for the sleeper."""
        if not await vcpu.requests.check(Request.USERSPACE_KICK):
            return False
        await vcpu.arch.srcu_read_unlock(self.vm.srcu)
        vcpu.show(BLOCKED)
        still = await self.pauses[vcpu.id].wait(vcpu.task)
        vcpu.show(KERNEL)
        await vcpu.arch.srcu_read_lock(self.vm.srcu)
        if still:
            await vcpu.make_request(Request.USERSPACE_KICK)  # a signal: come back to sleep
        return still
