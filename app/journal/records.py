"""What is kept of a machine: its state in parts, each JSON, so that a call writes only the parts it changed.

State rather than calls: to keep a part twice changes nothing, and a restart needs no replay. A transaction that is
under way is not seen here: until it ends, the slots are those from before it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, astuple
from typing import Any

from app.core.guest import HltExit, InternalErrorExit, IoExit, MmioExit, ShutdownExit, UserExit, WindowExit
from app.core.memslots import Change, Memslots, Region, Slot, plan
from app.core.trace import VcpuState
from app.core.uapi import PAGE_SHIFT, InternalError
from app.core.vcpu import Vcpu
from app.guests.host_memory import HostMemory
from app.guests.script import ScriptGuest
from app.journal.format import FORMAT
from app.runtime.events import to_json
from app.runtime.machine import Machine

MOST_DIRTY = 1 << 24  # pages of one slot: 64 GiB
EXITS: dict[str, type[UserExit]] = {
    kind.__name__: kind for kind in (IoExit, MmioExit, HltExit, ShutdownExit, InternalErrorExit, WindowExit)
}


def encode(value: object) -> bytes:
    """One line of JSON."""
    return to_json(value).encode()


class Recorder:
    """What was last written of one machine. ``files`` names the file behind each arena."""

    def __init__(self, machine: Machine, files: Callable[[], list[str]] = list) -> None:
        self.machine = machine
        self.files = files
        self.written: dict[str, bytes] = {}
        self._vm_then: object = None  # encoding it takes far longer than making and comparing it
        self._stamps: dict[int, object] = {}
        self._programs: dict[int, object] = {}
        self._slots: object = None
        self._switches = asdict(machine.vm.switches)

    def changed(self, asked: Collection[int] = (), *, others: bool = True, counters: bool = False) -> dict[str, bytes]:
        """The parts that differ from what was last returned.

        ``asked`` names vCPUs that calls were about, which may have changed in ways that show no stamp; without
        ``others``, what the rest have done meanwhile is left for a later record.
        """
        parts: dict[str, bytes] = {}
        vm = self._vm()
        if vm != self._vm_then:
            self._vm_then = vm
            parts["vm"] = encode(vm)
        self._add_slots(parts)
        vcpus = self.machine.vm.vcpus
        for vcpu_id in vcpus if others else asked:
            if vcpu_id in vcpus:
                self._add_vcpu(parts, vcpus[vcpu_id], asked=vcpu_id in asked)
        if counters:
            parts["counters"] = encode({vcpu.id: astuple(vcpu.watched.counters) for vcpu in vcpus.values()})
        new = {name: value for name, value in parts.items() if self.written.get(name) != value}
        self.written |= new
        return new

    def _vm(self) -> dict[str, Any]:
        machine, vm = self.machine, self.machine.vm
        memory = machine.memory.arenas
        return {
            "format": FORMAT,
            "id": machine.id,
            "variant": machine.variant,
            "engine": machine.engine,
            "mode": machine.mode,
            "irqchip": vm.irqchip,
            "switches": self._switches,
            "seed": machine.seed,
            "kick_id": machine.kick_id,
            "window": vm.variant.saved(machine.unsettled),
            "vcpus": list(vm.lifetime.online),
            "requests": [vm.vcpus[vcpu_id].requests.bits for vcpu_id in vm.lifetime.online],
            "threads": [
                [vcpu_id, thread.behaviour, thread.handle_exits]
                for vcpu_id, thread in machine.threads.items()
                if thread.running or thread.ended == "stopped"  # by a server that ends
            ],
            "running": _running(machine),
            "memory": [[arena.base, arena.size, arena.name] for arena in memory],
            "files": list(self.files()),
        }

    def _add_slots(self, parts: dict[str, bytes]) -> None:
        memslots = self.machine.vm.memslots
        settled = self.machine.transactions.settled
        stamp = (memslots.generation, [len(pages) for pages in memslots.dirty.values()])
        if settled is None and self._slots == stamp:
            return
        self._slots = stamp if settled is None else None
        slots, dirty = (memslots.slots, {}) if settled is None else settled
        parts["slots"] = encode(
            {
                "slots": [_slot(slot) for _, slot in sorted(slots.items())],
                "dirty": {
                    slot_id: _runs(dirty.get(slot_id, set()) | _live(memslots.dirty, slot_id, slot))
                    for slot_id, slot in sorted(slots.items())
                    if slot.logged
                },
            }
        )

    def _add_vcpu(self, parts: dict[str, bytes], vcpu: Vcpu, *, asked: bool) -> None:
        counters = vcpu.watched.counters
        stamp = (vcpu.arch.state(), vcpu.run_page.state(), vcpu.task.signal, counters.runs, counters.entries)
        if not asked and stamp == self._stamps.get(vcpu.id):
            return
        guest: Any = vcpu.guest
        if self.machine.mode == "fast" and vcpu.watched.state is VcpuState.GUEST:
            return  # the CPU is on its own thread; it is kept when it has left
        self._stamps[vcpu.id] = stamp
        parts[f"cpu/{vcpu.id}"] = encode(
            {"arch": _arch(vcpu), "page": _page(vcpu), "signal": vcpu.task.signal, "guest": guest.saved()}
        )
        if isinstance(guest, ScriptGuest) and self._programs.get(vcpu.id) is not guest.program:
            self._programs[vcpu.id] = guest.program
            parts[f"program/{vcpu.id}"] = encode(guest.source)


def _running(machine: Machine) -> bool:
    """A guest runs or is about to, and its writes are logged: those from now on are not in this record."""
    if not machine.vm.memslots.dirty:
        return False
    outside = (VcpuState.USER, VcpuState.WAITING)
    if any(vcpu.watched.state not in outside for vcpu in machine.vm.vcpus.values()):
        return True
    if any(run.vcpu.watched.state is VcpuState.USER and not run.task.done() for run in machine.runs):
        return True
    return not machine.vm.variant.holds and any(thread.running for thread in machine.threads.values())


def _slot(slot: Slot) -> list[int]:
    return [slot.id, slot.base_gfn, slot.npages, int(slot.flags), slot.userspace_addr]


def _live(dirty: dict[int, set[int]], slot_id: int, slot: Slot) -> set[int]:
    return {page for page in dirty.get(slot_id, ()) if page < slot.npages}


def _runs(pages: set[int]) -> list[int]:
    """First page and number of pages of every run: a slot may be far larger than what is written of it."""
    runs: list[int] = []
    for page in sorted(pages):
        if runs and page == runs[-2] + runs[-1]:
            runs[-1] += 1
        else:
            runs += (page, 1)
    return runs


def _arch(vcpu: Vcpu) -> dict[str, Any]:
    arch = vcpu.arch
    return {
        "mp_state": int(arch.mp_state),
        "pending": dump_exit(arch.pending),
        "irr": arch.irr,
        "nmi": arch.nmi,
        "init": arch.init,
        "sipi": arch.sipi,
    }


def _page(vcpu: Vcpu) -> dict[str, Any]:
    page = vcpu.run_page
    return {
        "exit_reason": int(page.exit_reason),
        "exit": dump_exit(page.exit),
        "reply": None if page.reply is None else page.reply.hex(),
        "immediate_exit": page.immediate_exit,
        "kept": page.kept,
        "request_interrupt_window": page.request_interrupt_window,
    }


def dump_exit(exit: UserExit | None) -> dict[str, Any] | None:
    """An exit as JSON."""
    if exit is None:
        return None
    fields = {name: value.hex() if isinstance(value, bytes) else value for name, value in asdict(exit).items()}
    return {"kind": type(exit).__name__, **fields}


def load_exit(saved: dict[str, Any] | None) -> Any:
    """An exit from JSON. ``KeyError``, ``TypeError``, ``ValueError``: it is none."""
    if saved is None:
        return None
    fields = {name: value for name, value in saved.items() if name != "kind"}
    kind = EXITS[saved["kind"]]
    if kind in (IoExit, MmioExit):
        fields["data"] = bytes.fromhex(fields["data"])
    if kind is InternalErrorExit:
        fields |= {"data": tuple(fields["data"]), "suberror": InternalError(fields["suberror"])}
    return kind(**fields)


def load_slots(saved: dict[str, Any]) -> tuple[Any, ...]:
    """A state for ``Memslots.load``. ``KvmError``: the kernel would not have let these slots be made."""
    slots: dict[int, Slot] = {}
    for number, base_gfn, npages, flags, hva in saved["slots"]:
        region = Region(number, flags, base_gfn << PAGE_SHIFT, npages << PAGE_SHIFT, hva)
        made = plan(slots, region)
        if made.change is not Change.CREATE or made.new is None:
            raise ValueError(f"slot {number} is there twice, or empty")
        slots[number] = made.new
    dirty = {int(number): _pages(runs, slots[int(number)].npages) for number, runs in saved["dirty"].items()}
    return tuple(sorted(slots.items())), tuple(sorted(dirty.items()))


def all_dirty(memslots: Memslots, memory: HostMemory) -> None:
    """Guests ran on after the last record: report every page of a logged slot that they could have written."""
    for slot in memslots.slots.values():
        if slot.logged:
            for run in memory.runs(slot.userspace_addr, slot.npages << PAGE_SHIFT):
                if run.address is not None:
                    first = run.hva - slot.userspace_addr >> PAGE_SHIFT
                    memslots.dirty[slot.id].update(range(first, first + (run.size >> PAGE_SHIFT)))


def _pages(runs: list[int], npages: int) -> frozenset[int]:
    pairs = list(zip(runs[::2], runs[1::2], strict=True))
    if sum(count for _, count in pairs) > min(npages, MOST_DIRTY) or any(
        not 0 <= first < first + count <= npages for first, count in pairs
    ):
        raise ValueError("dirty pages outside of their slot, or more than any memory has")
    return frozenset(page for first, count in pairs for page in range(first, first + count))
