"""The properties of the explorer, what each assumes, and what has to occur for it to say anything."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from kickstand.explore.learn.observe import Did
from kickstand.explore.search.marks import Mark
from kickstand.explore.world.own import EVENTUALLY, NEVER

NOTHING = Did(0)
NOWHERE = Mark(0)


class Name(StrEnum):
    """The built-in properties, for those who decide them: one that is misspelt is a type error, and never ``holds``."""

    MISSING_SLOT = "missing_slot"
    SPURIOUS_MMIO = "spurious_mmio"
    DEADLOCK = "deadlock"
    BOUNDED_BUSY = "bounded_busy"
    LOST_EXIT = "lost_exit"
    LIVELOCK = "livelock"
    KICK_RETURNS = "kick_returns"
    PROGRESS = "progress"
    RESUME_RUNS = "resume_runs"
    DIRTY_KEPT = "dirty_kept"
    KICK_DRAINS = "kick_drains"
    COMPLETED_ONCE = "completed_once"
    SIGNAL_LEAVES = "signal_leaves"
    EINTR_HAS_CAUSE = "eintr_has_cause"
    BALANCE = "balance"
    ASSERTION = "assertion"
    LOST_WAKEUP = "lost_wakeup"
    CLOSED_WINDOW = "closed_window"
    NO_BYSTANDER = "no_bystander"


@dataclass(frozen=True, slots=True)
class Property:
    """One property: ``fairness`` is what its verdict assumes of the scheduler.

    ``flag`` is the deed that violates it by itself. Where neither ``trigger`` is ever done nor ``reaches`` ever
    reached, the property says nothing: it is vacuous.
    """

    name: str
    summary: str
    safety: bool
    fairness: str = "none"
    flag: Did = NOTHING
    trigger: Did = NOTHING
    reaches: Mark = NOWHERE

    def vacuous(self, done: int, reached: int) -> bool:
        """Nothing of what it is about occurred."""
        return bool(self.trigger or self.reaches) and not (self.trigger & done or self.reaches & reached)


PROPERTIES: dict[str, Property] = {
    item.name: item
    for item in (
        Property(
            Name.MISSING_SLOT,
            "no guest access looks up a slot that is missing because a transaction is in progress",
            True,
            flag=Did.MISSING_SLOT,
            trigger=Did.ACCESS,
        ),
        Property(
            Name.SPURIOUS_MMIO,
            "no KVM_RUN returns MMIO or INTERNAL_ERROR for an address that is RAM before and after",
            True,
            flag=Did.SPURIOUS_MMIO,
            trigger=Did.ACCESS,
        ),
        Property(Name.DEADLOCK, "no state where nothing can move and somebody is not at rest", True),
        Property(
            Name.BOUNDED_BUSY,
            "no vCPU returns EINTR more than twice in a row inside a window",
            True,
            reaches=Mark.WINDOW,
        ),
        Property(
            Name.LOST_EXIT,
            "no finished device exit is replaced by EINTR",
            True,
            flag=Did.LOST_EXIT,
            trigger=Did.FILLED,
        ),
        Property(
            Name.LIVELOCK,
            "no run in which a window stays open for ever and a vCPU returns EINTR again and again",
            False,
            reaches=Mark.WINDOW,
        ),
        Property(Name.KICK_RETURNS, "every KICK that begins returns", False, "weak", reaches=Mark.KICKING),
        Property(
            Name.PROGRESS,
            "every vCPU is in guest mode or halted again and again, and no VMM is stuck outside KICK",
            False,
            "weak",
        ),
        Property(
            Name.RESUME_RUNS,
            "once all transactions are over every vCPU is in guest mode or halted eventually",
            False,
            "weak",
            reaches=Mark.ENDED,
        ),
        Property(
            Name.DIRTY_KEPT,
            "no page a guest wrote is missing from what the VMM collected",
            True,
            flag=Did.DIRTY_LOST,
            trigger=Did.DIRTIED,
        ),
        Property(
            Name.KICK_DRAINS,
            "a KVM_RUN that is under way when KICK begins has returned when KICK returns",
            True,
            reaches=Mark.WINDOW,
        ),
        Property(
            Name.COMPLETED_ONCE,
            "every access that userspace was asked to do is completed once, before the guest goes on",
            True,
            flag=Did.MISCOMPLETED,
            trigger=Did.ASKED,
        ),
        Property(
            Name.SIGNAL_LEAVES,
            "a signal gets its vCPU out of KVM_RUN",
            False,
            "weak",
            reaches=Mark.SIGNALLED,
        ),
        Property(
            Name.EINTR_HAS_CAUSE,
            "KVM_RUN answers EINTR only with a kick, a signal or immediate_exit",
            True,
            trigger=Did.EINTR,
        ),
        Property(
            Name.BALANCE,
            "nothing is held at return to user mode, taken twice or given back too often; nobody reads an old slot set",
            True,
            flag=Did.UNBALANCED,
        ),
        Property(Name.ASSERTION, "no thread ends with a failed assertion or another exception", True, flag=Did.FAILED),
        Property(Name.LOST_WAKEUP, "no operation lets a waiting thread go on without waking it", True),
        Property(Name.CLOSED_WINDOW, "no vCPU reads or writes guest memory inside a window", True, reaches=Mark.WINDOW),
        Property(
            Name.NO_BYSTANDER,
            "only KVM_RUN of this VM is waited for; other users of slots stay out of the window",
            True,
            reaches=Mark.KICKING,
        ),
    )
}


def property_of(name: str) -> Property:
    """The property of that name; one of a protocol of the user's own says what its file says."""
    found = PROPERTIES.get(name)
    if found is not None:
        return found
    statement = name.partition(".")[2]
    if name.startswith(NEVER):
        return Property(name, f"{statement} is true in no state that can be reached", True)
    if name.startswith(EVENTUALLY):
        return Property(name, f"{statement} becomes true in every run", False, "weak")
    raise KeyError(name)


OWN = (Name.DEADLOCK, Name.ASSERTION, Name.BALANCE, Name.LOST_WAKEUP)  # that every protocol has
SAFETY = tuple(name for name, item in PROPERTIES.items() if item.safety)
LIVENESS = tuple(name for name, item in PROPERTIES.items() if not item.safety)
