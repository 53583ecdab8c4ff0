"""``python -m app.explore.crosscheck``: verdicts with and without each reduction have to be the same.

Every cell is decided three times: with everything, without partial order reduction, and (``--unmerged``) with
every operation of every thread a step of its own. Exit status 1 if two of them differ in a verdict, or in the
length of a counterexample where the steps are the same ones.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator

from app.core.variants import variants
from app.explore.decide import MAX_STATES, Decision
from app.explore.properties import PROPERTIES
from app.explore.scenarios import SCENARIOS, scenario
from app.explore.world import BEHAVIOURS

Answer = dict[str, tuple[str, int | None]]


def answer(
    name: str, variant: str, behaviour: str, size: tuple[int, int], properties: Iterable[str], **how: object
) -> Answer:
    """Each property's verdict, and the length of its counterexample."""
    decision = Decision(scenario(name, *size), variant, behaviour, size, **how)  # type: ignore[arg-type]
    verdicts = decision.verdicts(properties)
    return {
        verdict.property: (
            verdict.verdict,
            verdict.counterexample.trail.steps if verdict.counterexample is not None else None,
        )
        for verdict in verdicts
    }


def differences(
    name: str,
    variant: str,
    behaviour: str,
    size: tuple[int, int] = (1, 1),
    properties: Iterable[str] = tuple(PROPERTIES),
    *,
    unmerged: bool = False,
    max_states: int = MAX_STATES,
) -> Iterator[str]:
    """Compare the searches of one cell; nothing is said about what one of them could not decide."""
    cell = (name, variant, behaviour, size, tuple(properties))
    full = answer(*cell, learn=None, max_states=max_states)
    others = {"reduced": answer(*cell, learn=1, max_states=max_states)}
    if unmerged:
        others["unmerged"] = answer(*cell, merge=False, max_states=max_states)
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
    parser = argparse.ArgumentParser(prog="python -m app.explore.crosscheck", description=__doc__)
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
        for variant in options.variant or variants():
            for behaviour in options.behaviour or BEHAVIOURS:
                size = (options.vcpus, options.vmms)
                found = list(
                    differences(
                        name,
                        variant,
                        behaviour,
                        size,
                        options.property or PROPERTIES,
                        unmerged=options.unmerged,
                        max_states=options.max_states,
                    )
                )
                count += 1
                different += bool(found)
                print(f"{name} {variant} {behaviour}: {'; '.join(found) or 'the same'}", flush=True)
    print(f"{count} cells, {different} differ")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
