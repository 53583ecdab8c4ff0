"""Scenarios: closed worlds for the explorer. A scenario is data; a user's file has the same form.

``merge`` and the others of the design are made here, for any number of vCPUs and VMM threads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from kickstand.core.memslots import Region
from kickstand.core.vm import Switches
from kickstand.explore.world.scenarios.items import Operation
from kickstand.explore.world.scenarios.operations import (
    CreateVcpu,
    GetDirtyLog,
    Interrupt,
    Kick,
    MemoryTransaction,
    ProvidePage,
    ReadSlots,
    Resume,
    SetMemoryRegion,
)
from kickstand.explore.world.threads import Moment
from kickstand.explore.world.vcpus import MASKED, Signals

PAGE = 0x1000
READONLY, LOG = 2, 1
HOST = 0x7F0000000000
ICR, ALL_OTHERS, IPI_VECTOR = 0xFEE00300, 0xC4000, 0x40  # of the local APIC


@dataclass(frozen=True, slots=True)
class VmSpec:
    """One VM: its slots, and a program for each vCPU (the last one serves all further vCPUs)."""

    id: str
    vcpus: int
    regions: tuple[Region, ...]
    programs: tuple[Any, ...]
    irqchip: bool = True
    switches: Switches = Switches()
    hotplug: tuple[int, ...] = ()  # vCPUs that a VMM creates later
    faults: tuple[int, ...] = ()  # vCPUs whose first guest access waits for a page that a VMM provides
    flush: bool = False
    signals: Signals = MASKED
    handlers: Mapping[Moment, tuple[Operation, ...]] = field(default_factory=dict)  # of vCPU threads, by moment

    def program(self, vcpu: int) -> Any:
        """The program of vCPU ``vcpu``."""
        return self.programs[min(vcpu, len(self.programs) - 1)]


@dataclass(frozen=True, slots=True)
class VmmSpec:
    """One VMM thread or (``loop``) another user of the slots, and its list of operations."""

    vm: str
    operations: tuple[Operation, ...]
    name: str = "VMM"
    loop: bool = False


@dataclass(frozen=True, slots=True)
class Scenario:
    """A closed world without the variant and the behaviour, which every scenario is combined with."""

    name: str
    vms: tuple[VmSpec, ...]
    vmms: tuple[VmmSpec, ...]
    summary: str = ""
    source: Mapping[str, Any] = field(default_factory=dict)  # what it was made from, for tokens


def vcpu_column(vm: str, vcpu: int, *, single: bool) -> str:
    """The name of a vCPU's thread in columns and files."""
    return f"CPU{vcpu}" if single else f"{vm}/CPU{vcpu}"


class ScenarioError(ValueError):
    """A scenario's name or file is wrong; the message says where and which rule it breaks."""


def page(number: int) -> int:
    """The guest-physical address of a page; page 0 is a hole."""
    return number * PAGE


def ram(slot: int, first: int, pages: int = 1, flags: int = 0) -> Region:
    """A slot whose host memory lies where its guest memory says."""
    return Region(slot, flags, page(first), pages * PAGE, HOST + page(first))


def transaction(*operations: Operation) -> MemoryTransaction:
    """The operations under the variant's protection: KICK, each in order, RESUME; or one list ioctl."""
    return MemoryTransaction(operations=operations)


def replace(old: tuple[Region, ...], new: tuple[Region, ...]) -> MemoryTransaction:
    """A transaction that deletes ``old`` and creates ``new``."""
    return transaction(
        *(SetMemoryRegion.of(region.gone()) for region in old), *(SetMemoryRegion.of(region) for region in new)
    )


def anything(*pages: int, write: bool = False) -> list[Any]:
    """A guest that spins, halts, does device I/O or touches one of ``pages``, in any order, for ever.

    Pages are read and written by turns; with ``write`` all are written.
    """
    touch = [
        [["write", page(number), 1] if write or turn % 2 else ["read", page(number)]]
        for turn, number in enumerate(pages)
    ]
    return [["choose", [["compute", 1]], [["hlt"]], [["in", 0x80]], *touch]]


def _one(
    name: str,
    vcpus: int,
    regions: tuple[Region, ...],
    program: Any,
    vmms: tuple[VmmSpec, ...],
    summary: str,
    **more: Any,
) -> Scenario:
    return Scenario(name, (VmSpec("vm", vcpus, regions, (program,), **more),), vmms, summary)


def _vmm_name(number: int, vmms: int) -> str:
    return "VMM" if vmms == 1 else f"VMM{number}"


def merge(vcpus: int, vmms: int) -> Scenario:
    """Two neighbouring slots become one, while guests do anything (each VMM thread has two slots of its own)."""
    pairs = [(ram(2 * n, 4 * n + 1), ram(2 * n + 1, 4 * n + 2)) for n in range(vmms)]
    touched = (1, 2) if vmms == 1 else tuple(4 * n + 2 for n in range(vmms))
    threads = tuple(
        VmmSpec("vm", (replace(pair, (ram(2 * n, 4 * n + 1, 2),)),), _vmm_name(n, vmms)) for n, pair in enumerate(pairs)
    )
    regions = tuple(region for pair in pairs for region in pair)
    return _one("merge", vcpus, regions, anything(*touched), threads, "DELETE m1, DELETE m2, CREATE m1+m2")


def _resize(
    name: str,
    summary: str,
    old: tuple[tuple[int, int, int, int], ...],
    new: tuple[tuple[int, int, int, int], ...],
    touched: tuple[int, ...],
) -> Callable[[int, int], Scenario]:
    """``old`` and ``new`` slots are (slot, first page, pages, flags); a further VMM has its own, 8 pages above."""

    def build(vcpus: int, vmms: int) -> Scenario:
        before: list[Region] = []
        threads: list[VmmSpec] = []
        for n in range(vmms):
            first = tuple(ram(slot + 2 * n, at + 8 * n, size, flags) for slot, at, size, flags in old)
            then = tuple(ram(slot + 2 * n, at + 8 * n, size, flags) for slot, at, size, flags in new)
            before += first
            threads.append(VmmSpec("vm", (replace(first, then),), _vmm_name(n, vmms)))
        pages = touched if vmms == 1 else tuple(touched[0] + 8 * n for n in range(vmms))
        return _one(name, vcpus, tuple(before), anything(*pages), tuple(threads), summary)

    return build


def dirty_log(vcpus: int, vmms: int) -> Scenario:
    """GET_DIRTY_LOG, then DELETE and CREATE without logging, while guests write to the page."""
    regions = tuple(ram(n, 2 * n + 1, 1, LOG) for n in range(vmms))
    threads = tuple(
        VmmSpec(
            "vm",
            (
                transaction(
                    GetDirtyLog(slot=n),
                    SetMemoryRegion.of(region.gone()),
                    SetMemoryRegion.of(ram(n, 2 * n + 1)),
                ),
            ),
            _vmm_name(n, vmms),
        )
        for n, region in enumerate(regions)
    )
    program = anything(*(2 * n + 1 for n in range(vmms)), write=True)
    return _one("dirty_log", vcpus, regions, program, threads, "GET_DIRTY_LOG, then DELETE and CREATE")


def hotplug(vcpus: int, vmms: int) -> Scenario:
    """As ``merge``, and the transaction creates one more vCPU, whose thread calls KVM_RUN at once."""
    base = merge(vcpus, vmms)
    merging = cast("MemoryTransaction", base.vmms[0].operations[0])
    creating = transaction(CreateVcpu(id=vcpus), *merging.operations)
    threads = (VmmSpec("vm", (creating,), base.vmms[0].name), *base.vmms[1:])
    spec = base.vms[0]
    return Scenario(
        "hotplug",
        (VmSpec("vm", vcpus, spec.regions, spec.programs, hotplug=(vcpus,)),),
        threads,
        "a vCPU is created in the window",
    )


def two_vms(vcpus: int, vmms: int) -> Scenario:
    """A second VM with one vCPU does anything while the first VM merges."""
    base = merge(vcpus, vmms)
    first = base.vms[0]
    other = VmSpec("vm2", 1, (ram(0, 1),), (anything(1),))
    return Scenario(
        "two_vms",
        (VmSpec("vm", vcpus, first.regions, first.programs), other),
        base.vmms,
        "another VM runs beside the transaction",
    )


def pending_io(vcpus: int, vmms: int) -> Scenario:
    """Guests read across the border of a device page and m1: userspace answers, the next KVM_RUN finishes the read."""
    base = merge(vcpus, vmms)
    program = [["choose", [["compute", 1]], [["read", page(1) - 4, 8]]]]
    return _one("pending_io", vcpus, base.vms[0].regions, program, base.vmms, "a kick while a completion is pending")


def other_ioctl(vcpus: int, vmms: int) -> Scenario:
    """As ``merge``, and a further thread issues an ioctl that reads the slots, for ever."""
    base = merge(vcpus, vmms)
    reader = VmmSpec("vm", (ReadSlots(gpa=page(2)),), "IOCTL", loop=True)
    return Scenario("other_ioctl", base.vms, (*base.vmms, reader), "a memslot reader that is not KVM_RUN")


def stuck_fault(vcpus: int, vmms: int) -> Scenario:
    """The last vCPU waits in a page fault for a page that the VMM provides after its transaction (userfaultfd)."""
    base = merge(vcpus, vmms)
    arrive = ProvidePage(vcpu=vcpus - 1)
    last = base.vmms[-1]
    threads = (*base.vmms[:-1], VmmSpec("vm", (*last.operations, arrive), last.name))
    spec = base.vms[0]
    return Scenario(
        "stuck_fault",
        (VmSpec("vm", vcpus, spec.regions, spec.programs, faults=(vcpus - 1,)),),
        threads,
        "a vCPU is stuck in a page fault",
    )


def ipi(vcpus: int, vmms: int) -> Scenario:
    """As ``merge``, while each guest touches memory, interrupts all others, and halts until it is interrupted."""
    base = merge(vcpus, vmms)
    program = [["read", page(1)], ["write", ICR, ALL_OTHERS | IPI_VECTOR, 4], ["hlt"]]
    return _one("ipi", vcpus, base.vms[0].regions, program, base.vmms, "IPIs wake halted vCPUs around a kick")


def _merging(vcpus: int, vmms: int) -> tuple[Scenario, MemoryTransaction]:
    base = merge(vcpus, vmms)
    return base, cast("MemoryTransaction", base.vmms[0].operations[0])


def _with(name: str, base: Scenario, threads: tuple[VmmSpec, ...], summary: str, **more: Any) -> Scenario:
    spec = base.vms[0]
    return Scenario(name, (VmSpec("vm", spec.vcpus, spec.regions, spec.programs, **more),), threads, summary)


def repeat(vcpus: int, vmms: int) -> Scenario:
    """The VMM merges, splits and merges again: three windows one after the other."""
    base, merging = _merging(vcpus, vmms)
    whole, parts = ram(0, 1, 2), (ram(0, 1), ram(1, 2))
    threads = (VmmSpec("vm", (merging, replace((whole,), parts), merging), base.vmms[0].name), *base.vmms[1:])
    return _with("repeat", base, threads, "three transactions one after the other")


def nested(vcpus: int, vmms: int) -> Scenario:
    """One thread kicks twice before it resumes twice, and changes the slots after the first RESUME."""
    base, merging = _merging(vcpus, vmms)
    operations = (Kick(), Kick(), Resume(), *merging.operations, Resume())
    threads = (VmmSpec("vm", operations, base.vmms[0].name), *base.vmms[1:])
    return _with("nested", base, threads, "two kicks by one thread, slots change after one resume")


def race_create(vcpus: int, vmms: int) -> Scenario:
    """As ``hotplug``, but another thread creates the vCPU, at any time."""
    base, _ = _merging(vcpus, vmms)
    creator = VmmSpec("vm", (CreateVcpu(id=vcpus),), "CREATOR")
    return _with("race_create", base, (*base.vmms, creator), "another thread creates a vCPU", hotplug=(vcpus,))


def device_interrupt(vcpus: int, vmms: int) -> Scenario:
    """As ``merge``, and a device interrupts the last vCPU, which may halt."""
    base, _ = _merging(vcpus, vmms)
    device = VmmSpec("vm", (Interrupt(vcpu=vcpus - 1),), "DEVICE")
    return _with("device_interrupt", base, (*base.vmms, device), "a device interrupts a vCPU beside the transaction")


SCENARIOS: dict[str, Callable[[int, int], Scenario]] = {
    "merge": merge,
    "split": _resize("split", "one slot becomes two", ((0, 1, 2, 0),), ((0, 1, 1, 0), (1, 2, 1, 0)), (1, 2)),
    "grow": _resize("grow", "a slot gets a page more", ((0, 1, 1, 0),), ((0, 1, 2, 0),), (1,)),
    "shrink": _resize("shrink", "a slot loses its last page", ((0, 1, 2, 0),), ((0, 1, 1, 0),), (1,)),
    "toggle_readonly": _resize(
        "toggle_readonly", "a slot becomes read-only", ((0, 1, 1, 0),), ((0, 1, 1, READONLY),), (1,)
    ),
    "dirty_log": dirty_log,
    "hotplug": hotplug,
    "two_vms": two_vms,
    "pending_io": pending_io,
    "other_ioctl": other_ioctl,
    "stuck_fault": stuck_fault,
    "repeat": repeat,
    "nested": nested,
    "race_create": race_create,
    "device_interrupt": device_interrupt,
    "ipi": ipi,
}


def scenario(name: str, vcpus: int = 1, vmms: int = 1) -> Scenario:
    """Return a built-in scenario. Raises ``ScenarioError`` for an unknown name or a size out of range."""
    build = SCENARIOS.get(name)
    if build is None:
        raise ScenarioError(f"no scenario {name!r}; there are {', '.join(SCENARIOS)}, or give a YAML or JSON file")
    if not 1 <= vcpus <= 4:
        raise ScenarioError(f"vcpus must be 1 to 4, not {vcpus}")
    if not 1 <= vmms <= 2:
        raise ScenarioError(f"vmms must be 1 or 2, not {vmms}")
    return build(vcpus, vmms)
