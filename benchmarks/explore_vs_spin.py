"""The same questions to two explorers: is a slot ever seen missing under the kick? Kickstand against SPIN, in turn.

Both start from nothing: SPIN generates, compiles and runs its verifier; Kickstand starts a Python process,
learns the automata of the shipped coroutines and searches. Both decide by exhaustion. CPU seconds of the whole
process tree, because the machine may be shared. SPIN's model (``spin/kick.pml``) is hand-made
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

HERE = Path(__file__).parent
ROUNDS = 3
CELLS = {  # variant and behaviour: SPIN's switches
    ("sticky", "well"): [],
    ("sticky", "careless"): ["-DCARELESS"],
    ("clear_on_exit", "careless"): ["-DCARELESS", "-DCLEAR"],
}
SIZES = (1, 2, 3)
ASK = """
import sys
from app.explore.campaign import explore
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
        ["spin", f"-DN={vcpus}", *CELLS[variant, behaviour], "-a", str(HERE / "spin" / "kick.pml")],
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


def compare(variant: str, behaviour: str, vcpus: int) -> bool:
    """Ask both in turn, print the medians and the ratio; whether the verdicts agree."""
    results: dict[str, list[tuple[float, float, str]]] = {"spin": [], "kickstand": []}
    for _ in range(ROUNDS):
        for name, ask in (("spin", spin), ("kickstand", kickstand)):
            with tempfile.TemporaryDirectory() as folder:
                results[name].append(ask(variant, behaviour, vcpus, folder))
    cpu = {name: statistics.median(run[0] for run in runs) for name, runs in results.items()}
    print(f"{variant}, {behaviour}, {vcpus} vCPUs")
    for name, runs in results.items():
        wall = statistics.median(run[1] for run in runs)
        spread = max(run[0] for run in runs) - min(run[0] for run in runs)
        said = runs[0][2].strip()
        print(f"  {name:10} {cpu[name]:7.2f} s CPU (spread {spread:.2f}) {wall:7.2f} s wall  {said} states")
    print(f"  kickstand needs {cpu['kickstand'] / cpu['spin']:.2f} of SPIN's CPU time", flush=True)
    return len({runs[0][2].split()[0] for runs in results.values()}) == 1


def main() -> int:
    """Compare every cell at every size; exit status 1 if two verdicts differ."""
    if not shutil.which("spin") or not shutil.which("cc"):
        print("needs spin and a C compiler (Debian: apt-get install spin gcc)")
        return 0
    agreed = [compare(*cell, vcpus) for vcpus in SIZES for cell in CELLS]
    print("the verdicts agree" if all(agreed) else "THE VERDICTS DIFFER")
    return int(not all(agreed))


if __name__ == "__main__":
    sys.exit(main())
