"""Unmodified programs: each does the same on the emulator as on a real device."""

import re
import sys
from pathlib import Path

import pytest

from .conftest import PROGRAMS

pytestmark = pytest.mark.slow
FIRST = """version 12
io out port 10 size 1 count 1 data 5
mmio read 8000 len 1
io in port 20 size 1 count 1
hlt rip 1013, memory 5 77 5a, if 0
"""


@pytest.fixture(params=[(), ("-static",)], ids=["dynamic", "static"])
def first(request, compiled):
    return compiled("first", *request.param)


@pytest.mark.parametrize("mode", ["precise", "fast"])
def test_a_program_in_c_adds_prints_and_reads_a_device(emulated, on_device, first, mode):
    here, real = emulated(first, options=("--mode", mode)), on_device(first)
    assert (here.out, here.status) == (FIRST, 0), here.err
    assert real is None or real.out == here.out


def test_a_program_in_python_does_the_same(emulated, on_device):
    program = sys.executable, PROGRAMS / "first.py"
    here, real = emulated(*program), on_device(*program)
    assert (here.out, here.status) == (FIRST, 0), here.err
    assert real is None or real.out == here.out


@pytest.mark.parametrize("mode", ["real", "protected", "paged", "long"])
def test_guests_of_every_mode_greet(emulated, on_device, compiled, mode):
    program = compiled("modes")
    here, real = emulated(program, mode), on_device(program, mode)
    assert here.out == f"Hello from {mode} mode\nexit 5 at 100c, rax 42, memory 42\n", here.err
    # A device that emulates its pages in software may not know those of 32 bits.
    assert real is None or real.out == here.out or (mode == "paged" and "exit 8" in real.out)


@pytest.mark.parametrize(("script", "status"), [("exit 7", 7), ("kill -9 $$", -9), ("true", 0)])
def test_the_exit_status_is_the_programs(emulated, script, status):
    assert emulated("sh", "-c", script).status == status


def test_a_program_that_is_not_there_is_125(emulated):
    here = emulated("no-such-program")
    assert here.status == 125
    assert "no-such-program: no such program" in here.err


@pytest.mark.parametrize(("place", "said"), [("folder", "Is a directory"), ("full", "No space left on device")])
def test_a_summary_that_cannot_be_written_is_125(emulated, tmp_path, place, said):
    path = tmp_path if place == "folder" else Path("/dev/full")
    if not path.exists():
        pytest.skip("no /dev/full")
    here = emulated("/bin/true", options=("--summary-json", path))
    assert here.status == 125
    assert here.err.startswith("kickstand exec: ")
    assert said in here.err


def test_a_file_that_is_no_program_is_125(emulated, tmp_path):
    nothing = tmp_path / "nothing"
    nothing.write_bytes(b"\x7fELF" + bytes(100))
    nothing.chmod(0o755)
    here = emulated(nothing)
    assert here.status == 125
    assert "32-bit" in here.err


def test_an_unknown_variant_is_125_and_named(emulated):
    here = emulated("true", options=("--variant", "nonsense"))
    assert here.status == 125
    assert "nonsense" in here.err


def test_the_summary_counts_ioctls_and_exits(emulated):
    here = emulated(sys.executable, PROGRAMS / "first.py", options=("--summary",))
    assert here.out == FIRST
    assert re.search(r"^ +4  KVM_RUN$", here.err, re.MULTILINE), here.err
    assert "KVM_EXIT_MMIO" in here.err
