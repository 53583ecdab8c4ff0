"""The gallery: defects of the posted patch as the explorer finds them (``kickstand explore --gallery``)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kickstand.explore.decide import Verdict
from kickstand.explore.matrix import run_cell
from kickstand.explore.question import Question
from kickstand.explore.world.stores import TSO


@dataclass(frozen=True, slots=True)
class Picture:
    """A defect and the cell in which it shows."""

    id: str
    title: str
    about: str
    cell: Question


def _cell(scenario: str, variant: str, behaviour: str, prop: str, vmms: int = 1) -> Question:
    return Question(scenario, (variant,), (behaviour,), (1,), vmms, (prop,))


GALLERY = (
    Picture(
        "D1",
        "lost exit",
        "The test for the request comes before `r` is looked at: the exit that was filled in is answered with EINTR, "
        "and the next KVM_RUN takes the access as done.",
        _cell("merge", "sticky", "well", "lost_exit"),
    ),
    Picture(
        "careless",
        "careless userspace spins",
        "Userspace that calls KVM_RUN again at once after EINTR keeps a CPU busy for as long as the window is open.",
        _cell("merge", "sticky", "careless", "livelock"),
    ),
    Picture(
        "D2",
        "a completion in the closed window",
        "KVM_RUN finishes the access of last time before it looks at any request, and the rest of it is in RAM.",
        _cell("pending_io", "sticky", "well", "closed_window"),
    ),
    Picture(
        "D5",
        "hot-plug escape",
        "Requests reach vCPUs that are online: the one that is created in the window has none, and enters its guest.",
        _cell("hotplug", "global_rwsem", "well", "closed_window"),
    ),
    Picture(
        "D8",
        "one semaphore for all VMs",
        "The KICK of one VM waits for a vCPU of another, which got no request and spins in its guest.",
        _cell("two_vms", "global_rwsem", "well", "kick_returns"),
    ),
    Picture(
        "D7",
        "RESUME races the next KICK",
        "RESUME clears the bit that the other KICK has just set: nobody will ever stop the guest that KICK waits for.",
        _cell("merge", "global_rwsem", "well", "kick_returns", 2),
    ),
    Picture(
        "D6",
        "two holders, one bit",
        "The first RESUME opens the window of the second holder, and a guest meets the slot that is missing there.",
        _cell("merge", "global_rwsem", "well", "missing_slot", 2),
    ),
)


@dataclass(frozen=True, slots=True)
class Barrier:
    """One of the kernel's full barriers: where it stands, and what goes wrong without it."""

    name: str
    where: str
    orders: str


BARRIERS = (
    Barrier(
        "smp_mb__after_srcu_read_unlock",
        "`vcpu_enter_guest`, after `vcpu->mode = IN_GUEST_MODE`",
        "the mode before the last look at `vcpu->requests`: else the kicker sees OUTSIDE and sends no IPI, "
        "and the vCPU sees no request",
    ),
    Barrier(
        "set_current_state",
        "`kvm_vcpu_block`, at `set_current_state(TASK_INTERRUPTIBLE)`",
        "the task's state before `kvm_vcpu_check_block`: else the waker sees a running task and wakes nobody, "
        "and the vCPU sees no request",
    ),
)
WITHOUT = ("sticky", "holds")  # variants that are asked what falls
ORDERED = ("deadlock", "kick_returns", "signal_leaves")


def _buffered(variant: str, barrier: str | None, properties: tuple[str, ...] = ORDERED) -> list[Verdict]:
    memory = TSO if barrier is None else f"{TSO}-{barrier}"
    return run_cell(Question("merge", (variant,), ("well",), properties=properties, memory=memory))


def without(variant: str, barrier: str) -> str:
    """What falls for a variant where a barrier is left out."""
    return _fallen(_buffered(variant, barrier))


def _fallen(verdicts: list[Verdict]) -> str:
    found = [(item.property, item.counterexample.trail.steps) for item in verdicts if item.counterexample]
    return ", ".join(f"{name} ({steps})" for name, steps in found) or "nothing"


def barriers() -> Iterator[str]:
    """Which barrier is needed where, and what falls without it, with the columns of each."""
    lines = [
        "## Barriers: which is needed where, and what falls without it",
        "",
        "With `--memory tso` plain stores lie in a CPU's store buffer until they are drained (steps of `SB0`).",
        "With all barriers every verdict is as under sequential consistency. In brackets: steps of the shortest way.",
        "",
        "| barrier | where | what it orders | `sticky` without it | `holds` without it |",
        "| --- | --- | --- | --- | --- |",
    ]
    for barrier in BARRIERS:
        fallen = [without(variant, barrier.name) for variant in WITHOUT]
        lines.append(f"| `{barrier.name}` | {barrier.where} | {barrier.orders} | {' | '.join(fallen)} |")
    fallen = [_fallen(_buffered(variant, None)) for variant in WITHOUT]
    lines.append(f"| none is left out | | | {' | '.join(fallen)} |")
    yield "\n".join(lines) + "\n"
    for barrier in BARRIERS:
        found = next(item.counterexample for item in _buffered("sticky", barrier.name) if item.counterexample)
        command = f"kickstand explore --variant sticky --behaviour well --memory tso --without {barrier.name}"
        yield f"### Without `{barrier.name}`\n\n    {command}\n\n```\n{found.text()}\n```\n"


def sections() -> Iterator[str]:
    """Each picture as Markdown: what it is, the command, the columns."""
    for picture in GALLERY:
        cell = picture.cell
        (verdict,) = run_cell(cell)
        found = verdict.counterexample
        if found is None:
            raise AssertionError(f"{picture.id} was not found")
        size = f" --vmms {cell.vmms}" if cell.vmms > 1 else ""
        command = (
            f"kickstand explore --scenario {cell.scenario} --variant {cell.variants[0]}"
            f" --behaviour {cell.behaviours[0]}{size} --property {cell.properties[0]}"
        )
        yield (f"## {picture.id}: {picture.title}\n\n{picture.about}\n\n    {command}\n\n```\n{found.text()}\n```\n")


def gallery() -> str:
    """The whole page, as ``docs/gallery.md`` has it."""
    head = (
        "# What the explorer finds in the posted patch\n\n"
        "Printed by `kickstand explore --gallery`; each one is confirmed on the shipped runtime. `rwsem` is the "
        "semaphore,\n`KICK` is `KVM_REQ_USERSPACE_KICK`; on the right is what a step changed that others can see.\n"
    )
    return "\n".join([head, *sections(), *barriers()])
