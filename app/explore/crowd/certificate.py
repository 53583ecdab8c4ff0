"""The certificate: a verdict for few vCPUs is one for every number, or which operation breaks which condition."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from kickstand.explore.crowd.counting import counting
from kickstand.explore.crowd.erasure import Erasure
from kickstand.explore.crowd.ghosts import CompanyError, Ghosts
from kickstand.explore.crowd.worlds import Renaming, UnevenError, owners, resizing
from kickstand.explore.decide import Answer, Decision, Effort
from kickstand.explore.learn.knowledge import Knowledge
from kickstand.explore.search.properties import LIVENESS, Name
from kickstand.explore.search.tables import TooWideError
from kickstand.explore.search.whole_runs.cycles import TooLargeError, never_ends
from kickstand.explore.world.cell import Cell
from kickstand.explore.world.parts import Role

LARGEST = 2  # vCPUs of the small world
CROWD = 6  # vCPUs of the world that is looked at by random runs
STEPS = 5_000  # operations of these runs
BOUND = 20_000_000  # states of a world with ghosts
ALONE = (Name.DEADLOCK, *LIVENESS)  # where several VMMs may wait for different vCPUs at once
NUMBERED = (Name.LOST_WAKEUP,)  # a wake-up is no answer: what is woken in company is not compared


@dataclass(slots=True)
class Certificate:
    """Whether verdicts for ``cutoff`` vCPUs are verdicts for every number of them.

    ``reasons`` says which condition is broken by what, for each cutoff that was tried; empty: certified. ``properties``
    are those that hold for every number.
    """

    cutoff: int = 0
    reasons: list[str] = field(default_factory=list)
    properties: list[str] = field(default_factory=list)
    states: int = 0  # of the largest world with ghosts
    answers: dict[str, Answer] = field(default_factory=dict)  # of the small world: holds, or vacuous

    @property
    def certified(self) -> bool:
        """The argument goes through."""
        return self.cutoff > 0

    def json(self, name: str) -> dict[str, Any]:
        """What it says of one property, as data."""
        return {"holds": name in self.properties, "cutoff": self.cutoff or None, "reasons": self.reasons}


def certify(cell: Cell, properties: Iterable[str], effort: Effort = Effort(), *, largest: int = LARGEST) -> Certificate:
    """Try the argument with one vCPU, then with ``largest``, and say which of ``properties`` hold for every number."""
    certificate = Certificate()
    for small in range(1, largest + 1):
        try:
            few = _explored(Decision(resizing(cell)(small), effort))
            certificate.states, reason = _check(cell, small, few)
        except (UnevenError, TooWideError, TooLargeError) as error:
            reason = str(error)
        else:
            if reason is None:
                certificate.cutoff = small
                certificate.answers = _held(cell, few, properties, effort)
                certificate.properties = list(certificate.answers)
                break
        if reason not in certificate.reasons:
            certificate.reasons.append(reason)
    return certificate


def _held(cell: Cell, few: Decision, properties: Iterable[str], effort: Effort) -> dict[str, Answer]:
    """Those that hold in every world up to the cutoff, and that the argument is about."""
    resized = resizing(cell)
    others = sum(1 for _ in cell.scenario.vmms)
    wanted = [name for name in properties if name not in NUMBERED and (others == 1 or name not in ALONE)]
    answers: dict[str, Answer] = {}
    for decision in (*(Decision(resized(vcpus), effort) for vcpus in range(1, few.cell.vcpus)), few):
        verdicts = decision.verdicts(wanted)
        answers = {verdict.property: verdict.verdict for verdict in verdicts if verdict.property in wanted}
        wanted = [name for name, answer in answers.items() if answer in (Answer.HOLDS, Answer.VACUOUS)]
    return {name: answers[name] for name in wanted}


def _check(cell: Cell, small: int, few: Decision) -> tuple[int, str | None]:
    """C0 to C3 for worlds that ``few`` stands for; the states looked at, and what is broken."""
    resized = resizing(cell)
    if few.search.result.bound or few.model.runaway:
        return few.search.result.states, few.search.result.bound or "a count falls below zero"
    for vmm in few.search.marks.vmms:
        if never_ends(few.search, vmm) is not None:
            return few.search.result.states, f"{few.knowledge.threads[vmm].name} need not come to its end"
    twins = _twins(few.knowledge)
    counted = counting(few.knowledge, (owners(few.knowledge.world).lists[None][at] for at in twins))
    if counted:
        return few.search.result.states, counted
    broken = _crowd(resized(CROWD), Ghosts(twins, small))
    if broken:
        return few.search.result.states, broken
    try:
        return _search(resized(small + 1), few, Ghosts(twins, small))
    except TooWideError:
        if small == 1:
            raise
    states = 0
    for about in range(small + 1):  # one vCPU's small worlds after the other's, where a word has no room for all
        found, broken = _search(resized(small + 1), few, Ghosts(twins, small, about))
        states = max(states, found)
        if broken:
            return states, broken
    return states, None


def _search(cell: Cell, few: Decision, ghosts: Ghosts) -> tuple[int, str | None]:
    """Every interleaving of a world of one vCPU more than the small one: how many states, and what is broken."""
    many = _explored(Decision(cell, Effort(max_states=BOUND, learn=None), ways=ghosts))
    return many.search.result.states, _broken(many, few, ghosts)


def _broken(many: Decision, few: Decision, ghosts: Ghosts) -> str | None:
    """C1, C2 or C3, where a world of one vCPU more than the small one breaks it."""
    if ghosts.broken:
        return ghosts.broken[0]
    broken = _company(many.knowledge) or _constant(many.knowledge, ghosts.twins)
    if broken is None and many.search.result.bound:
        broken = f"{many.search.result.bound} in a world of {many.cell.vcpus} vCPUs"
    return broken or _projects(many.knowledge, few.knowledge, ghosts)


def _explored(decision: Decision) -> Decision:
    try:
        decision.explored()
    finally:
        decision.knowledge.close()
    return decision


def _twins(knowledge: Knowledge) -> list[int]:
    """Which of the objects that are nobody's own are used by vCPUs and change."""
    users = knowledge.accesses()
    vcpus = {number for number, thread in enumerate(knowledge.threads) if thread.role is Role.VCPU}
    common = enumerate(owners(knowledge.world).lists[None])
    return [at for at, index in common if users.get(index, set()) & vcpus and len(knowledge.known[index]) > 1]


def _company(knowledge: Knowledge) -> str | None:
    """An operation that found itself doing in company what it does not do without (C1, C3)."""
    for number, automaton in enumerate(knowledge.automata):
        condition = "C1" if knowledge.threads[number].role is Role.VCPU else "C3"
        for node in automaton.nodes:
            if isinstance(node.error, CompanyError):
                return f"{condition}: {node.error}"
    return None


def _constant(knowledge: Knowledge, twins: list[int]) -> str | None:
    """An object that changes in company only."""
    users = knowledge.accesses()
    for at, index in enumerate(owners(knowledge.world).lists[None]):
        vcpus = [user for user in users.get(index, ()) if knowledge.threads[user].role is Role.VCPU]
        if at not in twins and vcpus and len(knowledge.known[index]) > 1:
            return f"C1: {knowledge.objects.names[index]} changes in company only"
    return None


def _crowd(cell: Cell, ghosts: Ghosts) -> str | None:
    """Random runs of a larger crowd."""
    knowledge = Knowledge(cell, ghosts, STEPS)
    knowledge.close()
    return ghosts.broken[0] if ghosts.broken else _company(knowledge)


def _projects(many: Knowledge, few: Knowledge, ghosts: Ghosts) -> str | None:
    """C2 for each way to erase."""
    small = owners(few.world)
    vcpus = {thread.vcpu.id: number for number, thread in enumerate(few.threads) if thread.vcpu is not None}
    for kept in ghosts.kept:
        erasure = Erasure(many, few, ghosts.owners, Renaming(ghosts.owners, small, kept))
        for number, thread in enumerate(many.threads):
            if thread.vcpu is None:
                other = number  # VMMs come first in every size
            elif thread.vcpu.id in kept:
                other = vcpus[kept.index(thread.vcpu.id)]
            else:
                continue
            difference = erasure.differs(number, other)
            if difference:
                return difference
    return None
