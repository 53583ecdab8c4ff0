"""One row of the demo: QEMU with a boot sector that races, under ``kickstand exec`` or on the real device."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kickstand.commands.demo.qemu.sector import boot_sector
from kickstand.exec.host.launch import unusable

PROGRAM = "qemu-system-x86_64"
BLOCKS_ITSELF = 8  # QEMU 8.0 has an accel-blocker
TIMEOUT_S = 120
KILL_S = 10
CRASH = "KVM internal error"
SURVIVED, CRASHED, HUNG, FAILED = "survived", "crashed", "hung", "failed"
ENDS = {33: SURVIVED, 35: "no second CPU", 37: "second CPU stands"}  # what isa-debug-exit makes of the sector's answer


class UnusableError(Exception):
    """There is no QEMU here, or it cannot be run under exec."""


@dataclass(slots=True)
class Row:
    """One run. ``engine``: x86 under exec, or kvm; times in nanoseconds."""

    engine: str
    protect: str
    asked: int
    expected: str
    outcome: str = FAILED
    transactions: int = 0  # that the guest has been through
    told: list[str] = field(default_factory=list)  # by QEMU, on standard error
    protection: dict[str, int] = field(default_factory=dict)

    @property
    def as_expected(self) -> bool:
        """It crashed or survived as QEMU's version and the protection say."""
        return self.outcome == self.expected

    @property
    def where(self) -> str | None:
        """CS:EIP of the CPU that could not go on."""
        dump = "\n".join(self.told)
        eip, cs = re.search(r"^EIP=(\w+)", dump, re.MULTILINE), re.search(r"^CS =(\w+)", dump, re.MULTILINE)
        return f"{cs[1]}:{int(eip[1], 16):04x}" if eip and cs else None

    def to_json(self) -> dict[str, Any]:
        """The row for a machine."""
        return {
            "engine": self.engine,
            "protect": self.protect,
            "outcome": self.outcome,
            "expected": self.expected,
            "as_expected": self.as_expected,
            "transactions_asked": self.asked,
            "transactions": self.transactions,
            "where": self.where,
            "error": self.told[-1] if self.outcome == FAILED and self.told else None,
            "drain_ns_median": self.protection.get("drain_ns_median", 0),
            "drain_ns_max": self.protection.get("drain_ns_max", 0),
            "kicked_out": self.protection.get("kicked_out", 0),
            "eintr_while_closed": self.protection.get("eintr_while_closed", 0),
        }


def version() -> str:
    """QEMU's. ``UnusableError``: there is none, or nothing can be run under exec here."""
    if reason := unusable():
        raise UnusableError(reason)
    program = shutil.which(PROGRAM)
    if program is None:
        raise UnusableError(f"there is no {PROGRAM} (Debian and Ubuntu: apt-get install qemu-system-x86 seabios)")
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"version (\d+\.\S*)", said)
    if found is None:
        raise UnusableError(f"{program} --version does not say which it is")
    return found[1]


def expected(protect: str, qemu: str) -> str:
    """Unprotected it crashes, unless QEMU keeps its vCPUs out itself."""
    blocks_itself = int(qemu.partition(".")[0]) >= BLOCKS_ITSELF
    return SURVIVED if protect != "none" or blocks_itself else CRASHED


def race(row: Row) -> None:
    """Run QEMU to its end and fill in how that was."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "disk").write_bytes(boot_sector(row.asked))
        command = _qemu(place) if row.engine == "kvm" else [*_exec(row.protect, place), *_qemu(place)]
        _watch(row, command)
        row.transactions = len((place / "points").read_bytes()) if (place / "points").exists() else 0
        if (place / "summary").exists():
            row.protection = json.loads((place / "summary").read_text() or "{}").get("protection", {})


def _exec(protect: str, place: Path) -> list[str]:
    options = ["--protect", protect, "--summary-json", str(place / "summary")]
    return [sys.executable, "-m", "kickstand", "exec", *options, "--"]


def _qemu(place: Path) -> list[str]:
    return [
        *(PROGRAM, "-accel", "kvm", "-machine", "pc", "-smp", "2", "-m", "64"),
        *("-nodefaults", "-display", "none", "-no-reboot", "-device", "isa-debug-exit,iobase=0xf4"),
        *("-chardev", f"file,id=points,path={place / 'points'}", "-device", "isa-debugcon,iobase=0xe9,chardev=points"),
        *("-drive", f"file={place / 'disk'},format=raw,if=ide"),
    ]


def _watch(row: Row, command: list[str]) -> None:
    """QEMU stands still after an internal error, so it is ended."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    late = threading.Timer(TIMEOUT_S, process.terminate)
    killing = threading.Timer(TIMEOUT_S + KILL_S, process.kill)
    late.start()
    killing.start()
    try:
        for line in process.stderr:
            row.told.append(line.rstrip())
            if line.startswith("CS ="):
                process.terminate()
        status = process.wait()
    finally:
        timed_out = late.finished.is_set()
        late.cancel()
        killing.cancel()
        process.kill()
        process.wait()
    crashed = any(CRASH in line for line in row.told)
    row.outcome = CRASHED if crashed else HUNG if timed_out else ENDS.get(status, FAILED)
