"""``kickstand demo``: the problem of the mail and each cure, on live guests, over HTTP.

Guests read m2 in a loop while the VMM merges m1 and m2 and splits them again: DELETE, DELETE, CREATE. A
read in between sees a hole and leaves as MMIO, although the address is RAM before and after. Userspace is
careless: after EINTR it calls KVM_RUN again at once, so that only the protection itself keeps vCPUs out.
"""

from __future__ import annotations

import re
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from app.client import Client, Json, KickstandError, region

PAGE = 4096
M1, M2 = 0x20_0000, 0x20_1000  # guest-physical; one page each, next to each other
VCPUS = 2
KICK_TIMEOUT = "ETIMEDOUT"
KICK_MS = 2_000  # a kick that has not returned by then is one that hangs: the others take less than a millisecond
START_SECONDS = 30

FLAT = {
    "base": 0,
    "limit": 0xFFFFFFFF,
    "present": 1,
    "dpl": 0,
    "s": 1,
    "l": 0,
    "g": 1,
    "avl": 0,
    "unusable": 0,
    "db": 1,
}
CODE = FLAT | {"type": 11, "selector": 8}
DATA = FLAT | {"type": 3, "selector": 16}
PROTECTED_MODE = {"cs": CODE, **dict.fromkeys(("ds", "es", "fs", "gs", "ss"), DATA), "cr0": 0x11}


@dataclass(slots=True)
class Row:
    """One variant on one engine."""

    engine: str
    variant: str
    expected_clean: bool  # the explorer says that no read of RAM leaves as MMIO under this variant
    spurious_without: int = 0
    spurious_with: int = 0
    drains_ns: list[int] = field(default_factory=list)
    spins: int = 0
    stuck: int = 0  # kicks that did not return in time
    kicked_by: str | None = None  # the variant that stands in for this one, if not itself

    @property
    def title(self) -> str:
        """The variant, and what stands in for it."""
        return self.variant if self.kicked_by in (None, self.variant) else f"{self.variant} (by {self.kicked_by})"

    @property
    def as_expected(self) -> bool:
        """Without protection reads were torn, and with it just where the explorer says so."""
        torn = bool(self.spurious_with or self.stuck)
        return bool(self.spurious_without) and torn is not self.expected_clean

    def to_json(self) -> Json:
        """The row for a machine; times in nanoseconds."""
        return {
            "engine": self.engine,
            "variant": self.variant,
            "kicked_by": self.kicked_by or self.variant,
            "spurious_mmio_unprotected": self.spurious_without,
            "spurious_mmio": self.spurious_with,
            "drain_ns_median": self.drain_ns(0.5),
            "drain_ns_max": self.drain_ns(1),
            "eintr_spins": self.spins,
            "kicks_stuck": self.stuck,
            "expected": "none" if self.expected_clean else "some",
            "as_expected": self.as_expected,
        }

    def drain_ns(self, quantile: float) -> int:
        """A quantile of the drain times; 0 without any."""
        ordered = sorted(self.drains_ns)
        return ordered[round(quantile * (len(ordered) - 1))] if ordered else 0


@contextmanager
def server(*options: str) -> Generator[str, None, None]:
    """Run a server of our own on a free port; gives its URL and ends it afterwards."""
    command = [sys.executable, "-m", "app", "serve", "--port", "0", "--ephemeral", "--no-default-vm", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield _url_of(process)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _url_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"http://[\w.:\[\]-]+", line):
            return found[0]
    raise RuntimeError(f"the server ended with status {process.wait()} before it was ready")


def reader_code(counter: int) -> bytes:
    """32-bit code: ``again: mov eax, [M2]; add dword [counter], 1; jmp again``."""
    body = b"\xa1" + M2.to_bytes(4, "little") + b"\x83\x05" + counter.to_bytes(4, "little") + b"\x01"
    return body + b"\xeb" + (-len(body) - 2 & 0xFF).to_bytes(1, "little")


def prepare(client: Client, engine: str) -> str:
    """Give the VM its memory and guests that read m2; returns the host address of m1 and m2."""
    ram = client.allocate(16 * PAGE, "ram")["userspace_addr"]
    merged: str = client.allocate(2 * PAGE, "m1m2")["userspace_addr"]
    client.set_region(0, 0, 16 * PAGE, ram)
    for slot, gpa, offset in ((1, M1, 0), (2, M2, PAGE)):
        client.set_region(slot, gpa, PAGE, hex(int(merged, 16) + offset))
    for vcpu in range(VCPUS):
        if engine == "script":
            client.set_program(vcpu, [["read", M2, 4], ["write", 0x800 + 8 * vcpu, 1, 4]])
            continue
        entry = 0x1000 * (vcpu + 1)
        client.write_host(hex(int(ram, 16) + entry), reader_code(entry + 0x800))
        client.set_sregs(vcpu, PROTECTED_MODE)
        client.set_regs(vcpu, rip=entry, rflags=2)
    return merged


def merge_and_split(merged: str) -> list[list[Json]]:
    """The two transactions of a round: m1 and m2 become one slot, and two again."""
    second = hex(int(merged, 16) + PAGE)
    gone = [region(1, M1, 0, merged), region(2, M2, 0, second)]
    return [
        [*gone, region(1, M1, 2 * PAGE, merged)],
        [gone[0], region(1, M1, PAGE, merged), region(2, M2, PAGE, second)],
    ]


def counted(client: Client, counter: str) -> int:
    """The sum of a counter over the VM's vCPUs."""
    return sum(vcpu["counters"][counter] for vcpu in client.vcpus()["vcpus"])


def play(client: Client, row: Row, rounds: int, advance: Callable[[], None]) -> None:
    """Fill in ``row``: ``rounds`` without protection and as many with it."""
    merged = prepare(client, row.engine)
    for vcpu in range(VCPUS):
        client.start(vcpu, "careless")
    for protect in ("none", None):
        before = counted(client, "mmio"), counted(client, "spins")
        for _ in range(rounds):
            for operations in merge_and_split(merged):
                if not row.stuck:  # a VMM whose kick hangs does nothing more
                    transact(client, row, operations, protect)
            advance()
        seen = counted(client, "mmio") - before[0]
        if protect == "none":
            row.spurious_without = seen
        else:
            row.spurious_with = seen
            row.spins = counted(client, "spins") - before[1]


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


def what_the_explorer_says(variants: Sequence[str]) -> dict[str, bool]:
    """For each variant whether `merge` under careless userspace keeps `spurious_mmio`, proved on the same code."""
    from app.explore.campaign import explore

    verdicts = explore("merge", variants, "careless", properties=("spurious_mmio",))
    return {verdict.variant: verdict.verdict == "holds" for verdict in verdicts}


def run(engines: Sequence[str], rounds: int, *, progress: bool = True) -> list[Row]:
    """Play every variant on every engine on a server of its own."""
    with server() as url, Client(url) as client:
        names = [variant["name"] for variant in client.kvm()["variants"]]
        proved = what_the_explorer_says(names)
        rows = [Row(engine, name, proved[name]) for engine in engines for name in names]
        with _progress(len(rows) * rounds * 2, enabled=progress) as advance:
            for number, row in enumerate(rows):
                client.vm = f"demo{number}"
                vm = client.create_vm(id=client.vm, vcpus=VCPUS, variant=row.variant, engine=row.engine)
                # A real kernel has no kick: what stands in for a variant that needs one is what can be expected.
                row.kicked_by = stands_in = vm.get("kicked_by", row.variant)
                row.expected_clean = proved[stands_in]
                play(client, row, rounds, advance)
                client.delete()
    return rows


@contextmanager
def _progress(total: int, *, enabled: bool) -> Generator[Callable[[], None], None, None]:
    if not enabled:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("merging under running guests", total=total)
        yield lambda: bar.advance(task)


def table(rows: Sequence[Row]) -> Any:
    """The rows as a table for a terminal."""
    from rich.table import Table

    made = Table(
        title="m1 and m2 merged and split again under guests that read m2; careless userspace", title_justify="left"
    )
    for heading in ("engine", "variant"):
        made.add_column(heading)
    for heading in (
        "spurious MMIO\nunprotected",
        "spurious MMIO\nprotected",
        "drain median\n(max), us",
        "EINTR\nspins",
        "kicks\nstuck",
    ):
        made.add_column(heading, justify="right")
    made.add_column("the explorer\nsays")
    made.add_column("outcome")
    engine = rows[0].engine if rows else ""
    for row in rows:
        if row.engine != engine:
            made.add_section()
            engine = row.engine
        made.add_row(
            row.engine,
            row.title,
            str(row.spurious_without),
            str(row.spurious_with),
            f"{row.drain_ns(0.5) / 1e3:.0f} ({row.drain_ns(1) / 1e3:.0f})",
            str(row.spins),
            str(row.stuck),
            "none torn" if row.expected_clean else "some torn",
            "[green]✔ as said[/]" if row.as_expected else "[bold red]✘ differs[/]",
        )
    return made


def summary(rows: Sequence[Row]) -> str:
    """One sentence for people."""
    wrong = [f"{row.variant} on {row.engine}" for row in rows if not row.as_expected]
    if wrong:
        return f"Not as the explorer says: {', '.join(wrong)}."
    without = statistics.fmean(row.spurious_without for row in rows)
    kept = sorted({row.variant for row in rows if row.expected_clean})
    return (
        f"Unprotected, guests saw a hole where there is RAM {without:.0f} times a run; "
        f"under {', '.join(kept)} never. As the explorer says."
    )
