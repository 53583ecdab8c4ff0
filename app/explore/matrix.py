"""Many cells: the matrix of variants, behaviours and properties, in this process or on an executor.

Each cell is one ``submit`` to anything with the interface of ``concurrent.futures``: a process pool, or
``distributed``'s ``Client.get_executor()``. A question is small data, and so is its answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

from kickstand.explore.crowd.certificate import certify
from kickstand.explore.decide import Answer, Decision, Effort, Verdict
from kickstand.explore.evidence.replay import Replay, replay
from kickstand.explore.evidence.tokens import Token, TokenError, check_code, check_model, decode
from kickstand.explore.question import Question
from kickstand.explore.search.properties import SAFETY, Name, property_of
from kickstand.explore.search.states import Progress
from kickstand.explore.search.whole_runs.wakeups import LOOKED_AT
from kickstand.explore.world.cell import BEHAVIOURS, Cell
from kickstand.explore.world.own import Own, read
from kickstand.explore.world.own import load as load_model
from kickstand.explore.world.scenarios import Scenario, ScenarioError, vcpu_column
from kickstand.explore.world.scenarios.files import load, parse


@dataclass(frozen=True, slots=True)
class Tick:
    """How far a matrix is; ``search`` is the state of the cell under way, where it is in this process."""

    done: int
    cells: int
    cell: Question
    search: Progress | None = None


Report = Callable[[Tick], None]
SearchReport = Callable[[Progress], None]
LARGE = 4  # vCPUs
BY_FEW = (*(name for name in SAFETY if name != Name.DEADLOCK), Name.LIVELOCK)  # what falls however long the others wait


def run_cell(question: Question, report: SearchReport | None = None) -> list[Verdict]:
    """Decide one cell: what a worker does."""
    cell, effort = question.cell(), question.effort()
    if isinstance(cell, Cell) and cell.vcpus >= LARGE and effort == replace(effort, strategy="states", merge=True):
        return _large(cell, question.properties, effort, report)
    verdicts = Decision(cell, effort, report).verdicts(question.properties)
    held = [verdict for verdict in verdicts if verdict.verdict in (Answer.HOLDS, Answer.VACUOUS)]
    if question.any_number and held and isinstance(cell, Cell):
        certificate = certify(cell, [verdict.property for verdict in held], effort, largest=question.any_number)
        for verdict in held:
            verdict.any_number = certificate.json(verdict.property)
    return verdicts


def _large(cell: Cell, properties: tuple[str, ...], effort: Effort, report: SearchReport | None) -> list[Verdict]:
    """A cell with so many vCPUs that the argument for every number of them is tried before the search.

    What that leaves open is sought in the runs of two of the vCPUs first: what falls there falls.
    """
    started = time.perf_counter()
    certificate = certify(cell, properties, effort)
    rest = [name for name in properties if name not in certificate.answers]
    few = [name for name in rest if name in BY_FEW]
    two = Decision(cell, replace(effort, moving=2)).verdicts(few) if few else []
    found = {verdict.property: verdict for verdict in two if verdict.verdict is Answer.VIOLATED}
    rest = [name for name in rest if name not in found]
    if rest == [Name.LOST_WAKEUP]:
        effort = replace(effort, max_states=min(effort.max_states, 2 * LOOKED_AT))
    if rest:
        found |= {verdict.property: verdict for verdict in Decision(cell, effort, report).verdicts(rest)}
    seconds = time.perf_counter() - started
    for name, answer in certificate.answers.items():
        where = (cell.scenario.name, cell.variant.name, cell.behaviour, cell.vcpus, cell.vmms)
        found[name] = Verdict(
            *where, name, answer, certificate.states, 0, seconds, property_of(name).fairness,
            any_number=certificate.json(name),
        )  # fmt: skip
    order = [*properties, *(name for name in found if name not in properties)]
    return [found[name] for name in order]


def _tell_nobody(tick: Tick) -> None:
    """Report to nobody."""


class Matrix:
    """All cells of questions, in a fixed order, and their verdicts as they come in.

    Wrong names raise ``ScenarioError`` or ``KvmError``.
    """

    def __init__(self, *questions: Question) -> None:
        self.cells = [cell for question in questions for cell in question.split()]
        for cell in self.cells:
            cell.check()
        self.verdicts: dict[Question, list[Verdict]] = {}

    def run(self, executor: Executor | None = None, report: Report | None = None) -> list[Verdict]:
        """Decide every cell; without an executor one after the other in this process."""
        for _ in self.stream(executor, report):
            pass
        return self.results()

    def stream(self, executor: Executor | None = None, report: Report | None = None) -> Iterator[list[Verdict]]:
        """Yield each cell's verdicts when it is decided."""
        tell = report or _tell_nobody
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
    """Passes a search's progress on as a matrix's."""

    tell: Report
    done: int
    cells: int
    cell: Question

    def __call__(self, progress: Progress) -> None:
        self.tell(Tick(self.done, self.cells, self.cell, progress))


def explore(
    scenario: str = "merge",
    variant: str | Iterable[str] = (),
    behaviour: str | Iterable[str] = (),
    vcpus: int = 1,
    vmms: int = 1,
    *,
    properties: Iterable[str] = (),
    progress: Report | None = None,
    executor: Executor | None = None,
    **asked: Any,
) -> list[Verdict]:
    """Decide every named property of every named variant and behaviour (all by default); ``asked`` as ``Question``."""
    variants = (variant,) if isinstance(variant, str) else tuple(variant)
    behaviours = (behaviour,) if isinstance(behaviour, str) else tuple(behaviour)
    question = Question(scenario, variants, behaviours, (vcpus,), vmms, tuple(properties), **asked)
    return Matrix(question).run(executor, progress)


def process_pool(workers: int) -> ProcessPoolExecutor:
    """The default executor. Workers are started afresh, so that they inherit no event loop and no thread."""
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"))


def replay_token(text: str, model: str | None = None) -> tuple[Token, list[tuple[int, str]], list[str]]:
    """Perform a token's schedule on the shipped runtime: the token, the operations, the threads' names.

    ``model`` is the file of the protocol that the token is about, if it is one of the user's own. Raises ``TokenError``
    (no token, or the code changed), ``ReplayError`` if the property does not fall.
    """
    token, run, names = replay_run(text, model)
    return token, run.log, names


def replay_run(text: str, model: str | None = None) -> tuple[Token, Replay, list[str]]:
    """As ``replay_token``, with all that is known of the run."""
    token = decode(text)
    if model is not None or token.variant == Own.name:
        protocol = check_model(token, None if model is None else read(model))
        names = [thread.name for thread in load_model(protocol).threads]
        return token, replay(protocol, token.schedule), names
    try:
        scenario = (
            parse(token.source, token.scenario, token.vcpus)
            if token.source
            else load(token.scenario, token.vcpus, token.vmms)
        )
    except ScenarioError as error:
        raise TokenError(str(error)) from None
    cell = check_code(token, scenario)
    if token.behaviour not in BEHAVIOURS:
        raise TokenError(f"{token.behaviour!r} is none of {', '.join(BEHAVIOURS)}")
    return token, replay(cell, token.schedule), thread_names(scenario)


def thread_names(scenario: Scenario) -> list[str]:
    """The columns of a scenario, VMMs first."""
    single = len(scenario.vms) == 1
    cpus = [
        vcpu_column(vm.id, number, single=single) for vm in scenario.vms for number in (*range(vm.vcpus), *vm.hotplug)
    ]
    return [vmm.name for vmm in scenario.vmms] + cpus
