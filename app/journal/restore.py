"""Machines from what was kept of them: after a restart, or from a snapshot.

Nothing of a machine exists before all of its parts have been read and understood. It comes up kicked: its memory and
registers stand still until RESUME. A variant without a sticky state (``none``, ``region_list``, the two that clear
their requests at once, ``signal``) has no such thing as kicked; there KICK does what it does, and the server's own
VMM threads wait for RESUME all the same.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from app.core.errors import KvmError
from app.core.requests import Request
from app.core.uapi import KVM_REGS, KVM_SREGS, ExitReason, MpState
from app.core.vcpu import Vcpu
from app.core.watched import Counters
from app.guests.script import ScriptGuest
from app.journal.format import COUNTERS, CPU, FORMAT, MACHINE, SLOTS, check
from app.journal.records import all_dirty, load_exit, load_slots
from app.runtime.machine import Machine
from app.runtime.registry import Registry
from app.runtime.userspace import VmmThread

OPTIONS = ("variant", "engine", "mode", "irqchip", "switches", "seed")
KNOWN_REQUESTS = sum({request.bit for request in Request} - {Request.VM_DEAD.bit})
UNREADABLE = (KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError, RecursionError, KvmError)


class UnreadableError(Exception):
    """What was kept makes no machine, and why."""


class Saved:
    """The parts of one machine, decoded. ``UnreadableError``: they are not what this program writes."""

    def __init__(self, parts: Mapping[str, bytes]) -> None:
        try:
            read = {name: json.loads(value) for name, value in parts.items()}
            self.vm: dict[str, Any] = read["vm"]
            if self.vm["format"] != FORMAT:
                raise UnreadableError(f"format {self.vm['format']!r} is not {FORMAT}, the only one this program reads")
            _check(parts, self.vm["vcpus"])
            self.id: str = self.vm["id"]
            self.slots = load_slots(read["slots"])
            self.memory = [(base, size, name) for base, size, name in self.vm["memory"]]
            self.files: list[str] = self.vm["files"]
            self.cpus = {vcpu_id: read[f"cpu/{vcpu_id}"] for vcpu_id in self.vm["vcpus"]}
            self.programs = {vcpu_id: read.get(f"program/{vcpu_id}", ()) for vcpu_id in self.vm["vcpus"]}
            self.counters = read.get("counters", {})
            self.options: dict[str, Any] = {name: self.vm[name] for name in OPTIONS}
            self.threads = [(vcpu, behaviour, handle) for vcpu, behaviour, handle in self.vm["threads"]]
        except UNREADABLE as error:
            raise UnreadableError(f"{type(error).__name__}: {error}") from error


def _check(parts: Mapping[str, bytes], vcpus: Iterable[int]) -> None:
    """Every part that a machine is made of has its form. ``KeyError``: one is missing; ``ValueError``: which not."""
    check(MACHINE, "vm", parts["vm"])
    check(SLOTS, "slots", parts["slots"])
    check(COUNTERS, "counters", parts.get("counters", b"{}"))
    for vcpu_id in vcpus:
        check(CPU, f"cpu/{vcpu_id}", parts[f"cpu/{vcpu_id}"])


async def restore(
    registry: Registry, saved: Saved, fill: Callable[[Machine], Awaitable[None]], *, vm_id: str | None = None
) -> Machine:
    """Make the machine and let it join ``registry``; ``fill`` gives it its host memory.

    ``UnreadableError``: what was kept contradicts itself. Errors as ``Registry.create``. Nothing is left then.
    """
    machine = registry.make(vm_id or saved.id, vcpus=len(saved.cpus), **saved.options)
    try:
        try:
            await fill(machine)
            _load(machine, saved)
            await _come_up_kicked(machine)
        except BaseException:
            await machine.destroy()
            if machine.journal is not None:
                await machine.journal.forget(machine)
            raise
    except UNREADABLE as error:
        raise UnreadableError(f"virtual machine {vm_id or saved.id}: {type(error).__name__}: {error}") from error
    if machine.id in registry.machines:
        await machine.destroy()
        if machine.journal is not None:
            await machine.journal.forget(machine)
        raise KvmError(errno.EEXIST, "restore", f"virtual machine {machine.id!r} exists", field="id")
    registry.machines[machine.id] = machine
    registry.log.emit(machine.id, "kvm_restore_vm", None, {"variant": machine.variant, "engine": machine.engine})
    for vcpu_id, behaviour, handle_exits in saved.threads:
        vcpu = machine.vcpu(vcpu_id)
        machine.threads[vcpu_id] = VmmThread(machine, vcpu, behaviour, handle_exits=handle_exits, held=True)
    return machine


def _load(machine: Machine, saved: Saved) -> None:
    vm = machine.vm
    machine.kick_id = int(saved.vm["kick_id"])
    machine.history.dropped = 1  # what led here is not known: the script of this machine cannot be replayed
    vm.memslots.load(saved.slots)
    vm.memslots.generation += 1
    if saved.vm["running"]:
        all_dirty(vm.memslots, machine.memory)
    for vcpu_id, bits in zip(saved.vm["vcpus"], saved.vm["requests"], strict=True):
        vcpu = vm.prepare_vcpu(vcpu_id)
        vm.vcpus[vcpu_id] = vcpu
        vcpu.requests.bits = int(bits) & KNOWN_REQUESTS
        _load_vcpu(vcpu, saved.cpus[vcpu_id], saved.programs[vcpu_id])
        counters = saved.counters.get(str(vcpu_id))
        if counters is not None:
            vcpu.watched.counters = Counters(*map(int, counters))
    vm.lifetime.online = tuple(vm.vcpus)
    vm.variant.load(saved.vm["window"], machine.thread().process)


def _load_vcpu(vcpu: Vcpu, saved: Mapping[str, Any], program: Any) -> None:
    arch, page = saved["arch"], saved["page"]
    vcpu.arch.mp_state = MpState(arch["mp_state"])
    vcpu.arch.pending = load_exit(arch["pending"])
    vcpu.arch.irr = tuple(sorted((int(vector) & 0xFF for vector in arch["irr"]), reverse=True))
    vcpu.arch.nmi, vcpu.arch.init = bool(arch["nmi"]), bool(arch["init"])
    vcpu.arch.sipi = None if arch["sipi"] is None else int(arch["sipi"]) & 0xFF
    vcpu.run_page.exit_reason = ExitReason(page["exit_reason"])
    vcpu.run_page.exit = load_exit(page["exit"])
    vcpu.run_page.reply = None if page["reply"] is None else bytes.fromhex(page["reply"])
    vcpu.run_page.immediate_exit, vcpu.run_page.kept = bool(page["immediate_exit"]), bool(page.get("kept", False))
    vcpu.run_page.request_interrupt_window = bool(page["request_interrupt_window"])
    vcpu.task.signal = bool(saved["signal"])
    guest: Any = vcpu.guest
    if isinstance(guest, ScriptGuest):
        guest.load(saved["guest"], program)
    elif vcpu.arch.pending is None:
        guest.load({**saved["guest"], "pending": None})  # the CPU waits for nothing that KVM_RUN would not finish
    else:
        guest.load(saved["guest"])
    KVM_REGS.pack(guest.registers())  # what nobody could read is no register
    KVM_SREGS.pack(guest.special_registers())


async def _come_up_kicked(machine: Machine) -> None:
    """An open window stays as it was, whoever has left through it already; without one, KICK opens one."""
    machine.proceed.clear()
    if not machine.vm.variant.holds:
        machine.kick_id += 1
        await machine.call(machine.vm.kick_all_running_vcpus(machine.thread("kicker")))
