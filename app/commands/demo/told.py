"""The story for people, a line as soon as there is one, in 80 columns; the same into a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from textwrap import wrap

from kickstand.commands.demo.story import Row

WIDTH = 80
US = 1_000  # nanoseconds
HEADS = (
    "{engine:<23} a guest meets a hole      kick takes (us)   EINTR",
    "variant                 unprotected  in a kick    median      max   spins",
)


class Silent:
    """Tells nothing."""

    def begins(self, engines: Sequence[str], merges: int) -> None: ...

    def played(self, row: Row) -> None: ...

    def ends(self, rows: Sequence[Row]) -> None: ...


class Told(Silent):
    """Prints."""

    def __init__(self) -> None:
        self.engine = ""

    def begins(self, engines: Sequence[str], merges: int) -> None:
        """What is going to happen."""
        self.say(
            *wrap(
                f"Two pages, m1 and m2, become one memory slot and two again, {merges} times for each variant, while "
                "guests read m2 in a loop. KVM cannot replace slots in one step: a guest that reads in between meets "
                "a hole where RAM belongs, and leaves as MMIO. The kick is to keep guests out meanwhile. Userspace is "
                "careless: after EINTR it calls KVM_RUN again at once.",
                WIDTH,
            )
        )

    def played(self, row: Row) -> None:
        """One line."""
        if row.engine != self.engine:
            self.engine = row.engine
            self.say("", *(head.format(engine=f"engine {row.engine}") for head in HEADS))
        self.say(line(row))

    def ends(self, rows: Sequence[Row]) -> None:
        """What it comes to."""
        self.say("", *summary(rows))

    @staticmethod
    def say(*lines: str) -> None:
        for one in lines:
            print(one, flush=True)


def line(row: Row) -> str:
    """One variant: words where a number would be the machine's, microseconds and spins where it is the point."""
    name = row.variant + "*" * (row.kicked_by not in (None, row.variant))
    longest = "hung" if row.stuck else _us(row.drain_ns(1))
    told = f"{name:<23} {_yes(row.torn_without):<12} {_yes(row.torn_with):<10}"
    told += f"{_us(row.drain_ns(0.5)):>9} {longest:>8} {row.spins:>7}"
    return told if row.as_expected else f"{told}  differs"


def _us(ns: int) -> str:
    return f"{ns / US:.0f}" if ns else "-"


def _yes(torn: int) -> str:
    return "yes" if torn else "no"


def summary(rows: Sequence[Row]) -> list[str]:
    """Is it as proved? And what may happen in which variant."""
    wrong = [f"{row.variant} on {row.engine}" for row in rows if not row.as_expected]
    if wrong:
        told = wrap(f"Not as the explorer says: {', '.join(wrong)}.", WIDTH)
    else:
        told = [f"All {len(rows)} lines are as the explorer proves for the same code:"]
    told += _names("never a hole in a kick", (row.variant for row in rows if row.proved.clean))
    told += _names("a hole is possible    ", (row.variant for row in rows if not row.proved.clean))
    hanging = [row for row in rows if not row.proved.returns]
    told += _names("the kick may hang     ", (row.variant for row in hanging if not _kickless(row)))
    told += _names("the change may hang   ", (row.variant for row in hanging if _kickless(row)))
    if any(map(_kickless, rows)):
        told.append("- no kick is needed: the change of slots itself holds the guests back")
    if any(row.kicked_by not in (None, row.variant) for row in rows):
        told.append("* a real kernel has no kick: it is done as accel_blocker does it")
    return told


def _kickless(row: Row) -> bool:
    """No kick of this variant has taken any time, since its slot changes are what waits for the guests."""
    return bool(row.merges) and not row.stuck and not row.drain_ns(1)


def _names(what: str, variants: Iterable[str]) -> list[str]:
    names = sorted(set(variants))
    return wrap(", ".join(names), WIDTH, initial_indent=f"  {what}  ", subsequent_indent=" " * (len(what) + 4))
