"""Calls of a C program under ``kickstand exec``: what it waits for, and what the same call costs on a real device."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import Ratio, at_most, judged, measured, report, skipped

PROGRAM = Path(__file__).parents[1] / "tests/exec/programs/calls.c"
FLOOR = Path(__file__).with_name("peers") / "exec_floor.c"
CALLS, ROUNDS = "300", 5
GOALS = {"api_version": 12, "out_exit": 40, "mmio_read": 80}  # us, on a machine that does nothing else
FLOOR_US = 3.5  # on such a machine: on another, the goals are as many times what it costs there
NAMES = {
    "api_version": "exec: GET_API_VERSION",
    "get_regs": "exec: GET_REGS",
    "set_regs": "exec: SET_REGS",
    "get_sregs": "exec: GET_SREGS",
    "set_sregs": "exec: SET_SREGS",
    "out_exit": "exec: KVM_RUN to an OUT",
    "mmio_read": "exec: KVM_RUN to an MMIO read",
    "slot_pair": "exec: CREATE and DELETE of a slot",
    "other_ioctl": "exec: ioctl of another driver",
    "other_open": "exec: open and close of another file",
}
CACHE = tempfile.TemporaryDirectory(prefix="pycache-")


def figures(command: list[str]) -> dict[str, float]:
    """Run the program once: microseconds a call by name."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment = {**kept, "PYTHONPYCACHEPREFIX": CACHE.name}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    return {name: float(figure) for name, figure in (line.split() for line in done.stdout.splitlines())}


def under_exec(*command: str, mode: str = "precise") -> list[str]:
    """The same command under the supervisor."""
    return [sys.executable, "-m", "kickstand", "exec", "--mode", mode, "--", *command]


def calls(program: str, floor: str) -> list[Ratio]:
    """Every call, against the least that it can cost, and the registers against each other."""
    device = os.access("/dev/kvm", os.R_OK | os.W_OK)
    floors, rounds, fast = [], [], []
    for _ in range(ROUNDS):
        floors.append(figures([floor, "3000"])["floor"])
        rounds.append(figures(under_exec(program, CALLS)))
        fast.append(figures(under_exec(program, CALLS, mode="fast"))["out_exit"])
    real = [figures([program, CALLS]) for _ in range(ROUNDS)] if device else []
    bare = [round_["other_ioctl"] for round_ in real]
    rows = [
        measured(NAMES[name], [one[name] for one in rounds], "us",
                 note=f"{min(one[name] for one in real):.2f} us on the device" if real else "")
        for name in NAMES
    ]  # fmt: skip
    for name, goal in GOALS.items():
        ratios = [one[name] / least for one, least in zip(rounds, floors, strict=True)]
        rows.append(judged(NAMES[name], "a supervisor in C", ratios, at_most(round(goal / FLOOR_US, 1))))
    for verb in ("get", "set"):
        ratios = [one[f"{verb}_sregs"] / one[f"{verb}_regs"] for one in rounds]
        rows.append(judged(f"exec: {verb.upper()}_SREGS", f"{verb.upper()}_REGS", ratios, at_most(2)))
    if bare:
        ratios = [one["other_ioctl"] / native for one, native in zip(rounds, bare, strict=True)]
        rows.append(judged("exec: ioctl of another driver", "without exec", ratios, at_most(1.5)))
    ratios = [one / least for one, least in zip(fast, floors, strict=True)]
    rows.append(judged("exec: KVM_RUN to an OUT, fast", "a supervisor in C", ratios, at_most(round(40 / FLOOR_US, 1))))
    return rows


def starting() -> Ratio:
    """What ``exec -- true`` takes longer than ``true``: CPU time of both processes."""
    figures(under_exec("true"))
    times = []
    for _ in range(ROUNDS):
        begun = os.times()
        figures(under_exec("true"))
        between = os.times()
        figures(["true"])
        ended = os.times()
        ours = between.children_user + between.children_system - begun.children_user - begun.children_system
        theirs = ended.children_user + ended.children_system - between.children_user - between.children_system
        times.append((ours - theirs) * 1e3)
    return measured("exec: start of /bin/true", times, "ms", at_most(80), against="without exec")


def main() -> list[Ratio]:
    compiler = shutil.which("cc")
    if compiler is None:
        return [starting(), skipped("exec: calls of a C program", "no C compiler (cc)")]
    with tempfile.TemporaryDirectory() as folder:
        made = [f"{folder}/calls", f"{folder}/floor"]
        for target, source in zip(made, (PROGRAM, FLOOR), strict=True):
            subprocess.run([compiler, "-O1", "-o", target, source, "-lpthread"], check=True)
        return [starting(), *calls(*made)]


if __name__ == "__main__":
    report(main())
