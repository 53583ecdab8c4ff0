"""The gallery: defects of the posted patch as the explorer finds them (``kickstand explore --gallery``)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from app.explore.campaign import CellSpec, run_cell


@dataclass(frozen=True, slots=True)
class Picture:
    """A defect and the cell in which it shows."""

    id: str
    title: str
    about: str
    cell: CellSpec


def _cell(scenario: str, variant: str, behaviour: str, prop: str, vmms: int = 1) -> CellSpec:
    return CellSpec(scenario, variant, behaviour, 1, vmms, (prop,))


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
            f"kickstand explore --scenario {cell.scenario} --variant {cell.variant} --behaviour {cell.behaviour}"
            f"{size} --property {cell.properties[0]}"
        )
        yield (f"## {picture.id}: {picture.title}\n\n{picture.about}\n\n    {command}\n\n```\n{found.text()}\n```\n")


def gallery() -> str:
    """The whole page, as ``docs/gallery.md`` has it."""
    head = (
        "# What the explorer finds in the posted patch\n\n"
        "Printed by `kickstand explore --gallery`; each one is confirmed on the shipped runtime. `rwsem` is the "
        "semaphore,\n`KICK` is `KVM_REQ_USERSPACE_KICK`; on the right is what a step changed that others can see.\n"
    )
    return "\n".join([head, *sections()])
