"""Machines from what was kept of them: after a restart, or from a snapshot.

Nothing of a machine exists before all of its parts have been read and understood. It comes up kicked: its memory and
registers stand still until RESUME. A variant without a sticky state (``none``, ``region_list``, the two that clear
their requests at once, ``signal``) has no such thing as kicked; there KICK does what it does, and the server's own
VMM threads wait for RESUME all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from pydantic_core import from_json

from kickstand.core.errors import KvmError
from kickstand.core.memslots import Memslots
from kickstand.core.shared.requests import Request
from kickstand.core.trace import Tracepoint
from kickstand.core.uapi import KVM_REGS, KVM_SREGS, PAGE_SHIFT
from kickstand.core.vcpu import Vcpu
from kickstand.guests.host_memory import HostMemory
from kickstand.journal import form
from kickstand.journal.form.upgrade import upgraded
from kickstand.runtime.machine import Machine
from kickstand.runtime.registry import Registry

OPTIONS = ("variant", "engine", "mode", "irqchip", "clock", "seed")
KNOWN_REQUESTS = sum({request.bit for request in Request} - {Request.VM_DEAD.bit})
UNREADABLE = (KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError, RecursionError, KvmError)


class UnreadableError(Exception):
    """What was kept makes no machine, and why."""


class Saved:
    """The parts of one machine, decoded. ``UnreadableError``: they are not what this program writes."""

    def __init__(self, parts: Mapping[str, bytes]) -> None:
        try:
            parts = upgraded(parts)
            self.vm = form.decoded(form.MACHINE, "vm", parts["vm"])
            self.slots = form.Slots(parts)
            clock = parts.get("clock")
            self.clock = None if clock is None else form.decoded(form.CLOCK, "clock", clock)
            self.coalesced = form.decoded(form.COALESCED, "coalesced", parts.get("coalesced", b"{}"))
            kept = parts.get("interrupts")
            self.interrupts = None if kept is None else form.decoded(form.INTERRUPTS, "interrupts", kept)
            self.counters = form.decoded(form.COUNTERS, "counters", parts.get("counters", b"{}"))
            self.cpus = {vcpu: form.decoded(form.CPU, f"cpu/{vcpu}", parts[f"cpu/{vcpu}"]) for vcpu in self.vm.vcpus}
            self.programs: dict[int, Any] = {
                vcpu: from_json(parts[f"program/{vcpu}"]) for vcpu in self.vm.vcpus if f"program/{vcpu}" in parts
            }
        except KeyError as error:
            raise UnreadableError(f"the part {error} is missing") from error
        except KvmError:
            raise  # not damaged, but not for this version
        except UNREADABLE as error:
            raise UnreadableError(str(error)) from error
        # What is not known here is for the registry to refuse.
        self.options: dict[str, Any] = {name: getattr(self.vm, name) for name in OPTIONS}
        self.options["switches"] = self.vm.switches.model_dump()

    def check(self) -> None:
        """Do the part of the work that takes time and no machine. ``UnreadableError``: the slots contradict it."""
        try:
            _ = self.slots.made
        except UNREADABLE as error:
            raise UnreadableError(str(error)) from error


async def restore(
    registry: Registry, saved: Saved, fill: Callable[[Machine], Awaitable[None]], *, vm_id: str | None = None
) -> Machine:
    """Make the machine and let it join ``registry``; ``fill`` gives it its host memory.

    ``UnreadableError``: what was kept contradicts itself. Errors as ``Registry.create``. Nothing is left then.
    """
    machine = registry.make(vm_id or saved.vm.id, vcpus=len(saved.cpus), **saved.options)
    try:
        await fill(machine)
        try:
            await _load(machine, saved)
        except UNREADABLE as error:
            raise UnreadableError(str(error)) from error
        await machine.window.come_up()
        registry.join(machine)
    except BaseException:
        await registry.discard(machine)
        raise
    registry.log.emit(
        machine.id, Tracepoint.KVM_RESTORE_VM, None, {"variant": machine.variant, "engine": machine.engine}
    )
    for vcpu_id, behaviour, handle_exits in saved.vm.threads:
        machine.threads.start(machine.vcpu(vcpu_id), behaviour, handle_exits=handle_exits, held=True)
    return machine


async def _load(machine: Machine, saved: Saved) -> None:
    """Nobody knows the machine yet: guests of others have their turns between its vCPUs."""
    vm = machine.vm
    machine.window.kick_id = saved.vm.kick_id
    machine.history.dropped = 1  # what led here is not known: the script of this machine cannot be replayed
    saved.vm.arch.into(vm.arch)
    saved.vm.dirty_log.into(vm.memslots)
    saved.slots.into(vm.memslots)
    if saved.vm.running:
        all_dirty(vm.memslots, machine.memory)
    if saved.clock is not None:
        saved.clock.into(vm.arch.clock)
    saved.coalesced.into(vm.arch.coalesced)
    if saved.interrupts is not None:
        saved.interrupts.into(machine)
    for vcpu_id, bits in zip(saved.vm.vcpus, saved.vm.requests, strict=True):
        vcpu = vm.prepare_vcpu(vcpu_id)
        assert isinstance(vcpu, Vcpu)  # the real kernel's are not kept
        vm.vcpus[vcpu_id] = vcpu
        vcpu.requests.bits = bits & KNOWN_REQUESTS
        saved.cpus[vcpu_id].into(vcpu, saved.programs.get(vcpu_id, ()))
        KVM_REGS.pack(vcpu.guest.registers())  # what nobody could read is no register
        KVM_SREGS.pack(vcpu.guest.special_registers())
        await asyncio.sleep(0)
    form.load_counters(saved.counters, vm.vcpus.values())
    machine.start_timers()
    vm.lifetime.online = tuple(vm.vcpus)
    vm.variant.load(saved.vm.window.model_dump(), machine.thread().process)


def all_dirty(memslots: Memslots, memory: HostMemory) -> None:
    """Guests ran on after the last record: report every page of a logged slot that they could have written."""
    for slot in memslots.slots.values():
        if slot.logged:
            for run in memory.runs(slot.userspace_addr, slot.npages << PAGE_SHIFT):
                if run.address is not None:
                    first = run.hva - slot.userspace_addr >> PAGE_SHIFT
                    memslots.dirty[slot.id].update(range(first, first + (run.size >> PAGE_SHIFT)))
