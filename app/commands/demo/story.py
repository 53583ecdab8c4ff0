"""The race and each cure, played and judged by what the explorer proves of the same code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kickstand.client import Client, Json, KickstandError
from kickstand.commands.demo.guests import VCPUS, merge_and_split, prepare
from kickstand.commands.demo.process import server

KICK_TIMEOUT = "ETIMEDOUT"
PATIENCE = 100  # rounds in which a hole that is there shows itself to fast guests, too
KICK_MS = 2_000  # a kick that has not returned by then is one that hangs: the others take less than a millisecond


@dataclass(frozen=True, slots=True)
class Proved:
    """What the explorer says of `merge` under careless userspace."""

    clean: bool  # no read of RAM leaves as MMIO
    returns: bool  # every kick returns


@dataclass(slots=True)
class Row:
    """One variant on one engine. Merges count splits too; times in nanoseconds."""

    engine: str
    variant: str
    proved: Proved
    merges: int = 0  # without protection, and as many with it
    torn_without: int = 0  # those in which a guest saw a hole
    torn_with: int = 0
    exits_without: int = 0  # MMIO exits for what is RAM before and after
    exits_with: int = 0
    drains_ns: list[int] = field(default_factory=list)
    spins: int = 0
    infers: bool = False  # the variant holds vCPUs because of slot changes: nothing has to be asked for
    stuck: int = 0  # kicks that did not return in time; nothing is merged after one
    kicked_by: str | None = None  # the variant that stands in for this one, if not itself

    @property
    def as_expected(self) -> bool:
        """Without protection reads were torn, unless it is inferred; and with it just where the explorer says so."""
        if self.infers:
            return not self.torn_without and not self.torn_with
        if self.stuck and not self.torn_with:
            return bool(self.torn_without) and not self.proved.returns
        hangs_as_said = not (self.stuck and self.proved.returns)
        return bool(self.torn_without) and bool(self.torn_with) is not self.proved.clean and hangs_as_said

    def to_json(self) -> Json:
        """The row for a machine."""
        return {
            "engine": self.engine,
            "variant": self.variant,
            "kicked_by": self.kicked_by or self.variant,
            "merges": self.merges,
            "merges_torn_unprotected": self.torn_without,
            "merges_torn": self.torn_with,
            "spurious_mmio_unprotected": self.exits_without,
            "spurious_mmio": self.exits_with,
            "drain_ns_median": self.drain_ns(0.5),
            "drain_ns_max": self.drain_ns(1),
            "eintr_spins": self.spins,
            "kicks_stuck": self.stuck,
            "expected": "none" if self.proved.clean else "some",
            "as_expected": self.as_expected,
        }

    def drain_ns(self, quantile: float) -> int:
        """A quantile of the drain times; 0 without any."""
        ordered = sorted(self.drains_ns)
        return ordered[round(quantile * (len(ordered) - 1))] if ordered else 0


class Listener(Protocol):
    """Who is told how the story goes."""

    def begins(self, engines: Sequence[str], merges: int) -> None: ...

    def played(self, row: Row) -> None: ...

    def ends(self, rows: Sequence[Row]) -> None: ...


def counted(client: Client, counter: str) -> int:
    """The sum of a counter over the VM's vCPUs."""
    return sum(vcpu["counters"][counter] for vcpu in client.vcpus()["vcpus"])


def play(client: Client, row: Row, rounds: int) -> None:
    """Fill in ``row``: ``rounds`` merges and splits without protection and as many with it.

    Where holes are to be seen and chance has shown none in so few, it goes on until the first.
    """
    merged = prepare(client, row.engine)
    for vcpu in range(VCPUS):
        client.start(vcpu, "careless")
    row.merges = 2 * rounds
    row.torn_without, row.exits_without = _merge(client, row, merged, rounds, "none", holes=not row.infers)
    spun = counted(client, "spins")
    row.torn_with, row.exits_with = _merge(client, row, merged, rounds, None, holes=not row.proved.clean)
    row.spins = counted(client, "spins") - spun


def _merge(client: Client, row: Row, merged: str, rounds: int, protect: str | None, *, holes: bool) -> tuple[int, int]:
    """In how many merges and splits a guest saw a hole, and how often in all; ``holes``: there are some to be seen."""
    torn, first = 0, counted(client, "mmio")
    before = first
    for number in range(max(rounds, PATIENCE)):
        if number >= rounds and (torn or not holes):
            break
        for operations in merge_and_split(merged):
            if row.stuck:  # a VMM whose kick hangs does nothing more
                break
            transact(client, row, operations, protect)
            seen = counted(client, "mmio")
            torn += seen > before
            before = seen
    return torn, before - first


def transact(client: Client, row: Row, operations: Sequence[Json], protect: str | None) -> None:
    """One transaction; a kick that hangs is counted."""
    try:
        answer = client.memory_transaction(operations, protect, KICK_MS)
    except KickstandError as error:
        if error.errno != KICK_TIMEOUT:
            raise
        row.stuck += 1
        return
    if protect is None:
        row.drains_ns.append(answer["drain_ns"])


def what_the_explorer_says(variant: str) -> Proved:
    """Whether `merge` under careless userspace keeps `spurious_mmio` and `kick_returns`, proved on the same code."""
    from kickstand.explore.matrix import explore

    verdicts = explore("merge", [variant], "careless", properties=("spurious_mmio", "kick_returns"))
    holds = {verdict.property: verdict.verdict == "holds" for verdict in verdicts}
    return Proved(holds["spurious_mmio"], holds["kick_returns"])


def infers(name: str) -> bool:
    """The variant holds vCPUs because of slot changes, with or without a kick."""
    from kickstand.core.variants import variant
    from kickstand.explore.world.cell import infers_windows

    return infers_windows(variant(name))


def run(engines: Sequence[str], rounds: int, listener: Listener) -> list[Row]:
    """Play every variant on every engine on a server of its own."""
    listener.begins(engines, 2 * rounds)
    rows: list[Row] = []
    proved: dict[str, Proved] = {}
    with server() as url, Client(url) as client:
        names = [variant["name"] for variant in client.kvm()["variants"]]
        for engine in engines:
            for name in names:
                client.vm = f"demo{len(rows)}"
                vm = client.create_vm(id=client.vm, vcpus=VCPUS, variant=name, engine=engine)
                # A real kernel has no kick: what stands in for a variant that needs one is what can be expected.
                stands_in = vm.get("kicked_by", name)
                if stands_in not in proved:
                    proved[stands_in] = what_the_explorer_says(stands_in)
                rows.append(Row(engine, name, proved[stands_in], kicked_by=stands_in, infers=infers(stands_in)))
                play(client, rows[-1], rounds)
                client.delete()
                listener.played(rows[-1])
    listener.ends(rows)
    return rows
