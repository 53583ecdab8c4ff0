"""Many cells: the matrix of variants, behaviours and properties, in this process or on an executor.

Each cell is one ``submit`` to anything with the interface of ``concurrent.futures``: a process pool, or
``distributed``'s ``Client.get_executor()``. A cell is small data, and so is its answer.
"""

from __future__ import annotations

import atexit
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

from app.core.variants import load_variant_module, variant, variants
from app.explore.decide import MAX_STATES, Decision, Verdict
from app.explore.properties import PROPERTIES
from app.explore.replay import replay
from app.explore.scenario_files import load, parse
from app.explore.scenarios import Scenario, ScenarioError
from app.explore.search import Progress
from app.explore.tokens import Token, TokenError, check_code, decode
from app.explore.world import BEHAVIOURS

STRATEGIES = ("states", "random", "pct")


@dataclass(frozen=True, slots=True)
class CellSpec:
    """What one worker is asked: everything is a name or a number."""

    scenario: str
    variant: str
    behaviour: str
    vcpus: int = 1
    vmms: int = 1
    properties: tuple[str, ...] = tuple(PROPERTIES)
    strategy: str = "states"
    max_states: int = MAX_STATES
    seed: int = 0
    variant_module: str | None = None
    variant_source: str | None = None  # the module's text, for workers that do not have the file
    scenario_source: str | None = None  # a scenario file's content as JSON, likewise
    workers: int = 1  # that share this cell, if it is large


@dataclass(frozen=True, slots=True)
class Tick:
    """How far a campaign is; ``search`` is the state of the cell under way, where it is in this process."""

    done: int
    cells: int
    cell: CellSpec
    search: Progress | None = None


Report = Callable[[Tick], None]


def check(spec: CellSpec) -> None:
    """Refuse names and sizes that are wrong. Raises ``ScenarioError`` or ``KvmError``."""
    _load_module(spec)
    variant(spec.variant)
    _world(spec)
    for name, known in ((spec.behaviour, BEHAVIOURS), (spec.strategy, STRATEGIES)):
        if name not in known:
            raise ScenarioError(f"{name!r} is none of {', '.join(known)}")
    for name in spec.properties:
        if name not in PROPERTIES:
            raise ScenarioError(f"no property {name!r}; there are {', '.join(PROPERTIES)}")
    if spec.max_states < 1:
        raise ScenarioError("max_states is at least 1")


def _load_module(spec: CellSpec) -> None:
    """Load the user's variant: from its file, or where there is none from the text that came with the question."""
    if spec.variant_module is None:
        return
    path = Path(spec.variant_module)
    if spec.variant_source is None or (path.is_file() and path.read_text() == spec.variant_source):
        load_variant_module(path)
        return
    folder = Path(mkdtemp(prefix="kickstand-"))  # kept: a token's hash is made of the file
    atexit.register(rmtree, folder, ignore_errors=True)
    copy = folder / path.name
    copy.write_text(spec.variant_source)
    load_variant_module(copy)


def _world(spec: CellSpec) -> Scenario:
    if spec.scenario_source is not None:
        return parse(json.loads(spec.scenario_source), Path(spec.scenario).stem, spec.vcpus)
    return load(spec.scenario, spec.vcpus, spec.vmms)


def run_cell(spec: CellSpec, report: Callable[[Progress], None] | None = None) -> list[Verdict]:
    """Decide one cell: what a worker does."""
    _load_module(spec)
    decision = Decision(
        _world(spec),
        spec.variant,
        spec.behaviour,
        (spec.vcpus, spec.vmms),
        max_states=spec.max_states,
        report=report,
        strategy=spec.strategy,
        seed=spec.seed,
        workers=spec.workers,
    )
    return decision.verdicts(spec.properties)


def _tell_nobody(tick: Tick) -> None:
    """Report to nobody."""


class Matrix:
    """All cells of a question, in a fixed order, and their verdicts as they come in."""

    def __init__(self, cells: Sequence[CellSpec]) -> None:
        for cell in cells:
            check(cell)
        self.cells = list(cells)
        self.verdicts: dict[CellSpec, list[Verdict]] = {}

    def run(self, executor: Executor | None = None, report: Report | None = None) -> list[Verdict]:
        """Decide every cell; without an executor one after the other in this process."""
        for _ in self.stream(executor, report):
            pass
        return self.results()

    def stream(self, executor: Executor | None = None, report: Report | None = None) -> Iterator[list[Verdict]]:
        """Yield each cell's verdicts when it is decided."""
        tell = report or (_tell_nobody)
        if executor is None:
            for number, cell in enumerate(self.cells):
                here = _Teller(tell, number, len(self.cells), cell)
                self.verdicts[cell] = run_cell(cell, here if report else None)
                tell(Tick(number + 1, len(self.cells), cell))
                yield self.verdicts[cell]
            return
        futures = {executor.submit(run_cell, cell): cell for cell in self.cells}
        try:
            for number, future in enumerate(as_completed(futures)):
                cell = futures[future]
                self.verdicts[cell] = future.result()
                tell(Tick(number + 1, len(self.cells), cell))
                yield self.verdicts[cell]
        finally:
            for future in futures:
                future.cancel()

    def results(self) -> list[Verdict]:
        """The verdicts so far, in the order of the cells."""
        return [verdict for cell in self.cells for verdict in self.verdicts.get(cell, ())]


@dataclass(frozen=True, slots=True)
class _Teller:
    """Passes a search's progress on as a campaign's."""

    tell: Report
    done: int
    cells: int
    cell: CellSpec

    def __call__(self, progress: Progress) -> None:
        self.tell(Tick(self.done, self.cells, self.cell, progress))


def matrix(
    scenario: str = "merge",
    variant_names: Iterable[str] = (),
    behaviours: Iterable[str] = (),
    vcpus: int = 1,
    vmms: int = 1,
    properties: Iterable[str] = (),
    strategy: str = "states",
    max_states: int = MAX_STATES,
    seed: int = 0,
    variant_module: str | None = None,
    workers: int = 1,
) -> Matrix:
    """The cells of one question; an empty choice means all. Wrong names raise ``ScenarioError`` or ``KvmError``.

    What the user's files say travels with the cells.
    """
    module = None
    if variant_module is not None:
        load_variant_module(Path(variant_module))
        module = Path(variant_module).read_text()
    source = load(scenario, vcpus, vmms).source
    names = tuple(variant_names) or tuple(variants())
    chosen = tuple(properties) or tuple(PROPERTIES)
    return Matrix(
        [
            CellSpec(
                scenario,
                name,
                behaviour,
                vcpus,
                vmms,
                chosen,
                strategy,
                max_states,
                seed,
                variant_module,
                module,
                json.dumps(source) if source else None,
                workers,
            )
            for behaviour in tuple(behaviours) or BEHAVIOURS
            for name in names
        ]
    )


def explore(
    scenario: str = "merge",
    variant: str | Iterable[str] = (),
    behaviour: str | Iterable[str] = (),
    vcpus: int = 1,
    vmms: int = 1,
    properties: Iterable[str] = (),
    strategy: str = "states",
    max_states: int = MAX_STATES,
    seed: int = 0,
    progress: Report | None = None,
    executor: Executor | None = None,
) -> list[Verdict]:
    """Decide every named property of every named variant and behaviour (all by default); see ``matrix``."""
    one = (variant,) if isinstance(variant, str) else tuple(variant)
    behaviours = (behaviour,) if isinstance(behaviour, str) else tuple(behaviour)
    return matrix(scenario, one, behaviours, vcpus, vmms, properties, strategy, max_states, seed).run(
        executor, progress
    )


def process_pool(workers: int) -> ProcessPoolExecutor:
    """The default executor. Workers are started afresh, so that they inherit no event loop and no thread."""
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"))


def replay_token(text: str) -> tuple[Token, list[tuple[int, str]], list[str]]:
    """Perform a token's schedule on the shipped runtime: the token, the operations, the threads' names.

    Raises ``TokenError`` (no token, or the code changed), ``ReplayError`` if the property does not fall.
    """
    token = decode(text)
    try:
        world = (
            parse(token.source, token.scenario, token.vcpus)
            if token.source
            else load(token.scenario, token.vcpus, token.vmms)
        )
    except ScenarioError as error:
        raise TokenError(str(error)) from None
    kind = check_code(token, world)
    if token.behaviour not in BEHAVIOURS:
        raise TokenError(f"{token.behaviour!r} is none of {', '.join(BEHAVIOURS)}")
    return token, replay(world, kind, token.behaviour, token.schedule).log, thread_names(world)


def thread_names(world: Any) -> list[str]:
    """The columns of a scenario, VMMs first."""
    single = len(world.vms) == 1
    cpus = [
        f"CPU{number}" if single else f"{vm.id}/CPU{number}"
        for vm in world.vms
        for number in (*range(vm.vcpus), *vm.hotplug)
    ]
    return [vmm.name for vmm in world.vmms] + cpus
