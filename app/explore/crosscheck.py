"""``python -m kickstand.explore.crosscheck``: verdicts with and without each reduction have to be the same.

Every cell is decided three times: with everything, without partial order reduction, and (``--unmerged``) with
every operation of every thread a step of its own. Exit status 1 if two of them differ in a verdict, or in the
length of a counterexample where the steps are the same ones.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace

from kickstand.explore.decide import MAX_STATES, Decision, Effort
from kickstand.explore.question import Question
from kickstand.explore.search.properties import PROPERTIES
from kickstand.explore.world.cell import BEHAVIOURS, Cell
from kickstand.explore.world.own import Protocol
from kickstand.explore.world.scenarios import SCENARIOS

Answer = dict[str, tuple[str, int | None]]


def answer(cell: Cell | Protocol, properties: Iterable[str], effort: Effort) -> Answer:
    """Each property's verdict, and the length of its counterexample."""
    verdicts = Decision(cell, effort).verdicts(properties)
    return {
        verdict.property: (
            verdict.verdict,
            verdict.counterexample.trail.steps if verdict.counterexample is not None else None,
        )
        for verdict in verdicts
    }


def differences(question: Question, *, unmerged: bool = False) -> Iterator[str]:
    """Compare the searches of one cell; nothing is said about what one of them could not decide."""
    cell, effort, properties = question.cell(), question.effort(), question.properties or tuple(PROPERTIES)
    full = answer(cell, properties, replace(effort, learn=None))
    others = {"reduced": answer(cell, properties, replace(effort, learn=1))}
    if unmerged:
        others["unmerged"] = answer(cell, properties, replace(effort, merge=False))
    for how, other in others.items():
        for prop, (verdict, steps) in full.items():
            there, length = other[prop]
            if "undecided" in (verdict, there):
                continue
            if verdict != there:
                yield f"{prop}: {verdict}, {how}: {there}"
            elif how == "reduced" and steps != length:
                yield f"{prop}: {steps} steps, {how}: {length}"


def main(arguments: list[str] | None = None) -> int:
    """Compare the cells that the options name; all variants, both behaviours."""
    parser = argparse.ArgumentParser(prog="python -m kickstand.explore.crosscheck", description=__doc__)
    parser.add_argument("--scenario", action="append", choices=SCENARIOS)
    parser.add_argument("--variant", action="append")
    parser.add_argument("--behaviour", action="append", choices=BEHAVIOURS)
    parser.add_argument("--vcpus", type=int, default=2)
    parser.add_argument("--vmms", type=int, default=1)
    parser.add_argument("--property", action="append", choices=PROPERTIES)
    parser.add_argument("--unmerged", action="store_true")
    parser.add_argument("--max-states", type=int, default=MAX_STATES)
    options = parser.parse_args(arguments)
    count = different = 0
    for name in options.scenario or ["merge"]:
        question = Question(
            name,
            tuple(options.variant or ()),
            tuple(options.behaviour or ()),
            (options.vcpus,),
            options.vmms,
            tuple(options.property or ()),
            max_states=options.max_states,
        )
        for cell in question.split():
            found = list(differences(cell, unmerged=options.unmerged))
            count += 1
            different += bool(found)
            print(f"{cell.describe()}: {'; '.join(found) or 'the same'}", flush=True)
    print(f"{count} cells, {different} differ")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
