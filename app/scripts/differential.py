"""Emulator against the real /dev/kvm, on generated scripts: ``python -m app.scripts.differential --count 2000``.

Each seed is played on the emulator as it is made and then on the device; with ``--mutate FOLDER`` it changes something
in one of the scripts there instead. A difference is shrunk to the shortest script before it is shown, and written as a
file that ``kickstand replay --against kvm`` plays. A changed guest may spin: it is compared up to there.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from app.core.errors import KvmError
from app.runtime.events import EventLog
from app.runtime.registry import Registry
from app.scripts.compare import Difference, compare
from app.scripts.errors import ScriptError
from app.scripts.generate import steps
from app.scripts.mutate import Mutations
from app.scripts.operations import OfVcpu, WriteHost
from app.scripts.parse import Operation, parse_operations, plain
from app.scripts.player import Player, Result
from app.scripts.quirks import Quirk, explained
from app.scripts.reader import load
from app.scripts.script import check
from app.scripts.shrink import blank, shrink

VARIANT = "accel_blocker"  # what both can do
EMULATOR, DEVICE = "x86", "kvm"
EVENTS = 256
Fails = Callable[[list[Operation]], Awaitable[bool]]
CODE_HEX = 2_048  # longer writes are no programs
RUN_TIMEOUT_MS = 10_000  # generated guests spin until they are kicked, however busy the machine is
SHRUNK_TIMEOUT_MS = 500  # shrunk ones may loop for ever


@dataclass(frozen=True, slots=True)
class Finding:
    """Both answers to the last of ``operations`` differ; ``quirk`` explains it, if one does."""

    seed: int
    operations: tuple[Operation, ...]
    emulator: Result
    device: Result
    differences: tuple[Difference, ...]
    quirk: Quirk | None

    def as_trace(self) -> dict[str, Any]:
        """A script with what the device answered last."""
        ops = plain(self.operations)
        ops[-1]["result"] = self.device
        vm = {"engine": EMULATOR, "variant": VARIANT}
        return {"id": f"differential/{self.seed}", "family": "differential", "seed": self.seed, "vm": vm, "ops": ops}

    def lines(self) -> list[str]:
        """For a terminal."""
        return [f"seed {self.seed}: {self.operations[-1].op} differs", *(f"    {one}" for one in self.differences),
                json.dumps(self.as_trace())]  # fmt: skip


@dataclass(slots=True)
class Report:
    """What a campaign came to."""

    scripts: int = 0
    operations: int = 0
    spun: list[int] = field(default_factory=list)
    spun_alone: list[int] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def unexplained(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.quirk is None]


class Differential:
    """Plays scripts on both. ``KvmError`` EOPNOTSUPP if the device cannot be used."""

    def __init__(self, emulator: str = EMULATOR, device: str = DEVICE, mutations: Mutations | None = None) -> None:
        self._emulator = emulator
        self._device = device
        self._mutations = mutations
        self.spun: list[int] = []
        """Seeds whose guest spins at some point, up to which it was compared."""
        self.spun_alone: list[int] = []
        """Those of them whose guest does so on one side only, or takes longer there than a spin is waited for."""
        self._registry = Registry(log=EventLog(EVENTS))

    async def run(self, seed: int) -> tuple[int, Finding | None]:
        """Play one seed; how many operations it had, and its shrunk difference."""
        if self._mutations is None:
            made, answers = await self._make(seed)
            finding = await self._compare(seed, made, answers)
        else:
            made = self._mutations.script(seed)
            finding = await self._compare_to_spin(seed, made)
        if finding is not None:
            finding = await self._shrunk(finding)
        return len(made), finding

    async def _compare_to_spin(self, seed: int, made: Sequence[Operation]) -> Finding | None:
        answers, spins = await self._play(self._emulator, made)
        common = made[: len(answers)]
        try:
            finding = await self._compare(seed, common, answers)
        except ScriptError:  # the device's guest spins where the emulator's does not
            self.spun.append(seed)
            self.spun_alone.append(seed)
            return None
        if finding is None and spins:
            self.spun.append(seed)
            _, both_spin = await self._play(self._device, made[: len(answers) + 1])
            if not both_spin:
                self.spun_alone.append(seed)
        return finding

    async def _make(self, seed: int) -> tuple[list[Operation], list[Result]]:
        machine = await self._registry.create(engine=self._emulator, variant=VARIANT)
        made: list[Operation] = []
        answers: list[Result] = []
        try:
            player = Player(machine, run_timeout_ms=RUN_TIMEOUT_MS)
            story = steps(seed)
            value = next(story)
            with contextlib.suppress(StopIteration):
                while True:
                    (operation,) = parse_operations([value])
                    made.append(operation)
                    answers.append(await _played(player, operation))
                    value = story.send(answers[-1])
        finally:
            await self._registry.destroy(machine.id)
        return made, answers

    async def _play(self, engine: str, operations: Sequence[Operation]) -> tuple[list[Result], bool]:
        """The answers, and whether the guest spins at the operation behind the last of them."""
        machine = await self._registry.create(engine=engine, variant=VARIANT)
        answers: list[Result] = []
        try:
            player = Player(machine, run_timeout_ms=SHRUNK_TIMEOUT_MS)
            for operation in operations:
                answers.append(await _played(player, operation))  # noqa: PERF401  what there is when one spins counts
        except ScriptError:
            return answers, True
        finally:
            await self._registry.destroy(machine.id)
        return answers, False

    async def _compare(self, seed: int, operations: Sequence[Operation], answers: Sequence[Result]) -> Finding | None:
        machine = await self._registry.create(engine=self._device, variant=VARIANT)
        try:
            player = Player(machine, run_timeout_ms=RUN_TIMEOUT_MS)
            unsettled: set[int] = set()
            waiting: set[int] = set()
            for number, (operation, emulator) in enumerate(zip(operations, answers, strict=True)):
                if _disturbs(operation, emulator, waiting):
                    return None
                device = await _played(player, operation)
                if not _defined(operation, device, unsettled):
                    continue
                if differences := compare(operation, device, emulator):
                    so_far = tuple(operations[: number + 1])
                    quirk = explained(so_far, emulator, device)
                    return Finding(seed, so_far, emulator, device, tuple(differences), quirk)
        finally:
            await self._registry.destroy(machine.id)
        return None

    async def _differs(self, seed: int, operations: list[Operation]) -> Finding | None:
        try:
            check(operations)
            answers, _ = await self._play(self._emulator, operations)
            return await self._compare(seed, operations[: len(answers)], answers)
        except (ScriptError, KvmError):
            return None

    async def _shrunk(self, finding: Finding) -> Finding:
        kind = _kind(finding.differences[0])
        best = finding

        async def fails(trial: list[Operation]) -> bool:
            nonlocal best
            found = await self._differs(finding.seed, trial)
            if found is not None and kind == _kind(found.differences[0]) and found.quirk is finding.quirk:
                best = found
                return True
            return False

        await shrink(finding.operations, fails)
        for number, operation in enumerate(best.operations):
            if isinstance(operation.args, WriteHost) and len(operation.args.hex) <= CODE_HEX:
                await blank(
                    bytes.fromhex(operation.args.hex), partial(self._with_bytes, fails, best.operations, number)
                )
        return best

    async def _with_bytes(self, fails: Fails, operations: Sequence[Operation], number: int, data: bytes) -> bool:
        changed = operations[number].args.model_copy(update={"hex": data.hex()})
        return await fails([*operations[:number], replace(operations[number], args=changed), *operations[number + 1 :]])


def _kind(difference: Difference) -> tuple[object, ...]:
    """What must stay the same while a script is shrunk, so that it does not turn into another fault's."""
    expected, actual = difference.expected, difference.actual
    if isinstance(expected, int) and isinstance(actual, int):
        return difference.field, expected ^ actual
    return (difference.field, expected, actual) if difference.field == "exit_reason" else (difference.field,)


def _defined(operation: Operation, answer: Result, unsettled: set[int]) -> bool:
    """Registers are well-defined unless the vCPU stopped in an access, or for good: ``unsettled``, kept up to date."""
    if not isinstance(operation.args, OfVcpu):
        return True
    vcpu = operation.args.vcpu
    if operation.op in ("run", "finish_run"):
        settled = answer.get("errno") == "EINTR" or answer.get("exit_reason") == "HLT"
        (unsettled.discard if settled else unsettled.add)(vcpu)
    return operation.op != "get_regs" or vcpu not in unsettled


def _disturbs(operation: Operation, answer: Result, waiting: set[int]) -> bool:
    """The vCPU waits for an access, and what this does to it is nowhere defined. ``waiting``: kept up to date."""
    vcpu = getattr(operation.args, "vcpu", None)
    if vcpu is None:
        return False
    if operation.op in ("run", "finish_run") and answer["ret"] == 0:
        (waiting.add if answer.get("exit_reason") in ("IO", "MMIO") else waiting.discard)(vcpu)
    return vcpu in waiting and operation.op in ("set_sregs", "interrupt", "nmi")


async def _played(player: Player, operation: Operation) -> Result:
    answer = await player.play(operation)
    if player.timed_out:
        raise ScriptError("the guest spins")
    return answer


async def campaign(
    seeds: Sequence[int], stop_after: int = 10, progress: Any = None, mutations: Mutations | None = None
) -> Report:
    """Play every seed; end early after ``stop_after`` unexplained differences."""
    both, report = Differential(mutations=mutations), Report()
    for seed in seeds:
        operations, finding = await both.run(seed)
        report.scripts += 1
        report.operations += operations
        report.spun, report.spun_alone = both.spun, both.spun_alone
        if finding is not None:
            report.findings.append(finding)
        if progress is not None:
            progress(report)
        if len(report.unexplained) >= stop_after:
            break
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """0: no difference that is no known quirk; 1: there is one; 2: the device cannot be used."""
    about = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m app.scripts.differential", description=about)
    parser.add_argument("--count", type=int, default=200, help="scripts to play")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--stop-after", type=int, default=10, help="unexplained differences after which to end")
    parser.add_argument("--out", type=Path, help="write the differences' scripts to this file (.jsonl)")
    parser.add_argument("--mutate", type=Path, help="change the scripts of this folder instead of making some")
    options = parser.parse_args(arguments)
    seeds = range(options.first, options.first + options.count)
    try:
        mutations = None if options.mutate is None else Mutations(load([options.mutate]))
        report = asyncio.run(campaign(seeds, options.stop_after, _show, mutations))
    except (KvmError, ScriptError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    out = sys.stdout
    for finding in report.unexplained:
        out.write("\n".join(finding.lines()) + "\n")
    if options.out is not None:
        options.out.write_text("".join(json.dumps(finding.as_trace()) + "\n" for finding in report.unexplained))
    seen = Counter(finding.quirk.name for finding in report.findings if finding.quirk is not None)
    quirks = ", ".join(f"{name} {times}" for name, times in sorted(seen.items())) or "none"
    alone = f" (on one side only: {report.spun_alone})" if report.spun_alone else ""
    spun = f", {len(report.spun)} spun{alone}" if report.spun else ""
    out.write(f"{report.scripts} scripts, {report.operations} operations{spun}, known quirks seen: {quirks}\n")
    out.write(f"{len(report.unexplained)} unexplained differences\n")
    return bool(report.unexplained)


def _show(report: Report) -> None:
    if report.scripts % 100 == 0:
        sys.stderr.write(f"{report.scripts} scripts, {len(report.unexplained)} unexplained differences\n")


if __name__ == "__main__":
    sys.exit(main())
