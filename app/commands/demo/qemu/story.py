"""The rows of the demo, told to people as they come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from textwrap import wrap

from kickstand.commands.demo.qemu.race import Row, expected, race, version

WIDTH = 80
US = 1_000  # nanoseconds
FORM = "{:<11} {:<8} {:<15} {:<10} {:>8} {:>8} {:>7} {:>6}"
HEAD = FORM.format("/dev/kvm", "protect", "transactions", "at", "drain us", "longest", "kicked", "EINTR")
DEVICES = {"x86": "Kickstand's", "kvm": "a real one"}
Say = Callable[[str], None]


def rows(engines: Sequence[str], transactions: int, qemu: str) -> list[Row]:
    """What is run: unprotected on each engine, and under both protections of exec."""
    made = [("none", engine) for engine in engines] + [("hold", "x86"), ("kick", "x86")]
    return [Row(engine, protect, transactions, expected(protect, qemu)) for protect, engine in made]


def run(engines: Sequence[str], transactions: int, say: Say) -> list[Row]:
    """Run them all. ``UnusableError``: there is no QEMU."""
    qemu = version()
    _begin(qemu, transactions, say)
    made = rows(engines, transactions, qemu)
    for row in made:
        race(row)
        for told in lines(row):
            say(told)
    return made


def _begin(qemu: str, transactions: int, say: Say) -> None:
    about = (
        f"QEMU {qemu}, unmodified, with two CPUs: one executes code in low RAM, the other has QEMU delete and create "
        f"the slot of low RAM, {transactions} times. KVM has no RAM there in between. Kicked: how often a vCPU had to "
        "leave KVM_RUN; EINTR: how often it came back too early."
    )
    for line in (*wrap(about, WIDTH), "", HEAD):
        say(line)


def lines(row: Row) -> list[str]:
    """One run, and what QEMU said if it did not go as expected."""
    seen = row.protection
    counts = [_us(seen, "drain_ns_median"), _us(seen, "drain_ns_max")]
    counts += [str(seen.get(name, "-")) for name in ("kicked_out", "eintr_while_closed")]
    went = f"{row.transactions}, {row.outcome}"
    told = FORM.format(DEVICES[row.engine], row.protect, went, row.where or "-", *counts)
    if row.as_expected:
        return [told]
    return [told, *(f"  {line}" for line in (f"expected: {row.expected}", *row.told[:3]))]


def _us(seen: dict[str, int], name: str) -> str:
    return f"{seen[name] / US:.0f}" if name in seen else "-"
