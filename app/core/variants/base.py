"""What a variant of the proposal decides: the two ioctls, and what KVM_RUN does because of them.

A variant is one file in this folder with one class; its name is the file's. The hooks below are all the
places where the proposals differ; the base class is a kernel without any of them.

The hooks of KVM_RUN are awaited; one that is a single operation returns it instead of awaiting it itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from kickstand.core.run.run_page import KICKED, Cause

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from kickstand.core.atomics import Task
    from kickstand.core.kvm_main import AnyVcpu
    from kickstand.core.memslots import Region
    from kickstand.core.vm import Vm


async def no() -> bool:
    """Answer a question that a variant does not ask."""
    return False


class Variant:
    """One answer to "how does userspace get all vCPUs out of KVM_RUN, and keep them out?".

    ``name`` is set from the file's name; the docstring's first line is the summary that users see.
    ``protects_by`` is how a memory transaction is protected under this variant: by ``kick``, by ``list``, or ``none``.
    """

    name: ClassVar[str] = ""
    protects_by: ClassVar[str] = "kick"
    entry_cause: ClassVar[Cause] = KICKED  # of the EINTR that a true ``entry_test`` means
    has_userspace_half: ClassVar[bool] = False  # set from the hooks that a class overrides

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.has_userspace_half = any(
            getattr(cls, hook) is not getattr(Variant, hook) for hook in ("ioctl_begin", "ioctl_end", "eintr")
        )

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        self.open_windows = 0  # open windows, for watchers

    @property
    def exit_test_site(self) -> str:
        """Whether ``exit_test`` comes before or after ``r`` is looked at: the VM's switch."""
        return self.vm.switches.exit_test

    def init_vcpu(self, vcpu: AnyVcpu) -> None:
        """A vCPU's structure is being made: the place for ``vm.share`` of what the variant keeps for each vCPU."""

    # -- the two ioctls ----------------------------------------------------------------------------------

    async def kick(self, task: Task) -> bool:
        """KVM_KICK_ALL_RUNNING_VCPUS; true if it opened a window."""
        return False

    async def resume(self, task: Task) -> int:
        """KVM_RESUME_ALL_KICKED_VCPUS; how many requests or holds it cleared."""
        return 0

    async def take_back(self, task: Task, *, opened: bool) -> None:
        """Undo a KICK whose caller was killed before it returned; must not block.

        ``opened`` False: there was a window before, which stays.
        """

    def saved(self, unsettled: int = 0) -> dict[str, Any]:
        """What outlives the process, as JSON: the open windows, without ``unsettled`` ones that nobody was told of."""
        return {"holds": self.open_windows}

    def load(self, saved: dict[str, Any], process: str) -> None:
        """Put ``saved`` back, the windows as those of ``process``; no vCPU is in KVM_RUN."""
        self.open_windows = int(saved["holds"])

    # -- KVM_SET_USER_MEMORY_REGION ------------------------------------------------------------------------

    async def region_begin(self, region: Region, task: Task) -> None:
        """Before the ioctl takes ``slots_lock``."""

    async def region_end(self, region: Region, task: Task) -> None:
        """After it has succeeded and given the lock back."""

    async def regions_done(self, task: Task) -> None:
        """Userspace: a thread that changed slots changes no more for now: what it deleted is gone for good."""

    # -- KVM_RUN -----------------------------------------------------------------------------------------

    async def run_begin(self, vcpu: AnyVcpu) -> object | None:
        """Take the read side around KVM_RUN; what it returns goes to ``run_end``. None: a signal came first.

        Shows that the vCPU is ``WAITING`` if it has to wait.
        """
        return True

    def run_end(self, vcpu: AnyVcpu, held: object) -> Awaitable[object]:
        """Give the read side back."""
        return no()

    def completion_test(self, vcpu: AnyVcpu) -> Awaitable[bool]:
        """Before a pending access is completed: whether to leave with EINTR and keep it pending."""
        return no()

    def entry_test(self, vcpu: AnyVcpu) -> Awaitable[bool]:
        """Site 1 of the patch, first among the pending requests: whether to leave with EINTR."""
        return no()

    def exit_test(self, vcpu: AnyVcpu) -> Awaitable[bool]:
        """Site 2, after guest or sleep: whether to leave with EINTR."""
        return no()

    def block_test(self, vcpu: AnyVcpu) -> Awaitable[bool]:
        """Site 3, last condition of ``check_block``: whether to end the sleep."""
        return no()

    async def vcpu_created(self, vcpu: AnyVcpu) -> None:
        """A vCPU is about to come online."""

    # -- userspace's half ----------------------------------------------------------------------------------

    async def ioctl_begin(self, task: Task, vcpu: AnyVcpu | None = None) -> bool:
        """Before userspace issues an ioctl that uses memory slots. False: a signal came first; do not issue it."""
        return True

    async def ioctl_end(self, task: Task, vcpu: AnyVcpu | None = None) -> None:
        """After it returned."""

    async def eintr(self, vcpu: AnyVcpu) -> None:
        """Userspace handles an EINTR of KVM_RUN (QEMU eats the signal and resets ``immediate_exit``)."""
