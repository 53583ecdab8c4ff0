"""What every mutant has to get past: cells of the shipped code, and which lines each of them runs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, FunctionType, ModuleType
from typing import Any
from zlib import crc32

import pytest

from kickstand.core import atomics, kvm_main, vcpu, vm
from kickstand.core.arch.cpu.vcpu_arch import VcpuArch
from kickstand.core.ioctls import slots
from kickstand.core.memslots import active, table
from kickstand.core.run import run_page
from kickstand.core.shared import requests, rwsem
from kickstand.core.variants import variants
from kickstand.explore.decide import Answer
from kickstand.explore.matrix import explore
from tests.explore.mutation.mutants import Mutant, functions_of, mutants_of

SIGNALS = str(Path(__file__).with_name("signals.yaml"))
SPINNING = str(Path(__file__).with_name("spinning.yaml"))
QUIETLY = (
    *("-p", "no:terminal", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib"),
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),
)
ORDINARY = ("sticky", "holds")
AROUND = {"__init__", "load", "state", "saved"}  # how objects are made and looked at, which is no protocol


@dataclass(frozen=True, slots=True)
class CellName:
    """One cell of the battery."""

    scenario: str
    variant: str
    behaviour: str
    vcpus: int = 1
    vmms: int = 1

    def concerns(self, mutant: Mutant) -> bool:
        """The mistake may be one of this cell's variant, or one that all share."""
        where = mutant.function.__module__.rpartition("variants.")[2]
        return self.variant in ORDINARY or where == self.variant or (where == "holds" and self.variant == "inferred")

    def verdicts(self, properties: Sequence[str] = ()) -> dict[str, str]:
        """The verdict of each property, or of the named."""
        found = explore(self.scenario, self.variant, self.behaviour, self.vcpus, self.vmms, properties=properties)
        return {verdict.property: str(verdict.verdict) for verdict in found}


@dataclass(frozen=True, slots=True)
class Suite:
    """Tests as a judge: each that fails is a verdict."""

    paths: tuple[str, ...]

    def verdicts(self) -> dict[str, str]:
        """Run them in this process until one fails."""
        noted = _Failures()
        status = pytest.main(["-x", *self.paths, *QUIETLY], plugins=[noted])
        assert status in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED), status
        return dict.fromkeys(noted.names, str(Answer.VIOLATED))


class _Failures:
    def __init__(self) -> None:
        self.names: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A hook of pytest's."""
        if report.failed:
            self.names.append(report.nodeid)


TESTS = Suite(("tests/core", "tests/conformance/test_variants.py", "tests/runtime/test_inferred.py"))
SCENARIOS = (SIGNALS, "stuck_fault", "nested", "other_ioctl", "device_interrupt", "ipi", "repeat", "hotplug")
BEHAVIOURS = ("well", "careless")
QUICK = [
    CellName(scenario, name, how)
    for scenario, how in (
        ("merge", "well"), ("merge", "careless"), ("pending_io", "well"), ("dirty_log", "well"), (SPINNING, "well"),
    )
    for name in ORDINARY
]  # fmt: skip


def cells() -> list[CellName]:
    """The battery, the quick ones first: code that all variants share shows itself in two of them."""
    found = [*QUICK, *(CellName(scenario, name, "careless") for scenario in SCENARIOS for name in ORDINARY)]
    found += [CellName("grow", name, "careless", vmms=2) for name in (*ORDINARY, "inferred", "accel_blocker")]
    found += [
        CellName(scenario, name, how)
        for name in variants()
        if name not in ORDINARY
        for scenario in ("merge", "split", "dirty_log", "other_ioctl")
        for how in BEHAVIOURS
    ]
    return [*found, *(CellName("merge", name, "well", 2) for name in ORDINARY)]


def owners() -> Iterator[type | ModuleType]:
    """The classes and modules that the protocol is written in."""
    yield from (vcpu.Vcpu, kvm_main.AnyVcpu, kvm_main, requests.RequestBits, requests.VcpuMode)
    yield from (rwsem.RwSemaphore, rwsem.Srcu, atomics.Mutex, atomics.Task, VcpuArch, run_page.KvmRun)
    yield from (vm.Vm, vm.Lifetime, slots.SlotIoctls, active.Memslots, table.SlotTable)
    for kind in variants().values():
        module = sys.modules[kind.__module__]
        yield from (value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__)


def mutants(seed: int = 0) -> list[Mutant]:
    """All of them, in no order: the first so many are a sample; ``seed`` says which."""
    functions = dict.fromkeys(
        function for owner in owners() for function in functions_of(owner) if function.__name__ not in AROUND
    )
    found = [mutant for function in functions for mutant in mutants_of(function)]
    return sorted(found, key=lambda mutant: crc32(mutant.name.encode(), seed))


class Lines:
    """Which lines of some functions are run."""

    def __init__(self, functions: Iterable[FunctionType]) -> None:
        self.codes = {function.__code__ for function in functions}
        self.run: set[tuple[str, int]] = set()

    def __enter__(self) -> set[tuple[str, int]]:
        sys.settrace(self._call)
        return self.run

    def __exit__(self, *error: object) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code not in self.codes:
            return None
        self.run.add((frame.f_code.co_filename, frame.f_lineno))
        return self._line

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        self.run.add((frame.f_code.co_filename, frame.f_lineno))
        return self._line


def convictions(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """The properties that fall and did not fall before."""
    return [name for name, verdict in after.items() if verdict == Answer.VIOLATED != before.get(name)]
