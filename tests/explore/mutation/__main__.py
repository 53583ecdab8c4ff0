"""``python -m tests.explore.mutation``: try every mutant, say which nobody notices.

Each mutant is planted in a process of its own and put before the cells that run its line, until one convicts it.
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

from tests.explore.mutation.battery import QUICK, CellName, Lines, cells, convictions, mutants
from tests.explore.mutation.mutants import Mutant

CPU_SECONDS = 240  # of one mutant
FORK = multiprocessing.get_context("fork")


class Battery:
    """The cells, which lines each runs, and their verdicts without a mutant: each is found out once."""

    def __init__(self, functions: set[Any], names: list[CellName]) -> None:
        self.lines: dict[CellName, set[tuple[str, int]]] = {}
        for name in names:
            with Lines(functions) as self.lines[name]:
                name.learn()
        self.verdicts: dict[CellName, dict[str, str]] = {}

    def that_run(self, mutant: Mutant) -> list[CellName]:
        """The cells that a mutant may show itself in."""
        where = (mutant.function.__code__.co_filename, mutant.line)
        return [name for name, lines in self.lines.items() if where in lines]

    def before(self, name: CellName) -> dict[str, str]:
        """Verdicts without a mutant."""
        if name not in self.verdicts:
            self.verdicts[name] = name.verdicts()
        return self.verdicts[name]


def attempt(mutant: Mutant, names: list[CellName], before: Connection, sender: Connection) -> None:
    """In a process of its own: verdicts of one cell after the other, as they are asked for."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    mutant.plant()
    undecided = 0
    for name in names:
        sender.send(name)
        known = before.recv()
        try:
            after = name.verdicts()
        except Exception as error:  # the explorer refuses it by name
            sender.send(("refused", f"{type(error).__name__}: {error}"[:200], str(name)))
            return
        undecided += sum(verdict == "undecided" for verdict in after.values())
        if fallen := convictions(known, after):
            sender.send(("caught", ", ".join(fallen), str(name)))
            return
    sender.send(("missed", f"{undecided} undecided" if undecided else "", ""))


def judged(mutant: Mutant, battery: Battery) -> dict[str, Any]:
    """What became of it."""
    started = time.monotonic()
    names = battery.that_run(mutant)
    found = _tried(mutant, names, battery) if names else ("not run", "", "")
    seconds = round(time.monotonic() - started, 1)
    what, by, cell = found
    return {"name": mutant.name, "kind": mutant.kind, "what": what, "by": by, "cell": cell, "seconds": seconds}


def _tried(mutant: Mutant, names: list[CellName], battery: Battery) -> tuple[str, str, str]:
    answers, sender = FORK.Pipe(duplex=False)
    before, asks = FORK.Pipe(duplex=False)
    process = FORK.Process(target=attempt, args=(mutant, names, before, sender))
    process.start()
    sender.close()
    cell = ""
    found: Any
    try:
        while isinstance(found := answers.recv(), CellName):
            cell = str(found)
            asks.send(battery.before(found))
    except EOFError:
        found = "hangs", "", cell
    process.join()
    what, by, where = found
    return what, by, where


def chosen(part: str, only: str, skip: set[str]) -> Iterator[Mutant]:
    """The mutants to try."""
    this, parts = map(int, part.split("/"))
    for number, mutant in enumerate(mutants()):
        if number % parts == this - 1 and re.search(only, mutant.name) and mutant.name not in skip:
            yield mutant


def main() -> int:
    """Try them, print one line each and a table; 1 if one is missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.explore.mutation", description=__doc__)
    parser.add_argument("--part", default="1/1", help="2/3: the second of three parts")
    parser.add_argument("--only", default="", help="only those whose name has this (a regular expression)")
    parser.add_argument("--quick", action="store_true", help="before the quickest cells of two variants only")
    parser.add_argument("--list", action="store_true", help="name them and do nothing")
    parser.add_argument("--results", type=Path, help="a line of JSON each; those in it already are not tried again")
    options = parser.parse_args()
    done = set()
    if options.results and options.results.exists():
        done = {json.loads(line)["name"] for line in options.results.read_text().splitlines()}
    here = list(chosen(options.part, options.only, done))
    if options.list:
        print(*(mutant.name for mutant in here), sep="\n")
        return 0
    battery = Battery({mutant.function for mutant in here}, QUICK if options.quick else cells())
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
