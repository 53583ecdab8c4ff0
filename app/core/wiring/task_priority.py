"""The task priority of a vCPU's APIC, where it is not the APIC's own: CR8, the VAPIC word in guest memory, reports.

Old guests raise and lower it all the time, by the APIC page, where each access costs an exit. A VMM patches these
accesses (QEMU's kvmvapic): it is told of each (KVM_EXIT_TPR_ACCESS), and then the priority lies in a word of the
guest's memory, which is looked at before and after guest mode.
"""

from __future__ import annotations

from kickstand.core.arch.irq.lapic import Lapic
from kickstand.core.arch.irq.registers import TASKPRI
from kickstand.core.guest import Executes, Guest
from kickstand.core.kvm_main import AnyVcpu
from kickstand.core.run.exits import MmioExit
from kickstand.core.shared.requests import Request

_WORD = 4


class TaskPriority:
    """That of one vCPU; on its own thread, inside KVM_RUN."""

    def __init__(self, vcpu: AnyVcpu, guest: Guest, apic: Lapic) -> None:
        self._vcpu = vcpu
        self._guest = guest
        self._apic = apic

    async def show(self) -> None:
        """``kvm_lapic_sync_to_vapic``: the guest is about to run."""
        if self._apic.vapic is not None and isinstance(self._guest, Executes):
            word = await self._vcpu.arch.vapic_word()
            self._guest.write_memory(self._apic.vapic, word.to_bytes(_WORD, "little"))

    async def follow(self) -> None:
        """The guest has left: CR8 and the word are its own, and the APIC sees only now where they have moved."""
        priority = self._guest.task_priority
        if priority is not None and priority != self._apic.task_priority:
            await self._vcpu.arch.set_task_priority(priority << 4)
        if self._apic.vapic is not None and isinstance(self._guest, Executes):
            word = self._guest.read_memory(self._apic.vapic, _WORD)
            if word is not None and word[0] != self._apic.words[TASKPRI >> 2]:
                await self._vcpu.arch.set_task_priority(word[0])
                self._guest.set_task_priority(self._apic.task_priority)

    async def accessed(self, exit: MmioExit) -> None:
        """``report_tpr_access``: the guest has read or written it in the APIC page."""
        if not self._apic.reports_tpr or exit.phys_addr - self._apic.address & ~0xF != TASKPRI:
            return
        if isinstance(self._guest, Executes):
            await self._vcpu.arch.report_tpr_access(self._guest.instruction_pointer, is_write=exit.is_write)
            await self._vcpu.make_request(Request.REPORT_TPR_ACCESS)
