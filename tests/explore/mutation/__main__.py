"""``python -m tests.explore.mutation``: try every mutant, say which nobody notices.

Each mutant is planted in a process of its own and put before the quick cells that run its line, the tests of the core
and the other cells that run its line, until one of them convicts it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.explore.mutation.battery import QUICK, TESTS, CellName, Lines, Suite, cells, convictions, mutants
from tests.explore.mutation.mutants import Mutant

CPU_SECONDS = 40  # of one cell, or of the tests
WALL_SECONDS = 400
FORK = multiprocessing.get_context("fork")
Judge = CellName | Suite


class Battery:
    """The judges, which lines each runs, and their verdicts without a mutant: each is found out once."""

    def __init__(self, functions: set[Any], *, quick: bool = False) -> None:
        self.functions = functions
        first = [*QUICK, TESTS]
        self.judges: list[Judge] = first if quick else [*first, *(name for name in cells() if name not in QUICK)]
        self.lines: dict[Judge, set[tuple[str, int]]] = {}
        self.verdicts: dict[Judge, dict[str, str]] = {}

    def that_run(self, mutant: Mutant) -> Iterator[Judge]:
        """Those that a mutant may show itself to."""
        where = (mutant.function.__code__.co_filename, mutant.line)
        for judge in self.judges:
            if isinstance(judge, Suite) or (judge.concerns(mutant) and where in self._lines(judge)):
                yield judge

    def _lines(self, name: CellName) -> set[tuple[str, int]]:
        if name not in self.lines:
            with Lines(self.functions) as self.lines[name]:
                self.verdicts[name] = name.verdicts()
        return self.lines[name]

    def before(self, judge: Judge) -> dict[str, str]:
        """Verdicts without a mutant."""
        if judge not in self.verdicts:
            self.verdicts[judge] = judge.verdicts()
        return self.verdicts[judge]


def attempt(mutant: Mutant, asked: Connection, answers: Connection) -> None:
    """In a process of its own: the verdicts of one judge after the other, as they are asked for."""
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    mutant.plant()
    while (judge := asked.recv()) is not None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime) + CPU_SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        try:
            answers.send(judge.verdicts())
        except Exception as error:  # the explorer refuses it by name
            answers.send(f"{type(error).__name__}: {error}"[:200])


def judged(mutant: Mutant, battery: Battery) -> dict[str, Any]:
    """What became of it."""
    started = time.monotonic()
    asked, questions = FORK.Pipe(duplex=False)
    answers, sender = FORK.Pipe(duplex=False)
    process = FORK.Process(target=attempt, args=(mutant, asked, sender))
    process.start()
    asked.close()
    sender.close()
    what, by, judge = _tried(mutant, battery, questions, answers)
    process.kill()
    process.join()
    seconds = round(time.monotonic() - started, 1)
    return {"name": mutant.name, "kind": mutant.kind, "what": what, "by": by, "cell": judge, "seconds": seconds}


def _tried(mutant: Mutant, battery: Battery, questions: Connection, answers: Connection) -> tuple[str, str, str]:
    undecided = run = 0
    for judge in battery.that_run(mutant):
        known = battery.before(judge)
        questions.send(judge)
        try:
            after = answers.recv() if answers.poll(WALL_SECONDS) else None
        except EOFError:
            after = None
        if after is None:
            return "hangs", "", str(judge)
        if isinstance(after, str):
            return "refused", after, str(judge)
        if fallen := convictions(known, after):
            return "caught", ", ".join(fallen), str(judge)
        run += isinstance(judge, CellName)
        undecided += sum(verdict == "undecided" for verdict in after.values())
    return ("missed" if run else "not run"), (f"{undecided} undecided" if undecided else ""), f"{run} cells"


def chosen(part: str, only: str, skip: set[str], seed: int) -> Iterator[Mutant]:
    """The mutants to try."""
    this, parts = map(int, part.split("/"))
    for number, mutant in enumerate(mutants(seed)):
        if number % parts == this - 1 and re.search(only, mutant.name) and mutant.name not in skip:
            yield mutant


def main() -> int:
    """Try them, print one line each and a table; 1 if one is missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.explore.mutation", description=__doc__)
    parser.add_argument("--part", default="1/1", help="2/3: the second of three parts")
    parser.add_argument("--only", default="", help="only those whose name has this (a regular expression)")
    parser.add_argument("--quick", action="store_true", help="before the quickest cells of two variants and the tests")
    parser.add_argument("--seed", type=int, default=0, help="which order they are tried in")
    parser.add_argument("--first", type=int, help="try so many")
    parser.add_argument("--list", action="store_true", help="name them and do nothing")
    parser.add_argument("--results", type=Path, help="a line of JSON each; those in it already are not tried again")
    options = parser.parse_args()
    done = set()
    if options.results and options.results.exists():
        done = {json.loads(line)["name"] for line in options.results.read_text().splitlines()}
    here = list(chosen(options.part, options.only, done, options.seed))[: options.first]
    if options.list:
        print(*(mutant.name for mutant in here), sep="\n")
        return 0
    battery = Battery({mutant.function for mutant in here}, quick=options.quick)
    battery.before(TESTS)  # so that the processes find everything imported
    counts: Counter[str] = Counter()
    for mutant in here:
        result = judged(mutant, battery)
        counts[result["what"]] += 1
        print(f"{result['what']:8} {result['name']}  {result['by']} {result['cell']} {result['seconds']}", flush=True)
        if options.results:
            with options.results.open("a") as file:
                file.write(json.dumps(result) + "\n")
    print(dict(counts))
    return int(counts["missed"] > 0)


if __name__ == "__main__":
    sys.exit(main())
