"""SPIN, with a model of its own that was written by hand, gives the same verdicts."""

from __future__ import annotations

import re
import shutil
import subprocess
from itertools import product
from pathlib import Path

import pytest

from tests.explore.cells import decided
from tests.long import either

MODEL = Path(__file__).parents[3] / "benchmarks" / "peers" / "kick.pml"
VARIANTS = {
    "sticky": (),
    "clear_on_exit": ("CLEAR",),
    "check_not_test": ("CHECK",),
    "clear_before_up_write": ("BEFORE",),
    "clear_after_up_write": ("AFTER",),
    "none": ("NONE",),
}
BEHAVIOURS = {"well": (), "careless": ("CARELESS",)}
PROPERTIES = {"missing_slot": (), "lost_exit": ("LOST",), "closed_window": ("CLOSED",), "deadlock": ("DEADLOCK",)}
EVERY = list(product(VARIANTS, BEHAVIOURS, PROPERTIES))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("spin") and shutil.which("cc")), reason="needs spin and a C compiler"),
]


def spin(folder, *defined, vcpus):
    """Its verdict: an assertion fails, or (``DEADLOCK``) there is an invalid end state."""
    flags = [f"-D{name}" for name in defined]
    how = ["-m1000000"] if "DEADLOCK" in defined else ["-m1000000", "-E"]
    output = ""
    for command in (
        ["spin", f"-DN={vcpus}", *flags, "-a", str(MODEL)],
        ["cc", "-O1", "-DSAFETY", "-DVECTORSZ=1024", "-o", "pan", "pan.c"],
        ["./pan", *how],
    ):
        output = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    errors = re.search(r"errors: (\d+)", output)
    assert errors, output
    return "violated" if int(errors[1]) else "holds"


@pytest.mark.parametrize(("variant", "behaviour", "name"), either(EVERY[:: len(PROPERTIES) + 1], EVERY))
def test_spin_says_the_same(variant, behaviour, name, tmp_path):
    defined = (*VARIANTS[variant], *BEHAVIOURS[behaviour], *PROPERTIES[name])
    assert decided("merge", variant, behaviour, 2)[name].verdict == spin(tmp_path, *defined, vcpus=2)
