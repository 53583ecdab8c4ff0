"""What the program's descriptors stand for: a VM of the registry with its memory, and each vCPU with its page."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

from kickstand.core.memslots import Region
from kickstand.core.run.stats import of_vcpu
from kickstand.core.uapi import PAGE_SHIFT
from kickstand.exec.device.fds.eventfds import EventFds
from kickstand.exec.device.fds.irqfds import IrqFds
from kickstand.exec.device.fds.stats import StatsFile
from kickstand.exec.device.run_page import MappedPage
from kickstand.exec.host.process import Process, RunDelay
from kickstand.exec.memory.sharing import SharedMemory
from kickstand.exec.protection import Protection
from kickstand.exec.tracing import VmTrace
from kickstand.runtime.machine import Machine


class ProgramVm:
    """A VM that a process of the program made. It ends when its descriptor and all its vCPUs' are closed."""

    def __init__(
        self,
        machine: Machine,
        space: AddressSpace,
        protection: Protection,
        on_end: Callable[[ProgramVm], None],
        trace: VmTrace | None = None,
    ) -> None:
        self.trace = trace
        self.machine = machine
        self.space = space
        self.protection = protection
        self.eventfds = EventFds()
        self.irqfds = IrqFds(machine)
        self.vcpus: dict[int, ProgramVcpu] = {}
        self.stats = StatsFile(f"kvm-{space.process.tgid}", self._stats)
        self._open = True
        self._ended = False
        self._on_end = on_end
        machine.memory = space.memory.memory

    def _stats(self) -> dict[str, int]:
        vm = self.machine.vm
        return {"vcpus": len(vm.vcpus), "memslots": len(vm.memslots.slots), "kicks": self.machine.window.kick_id}

    def closed(self) -> None:
        """Its last descriptor has gone."""
        self._open = False
        self.end_if_unused()

    def end_if_unused(self) -> None:
        """``kvm_put_kvm``: a vCPU's descriptor holds its VM too."""
        if not self._open and not self.vcpus:
            self.abandon()

    def abandon(self) -> None:
        """End it, whoever still has it."""
        if not self._ended:
            self._ended = True
            self.eventfds.close()
            self.stats.close()
            self.irqfds.close()
            self._on_end(self)

    @property
    def busy(self) -> bool:
        """A thread is in KVM_RUN."""
        return any(vcpu.inside for vcpu in self.vcpus.values())

    def ranges(self) -> Iterator[tuple[int, int]]:
        """The host addresses of all slots."""
        for slot in self.machine.vm.memslots.slots.values():
            yield slot.userspace_addr, slot.userspace_addr + (slot.npages << PAGE_SHIFT)

    def noted(self, region: Region) -> None:
        """A slot was made or changed: before the next entry its memory is looked at."""
        if region.memory_size:
            self.space.memory.note(region.userspace_addr, region.memory_size)


class ProgramVcpu:
    """A vCPU, its shared pages, and the thread that is in KVM_RUN."""

    def __init__(self, vm: ProgramVm, vcpu_id: int, page: MappedPage) -> None:
        self.vm = vm
        self.id = vcpu_id
        self.page = page
        self.core = vm.machine.vcpu(vcpu_id)
        self.core.run_page = page
        self.stats = StatsFile(f"kvm-{vm.space.process.tgid}/vcpu-{vcpu_id}", self._stats)
        self.mask: int | None = None
        self.core.run_delay_ns = self.run_delay = RunDelay()
        self.inside = 0  # threads in KVM_RUN, those that wait for their turn included
        self._closed = False
        vm.machine.vm.arch.coalesced.map(page.coalesced)
        if self.core.dirty_ring is not None and page.ring is not None:
            self.core.dirty_ring.map(page.ring)
        vm.vcpus[vcpu_id] = self

    def _stats(self) -> dict[str, int]:
        return of_vcpu(self.core.watched.counters)

    def traced_entry(self, trace: VmTrace) -> dict[str, Any]:
        """Note what the program has written since; what it says to KVM_RUN by the page, as arguments of the call."""
        if not self.vm.busy:
            trace.entering()
        trace.window(self.id, self.page.window_requested)
        # A signal may have ended the run that finished the access, which the page still shows.
        asked = self.core.mutex.owner is None and self.core.arch.pending is not None
        return {"immediate_exit": self.page.immediate_exit or None, "reply": self.page.reply_bytes() if asked else None}

    def closed(self) -> None:
        """Its last descriptor and its last mapping have gone."""
        self._closed = True
        self.end_if_unused()

    def end_if_unused(self) -> None:
        """Free the page once no KVM_RUN can write it."""
        if self._closed and not self.inside and self.vm.vcpus.get(self.id) is self:
            del self.vm.vcpus[self.id]
            self.stats.close()
            self.vm.machine.vm.arch.coalesced.unmap(self.page.coalesced)
            self.page.close()
            self.vm.end_if_unused()


class AddressSpace:
    """A process of the program, and the guest memory of all VMs that it made."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.memory = SharedMemory(process)
        self.vms: set[ProgramVm] = set()
        self.sharing = asyncio.Lock()  # held while private memory is made shared

    def ranges(self) -> Iterator[tuple[int, int]]:
        """The host addresses of all slots of all its VMs."""
        for vm in self.vms:
            yield from vm.ranges()

    @property
    def busy(self) -> bool:
        """A thread is in KVM_RUN of one of its VMs, or about to be."""
        return self.sharing.locked() or any(vm.busy for vm in self.vms)

    def collect(self) -> None:
        """Give memory back that nothing uses any more, if no guest can be in guest mode."""
        if not self.busy:
            self.memory.collect()

    def close(self) -> None:
        """The process has gone, and its VMs too."""
        self.memory.close()
        self.process.close()
