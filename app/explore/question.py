"""What somebody asks the explorer: names and numbers, as the command line, a job or a worker gets them."""

from __future__ import annotations

import atexit
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

from kickstand.core.variants import load_variant_module, variant, variants
from kickstand.explore.decide import MAX_STATES, Effort
from kickstand.explore.search.properties import OWN, PROPERTIES
from kickstand.explore.world.cell import BEHAVIOURS, Cell
from kickstand.explore.world.own import Protocol, read, statements
from kickstand.explore.world.scenarios import Scenario, ScenarioError
from kickstand.explore.world.scenarios.files import in_file, load, parse
from kickstand.explore.world.stores import MEMORIES, SC

STRATEGIES = ("states", "random", "pct")


@dataclass(frozen=True, slots=True)
class Question:
    """Cells and what is asked of each; a choice that is left empty means all. Plain data, for any process."""

    scenario: str = "merge"  # a built-in one, or a file
    variants: tuple[str, ...] = ()
    behaviours: tuple[str, ...] = ()
    vcpus: tuple[int, ...] = (1,)
    vmms: int = 1
    properties: tuple[str, ...] = ()
    strategy: str = "states"
    max_states: int = MAX_STATES
    seed: int = 0
    workers: int = 1  # that share one cell, if it is large
    memory: str = SC
    any_number: int = 0  # the most vCPUs that may stand for every number of them; 0: that is not asked
    variant_module: str | None = None
    variant_source: str | None = None  # the module's text, for workers that do not have the file
    scenario_source: str | None = None  # a scenario file's content as JSON, likewise

    def split(self) -> Iterator[Question]:
        """One question a cell, with what the user's files say. Raises as ``check``, and ``OSError``."""
        here = self
        if self.variant_module is not None and self.variant_source is None:
            load_variant_module(Path(self.variant_module))
            here = replace(here, variant_source=Path(self.variant_module).read_text())
        if self.scenario.endswith(".py"):
            protocol = self.protocol()
            asked = self.properties or (*OWN, *statements(protocol))
            yield replace(
                here, properties=asked, variants=("own",), behaviours=("-",), vcpus=(0,), vmms=0, any_number=0,
                scenario_source=json.dumps({"model": protocol.text}),
            )  # fmt: skip
            return
        if not self.properties:
            here = replace(here, properties=tuple(PROPERTIES))
        fixed = in_file(self.scenario) if self.scenario_source is None else None
        sizes = (fixed,) if fixed else self.vcpus
        for vcpus, behaviour, name in product(sizes, self.behaviours or BEHAVIOURS, self.variants or variants()):
            source = load(self.scenario, vcpus, self.vmms).source if self.scenario_source is None else None
            one = replace(here, variants=(name,), behaviours=(behaviour,), vcpus=(vcpus,))
            yield replace(one, scenario_source=json.dumps(source)) if source else one

    def check(self) -> None:
        """Refuse names and sizes that are wrong. Raises ``ScenarioError`` or ``KvmError``; for one cell."""
        cell = self.cell()
        if isinstance(cell, Protocol):
            self._check_own(cell)
            return
        names = ((self.behaviours[0], BEHAVIOURS), (self.strategy, STRATEGIES), (self.memory, MEMORIES))
        for name, known in names:
            if name not in known:
                raise ScenarioError(f"{name!r} is none of {', '.join(known)}")
        for name in self.properties:
            if name not in PROPERTIES:
                raise ScenarioError(f"no property {name!r}; there are {', '.join(PROPERTIES)}")
        if self.max_states < 1:
            raise ScenarioError("max_states is at least 1")

    def _check_own(self, protocol: Protocol) -> None:
        known = (*OWN, *statements(protocol))
        for name in self.properties:
            if name not in known:
                raise ScenarioError(f"{self.scenario} has no property {name!r}; it has {', '.join(known)}")
        if self.strategy != "states":
            raise ScenarioError("a protocol of your own is searched by states")

    def protocol(self) -> Protocol:
        """The file of one's own that is asked about. Raises ``ScenarioError``."""
        if self.scenario_source is None:
            return read(self.scenario)
        return Protocol(Path(self.scenario).stem, json.loads(self.scenario_source)["model"], self.scenario)

    def cell(self) -> Cell | Protocol:
        """The world of a question about one cell."""
        if self.scenario.endswith(".py"):
            return self.protocol()
        self._load_module()
        return Cell(
            self._scenario(), variant(self.variants[0]), self.behaviours[0], self.vcpus[0], self.vmms, self.memory
        )

    def effort(self) -> Effort:
        """How the cell is searched."""
        return Effort(self.strategy, self.max_states, self.seed, self.workers)

    def describe(self) -> str:
        """A question about one cell in a few words."""
        return f"{self.scenario} {self.variants[0]} {self.behaviours[0]} {self.vcpus[0]} vCPU"

    def _scenario(self) -> Scenario:
        if self.scenario_source is not None:
            return parse(json.loads(self.scenario_source), Path(self.scenario).stem, self.vcpus[0])
        return load(self.scenario, self.vcpus[0], self.vmms)

    def _load_module(self) -> None:
        """Load the user's variant: from its file, or where there is none from the text that came along."""
        if self.variant_module is None:
            return
        path = Path(self.variant_module)
        if self.variant_source is None or (path.is_file() and path.read_text() == self.variant_source):
            load_variant_module(path)
            return
        folder = Path(mkdtemp(prefix="kickstand-"))  # kept: a token's hash is made of the file
        atexit.register(rmtree, folder, ignore_errors=True)
        copy = folder / path.name
        copy.write_text(self.variant_source)
        load_variant_module(copy)
