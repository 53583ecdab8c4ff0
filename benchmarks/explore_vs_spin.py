"""The same questions to two explorers: is a slot ever seen missing under the kick? Kickstand against SPIN, in turn.

Both start from nothing: SPIN generates, compiles and runs its verifier; Kickstand starts a Python process,
learns the automata of the shipped coroutines and searches. Both decide by exhaustion. CPU seconds of the whole
process tree, because the machine may be shared. SPIN's model (``peers/kick.pml``) is hand-made
and smaller than the code.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import Ratio, at_most, judged, report, skipped

HERE = Path(__file__).parent
ROUNDS = {1: 3, 2: 3, 3: 1}  # by vCPUs
GOALS = {1: 1.0, 2: 1.0, 3: 2.0}
CELLS = {  # variant and behaviour: SPIN's switches
    ("sticky", "well"): [],
    ("sticky", "careless"): ["-DCARELESS"],
    ("clear_on_exit", "careless"): ["-DCARELESS", "-DCLEAR"],
}
SIZES = tuple(ROUNDS)
ASK = """
import sys
from kickstand.explore.matrix import explore
variant, behaviour, vcpus = sys.argv[1:]
(verdict,) = explore("merge", variant, behaviour, int(vcpus), properties=["missing_slot"])
print(verdict.verdict, verdict.states)
"""


def timed(commands: list[list[str]], folder: str) -> tuple[float, float, str]:
    """Run commands in order; CPU seconds, wall seconds, the output of the last."""
    before, started, output = os.times(), time.perf_counter(), ""
    for command in commands:
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
        output = subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True).stdout
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return cpu, time.perf_counter() - started, output


def spin(variant: str, behaviour: str, vcpus: int, folder: str) -> tuple[float, float, str]:
    """SPIN with partial order reduction, exhaustive; deadlocks are not asked for."""
    commands = [
        ["spin", f"-DN={vcpus}", *CELLS[variant, behaviour], "-a", str(HERE / "peers" / "kick.pml")],
        ["cc", "-O2", "-DSAFETY", "-DVECTORSZ=1024", "-o", "pan", "pan.c"],
        ["./pan", "-m1000000", "-w26", "-E"],
    ]
    cpu, wall, output = timed(commands, folder)
    errors = re.search(r"errors: (\d+)", output)
    states = re.search(r"(\d+) states, stored", output)
    verdict = "holds" if errors and errors[1] == "0" else "violated"
    return cpu, wall, f"{verdict} {states[1] if states else '?'}"


def kickstand(variant: str, behaviour: str, vcpus: int, folder: str) -> tuple[float, float, str]:
    """The explorer, from the start of Python to the verdict, its counterexample confirmed if there is one."""
    return timed([[sys.executable, "-c", ASK, variant, behaviour, str(vcpus)]], folder)


def question(variant: str, behaviour: str, vcpus: int) -> Ratio:
    """Ask both in turn: CPU time as a fraction of SPIN's. ``RuntimeError`` if the verdicts differ."""
    runs: list[tuple[float, float]] = []
    said: set[tuple[str, str]] = set()
    for _ in range(ROUNDS[vcpus]):
        with tempfile.TemporaryDirectory() as folder:
            theirs, _, their_answer = spin(variant, behaviour, vcpus, folder)
            ours, _, our_answer = kickstand(variant, behaviour, vcpus, folder)
        runs.append((ours, theirs))
        said.add((our_answer.strip(), their_answer.strip()))
    our_answer, their_answer = min(said)
    if our_answer.split()[0] != their_answer.split()[0]:
        raise RuntimeError(f"{variant}, {behaviour}, {vcpus} vCPUs: kickstand {our_answer}, spin {their_answer}")
    seconds = [statistics.median(side) for side in zip(*runs, strict=True)]
    note = f"{seconds[0]:.2f} s against {seconds[1]:.2f} s; {our_answer} states, spin {their_answer.split()[1]}"
    row = f"explorer to its verdict, {variant}, {behaviour}, {vcpus} vCPUs"
    return judged(row, "SPIN, compiled", [us / them for us, them in runs], at_most(GOALS[vcpus]), note=note)


def main() -> None:
    """Compare every cell at every size."""
    if not shutil.which("spin") or not shutil.which("cc"):
        report([skipped("explorer to its verdict", "needs spin and a C compiler (Debian: apt-get install spin gcc)")])
        return
    report([question(*cell, vcpus) for vcpus in SIZES for cell in CELLS])


if __name__ == "__main__":
    main()
