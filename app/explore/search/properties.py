"""The properties of the explorer, what each assumes, and what has to occur for it to say anything."""

from __future__ import annotations

from dataclasses import dataclass

from kickstand.explore.learn.observe import Did
from kickstand.explore.search.marks import Mark
from kickstand.explore.world.own import EVENTUALLY, NEVER

NOTHING = Did(0)
NOWHERE = Mark(0)


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


PROPERTIES = {
    item.name: item
    for item in (
        Property(
            "missing_slot",
            "no guest access looks up a slot that is missing because a transaction is in progress",
            True,
            flag=Did.MISSING_SLOT,
            trigger=Did.ACCESS,
        ),
        Property(
            "spurious_mmio",
            "no KVM_RUN returns MMIO or INTERNAL_ERROR for an address that is RAM before and after",
            True,
            flag=Did.SPURIOUS_MMIO,
            trigger=Did.ACCESS,
        ),
        Property("deadlock", "no state where nothing can move and somebody is not at rest", True),
        Property(
            "bounded_busy",
            "no vCPU returns EINTR more than twice in a row inside a window",
            True,
            reaches=Mark.WINDOW,
        ),
        Property(
            "lost_exit",
            "no finished device exit is replaced by EINTR",
            True,
            flag=Did.LOST_EXIT,
            trigger=Did.FILLED,
        ),
        Property(
            "livelock",
            "no run in which a window stays open for ever and a vCPU returns EINTR again and again",
            False,
            reaches=Mark.WINDOW,
        ),
        Property("kick_returns", "every KICK that begins returns", False, "weak", reaches=Mark.KICKING),
        Property(
            "progress",
            "every vCPU is in guest mode or halted again and again, and no VMM is stuck outside KICK",
            False,
            "weak",
        ),
        Property(
            "resume_runs",
            "once all transactions are over every vCPU is in guest mode or halted eventually",
            False,
            "weak",
            reaches=Mark.ENDED,
        ),
        Property(
            "dirty_kept",
            "no page a guest wrote is missing from what the VMM collected",
            True,
            flag=Did.DIRTY_LOST,
            trigger=Did.DIRTIED,
        ),
        Property(
            "kick_drains",
            "a KVM_RUN that is under way when KICK begins has returned when KICK returns",
            True,
            reaches=Mark.WINDOW,
        ),
        Property(
            "completed_once",
            "every access that userspace was asked to do is completed once, before the guest goes on",
            True,
            flag=Did.MISCOMPLETED,
            trigger=Did.ASKED,
        ),
        Property(
            "signal_leaves",
            "a signal gets its vCPU out of KVM_RUN",
            False,
            "weak",
            reaches=Mark.SIGNALLED,
        ),
        Property(
            "eintr_has_cause",
            "KVM_RUN answers EINTR only with a kick, a signal or immediate_exit",
            True,
            trigger=Did.EINTR,
        ),
        Property(
            "balance",
            "nothing is held at return to user mode, taken twice or given back too often; nobody reads an old slot set",
            True,
            flag=Did.UNBALANCED,
        ),
        Property("assertion", "no thread ends with a failed assertion or another exception", True, flag=Did.FAILED),
        Property("lost_wakeup", "no operation lets a waiting thread go on without waking it", True),
        Property("closed_window", "no vCPU reads or writes guest memory inside a window", True, reaches=Mark.WINDOW),
        Property(
            "no_bystander",
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


OWN = ("deadlock", "assertion", "balance", "lost_wakeup")  # that every protocol has
SAFETY = tuple(name for name, item in PROPERTIES.items() if item.safety)
LIVENESS = tuple(name for name, item in PROPERTIES.items() if not item.safety)
