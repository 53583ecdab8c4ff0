"""In which states a statement about the world is true: it is evaluated once for each way its objects can be."""

from __future__ import annotations

import numpy as np

from kickstand.explore.learn.objects import Proxy
from kickstand.explore.search.tables import Mask, Tables, Words
from kickstand.explore.world.parts import Statement
from kickstand.explore.world.scenarios import ScenarioError


class Statements:
    """The statements of one world, over one set of tables."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.model = tables.model
        world = self.model.knowledge.world
        self.named = world.never | world.eventually
        self.rest = world.rest
        self.known: dict[tuple[Statement, tuple[int, ...]], bool] = {}

    def mask(self, statement: Statement, words: Words) -> Mask:
        """Where it is true."""
        model, widths = self.model, self.tables.widths
        involved = sorted(model.knowledge.reads[statement] & model.component_of.keys())
        fields = [widths.field(words, model.component_of[index]) for index in involved]
        if not fields:
            return np.full(len(words), self._true(statement, involved, ()))
        ways, where = np.unique(np.stack(fields), axis=1, return_inverse=True)
        true = np.array([self._true(statement, involved, tuple(way)) for way in ways.T.tolist()], dtype=bool)
        return true[where.reshape(-1)]

    def _true(self, statement: Statement, involved: list[int], numbers: tuple[int, ...]) -> bool:
        known = self.known.get((statement, numbers))
        if known is None:
            objects, model = self.model.objects, self.model
            for index in model.knowledge.reads[statement]:
                objects.real[index].load(objects.states[index][model.knowledge.initial[index]])
            for index, number in zip(involved, numbers, strict=True):
                state = model.states[model.component_of[index]][number][model.place[index]]
                objects.real[index].load(objects.states[index][state])
            known = self.known[statement, numbers] = self._evaluate(statement)
        return known

    def _evaluate(self, statement: Statement) -> bool:
        Proxy.readable = True
        try:
            return bool(statement())
        except Exception as error:
            raise ScenarioError(f"{statement.__name__}: {type(error).__name__}: {error}") from error
        finally:
            Proxy.readable = False
