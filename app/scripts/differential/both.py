"""Plays one script on the emulator and on the real /dev/kvm, and finds the first answer that differs.

A changed guest may spin: it is compared up to there. A difference is shrunk to the shortest script that shows it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from kickstand.core.errors import KvmError
from kickstand.runtime.events import EventLog
from kickstand.runtime.registry import Registry
from kickstand.scripts.differential.generate import steps
from kickstand.scripts.differential.mutate import Mutations
from kickstand.scripts.differential.quirks import Quirk, explained
from kickstand.scripts.differential.shrink import blank, shrink
from kickstand.scripts.language.errors import ScriptError
from kickstand.scripts.language.operations import OfVcpu, WriteHost
from kickstand.scripts.language.parse import Operation, parse_operations, plain
from kickstand.scripts.language.script import check
from kickstand.scripts.play.compare import Difference, compare
from kickstand.scripts.play.forms import Result
from kickstand.scripts.play.player import Player

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
        tables = _tables(finding.operations)

        async def fails(trial: list[Operation]) -> bool:
            nonlocal best
            if _tables(trial) != tables and any(step.op == "create_vcpu" for step in trial):
                return False  # each side would be what its host is
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


def _tables(operations: Sequence[Operation]) -> int:
    """How often a CPUID table is set."""
    return sum(getattr(step.args, "name", None) == "KVM_SET_CPUID2" for step in operations)


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
