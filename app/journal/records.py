"""What is kept of a machine: its state in parts, each JSON, so that a call writes only the parts it changed.

State rather than calls: to keep a part twice changes nothing, and a restart needs no replay. A transaction that is
under way is not seen here: until it ends, the slots are those from before it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from typing import Any

from kickstand.core.trace import VcpuState
from kickstand.core.vcpu import Vcpu
from kickstand.journal import form
from kickstand.runtime.events import to_json
from kickstand.runtime.machine import Machine

STILL = (VcpuState.USER, VcpuState.WAITING, VcpuState.HALTED, VcpuState.BLOCKED)


class Recorder:
    """What was last written of one machine. ``files`` names the file behind each arena."""

    def __init__(self, machine: Machine, files: Callable[[], list[str]] = list) -> None:
        self.machine = machine
        self.files = files
        self.written: dict[str, bytes] = {}
        self._vm_then: object = None  # encoding it takes far longer than making and comparing it
        self._stamps: dict[int, object] = {}
        self._programs: dict[int, object] = {}
        self._slots = form.SlotParts()
        self._interrupts: object = None
        self._clock: object = None
        self._coalesced: object = ((), ())
        self._switches = asdict(machine.vm.switches)

    def whole(self) -> dict[str, bytes]:
        """Every part, of a recorder that is new."""
        return encoded(self.changed(counters=True))

    def changed(
        self, asked: Collection[int] = (), *, others: bool = True, counters: bool = False
    ) -> dict[str, form.Encoded | None]:
        """The parts that differ from what was last returned; None: gone, with all whose names begin so before a ``*``.

        ``asked`` names vCPUs that calls were about, which may have changed in ways that show no stamp; without
        ``others``, what the rest have done meanwhile is left for a later record.
        """
        parts: dict[str, bytes] = {}
        vm = self._vm()
        if vm != self._vm_then:
            self._vm_then = vm
            parts["vm"] = form.Machine.of(vm).encoded()
        self._add_arch(parts)
        self._add_interrupts(parts)
        vcpus = self.machine.vm.vcpus
        for vcpu_id in vcpus if others else asked:
            vcpu = vcpus.get(vcpu_id)
            if isinstance(vcpu, Vcpu):  # what the real kernel executes cannot be kept
                self._add_vcpu(parts, vcpu, asked=vcpu_id in asked)
        if counters:
            parts["counters"] = form.counters(vcpus.values())
        new = {name: value for name, value in parts.items() if self.written.get(name) != value}
        self.written |= new
        return self._slots.changed(self.machine.vm.memslots, self.machine.transactions.settled) | new

    def _vm(self) -> dict[str, Any]:
        machine, vm = self.machine, self.machine.vm
        memory = machine.memory.arenas
        return {
            "format": form.FORMAT,
            "id": machine.id,
            "variant": machine.variant,
            "engine": machine.engine,
            "mode": machine.mode,
            "irqchip": vm.irqchip,
            "clock": machine.clock_kind,
            "switches": self._switches,
            "arch": {name: getattr(vm.arch, name) for name in form.KvmArch.model_fields},
            "dirty_log": {"manual": vm.memslots.manual, "initially_set": vm.memslots.initially_set},
            "seed": machine.seed,
            "kick_id": machine.window.kick_id,
            "window": vm.variant.saved(machine.window.unsettled),
            "vcpus": list(vm.lifetime.online),
            "requests": [vm.vcpus[vcpu_id].requests.bits for vcpu_id in vm.lifetime.online],
            "threads": [
                (vcpu_id, thread.behaviour, thread.handle_exits)
                for vcpu_id, thread in machine.threads.items()
                if thread.running or thread.ended == "stopped"  # by a server that ends
            ],
            "running": _running(machine),
            "memory": [(arena.base, arena.size, arena.name) for arena in memory],
            "files": list(self.files())[: len(memory)],  # the next may be there already, and its memory not yet
        }

    def _add_arch(self, parts: dict[str, bytes]) -> None:
        """The clock goes on all the while: it is kept when it was set."""
        clock = self.machine.vm.arch.clock
        stamp = clock.changes, clock.default_khz
        if stamp != self._clock:
            self._clock = stamp
            parts["clock"] = form.Clock.of(clock).encoded()
        coalesced = self.machine.vm.arch.coalesced
        noted = coalesced.zones, tuple(coalesced.entries)
        if noted != self._coalesced:
            self._coalesced = noted
            parts["coalesced"] = form.Coalesced.of(coalesced).encoded()

    def _add_interrupts(self, parts: dict[str, bytes]) -> None:
        """The time goes on all the while: it is kept when anything that is due in its terms has changed."""
        chips = self.machine.vm.interrupts.chips
        if chips is None:
            return
        apics = [vcpu.apic.expires for vcpu in self.machine.vm.vcpus.values() if vcpu.apic is not None]
        stamp = chips.state(), apics
        if stamp != self._interrupts:
            self._interrupts = stamp
            parts["interrupts"] = form.Interrupts.of(self.machine).encoded()

    def _add_vcpu(self, parts: dict[str, bytes], vcpu: Vcpu, *, asked: bool) -> None:
        counters = vcpu.watched.counters
        stamp = (vcpu.arch.state(), vcpu.run_page.state(), vcpu.task.signal, counters.runs, counters.entries)
        if not asked and stamp == self._stamps.get(vcpu.id):
            return
        if self.machine.guests.beside_loop and vcpu.watched.state is VcpuState.GUEST:
            return  # the CPU is on its own thread; it is kept when it has left
        # While it is in the guest its registers change without a sign: that record is not the last of this run.
        self._stamps[vcpu.id] = stamp if vcpu.watched.state in STILL else None
        parts[f"cpu/{vcpu.id}"] = form.Cpu.of(vcpu).encoded()
        source = vcpu.guest.source
        if source is not None and self._programs.get(vcpu.id) is not source:
            self._programs[vcpu.id] = source
            parts[f"program/{vcpu.id}"] = to_json(source).encode()


def encoded(parts: Mapping[str, form.Encoded | None]) -> dict[str, bytes]:
    """The parts that there are; any thread."""
    return {name: form.encoded(value) for name, value in parts.items() if value is not None}


def _running(machine: Machine) -> bool:
    """A guest runs or is about to, and its writes are logged: those from now on are not in this record."""
    if not machine.vm.memslots.dirty:
        return False
    if any(vcpu.watched.inside for vcpu in machine.vm.vcpus.values()):
        return True
    if any(run.vcpu.watched.state is VcpuState.USER and not run.task.done() for run in machine.runs):
        return True
    return not machine.vm.variant.open_windows and any(thread.running for thread in machine.threads.values())
