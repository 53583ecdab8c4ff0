"""Guest memory is the program's own, whatever it is, and follows what the program does with it."""

import sys

import pytest

from .conftest import PROGRAMS

SHARE, COPY = (), ("--memory", "copy", "--summary")
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("options", [SHARE, COPY], ids=["share", "copy"])
def test_every_kind_of_memory_in_c(emulated, on_device, compiled, options):
    program = compiled("memory")
    here, real = emulated(program, options=options), on_device(program)
    assert here.out.endswith("ok\n"), here.out
    assert here.status == 0
    assert real is None or real.out == here.out
    assert ("are copied before and after every KVM_RUN" in here.err) == (options == COPY)


@pytest.mark.parametrize("options", [SHARE, COPY], ids=["share", "copy"])
def test_every_kind_of_memory_in_python(emulated, on_device, options):
    program = sys.executable, PROGRAMS / "memory.py"
    here, real = emulated(*program, options=options), on_device(*program)
    assert here.out == (
        "private [True, True] 7\ndiscarded 0\nagain [True, True] 2\nshared [True, True] 9\n"
        "private file [True, True] 11\nshared file [True, True] 11\nthe file holds 11\n"
        "the end of a GiB [True, True] 13\nafter a fork 21\n"
    ), here.err
    assert real is None or real.out == here.out


def test_memory_is_shared_while_other_threads_start_processes(emulated):
    here = emulated(sys.executable, PROGRAMS / "spawn.py")
    assert (here.status, here.out) == (0, "done\n"), here.err


def test_no_store_is_lost_while_much_memory_is_shared(emulated):
    here = emulated(sys.executable, PROGRAMS / "stores.py", options=("--summary",))
    assert (here.status, here.out) == (0, "lost 0\n"), here.err
    assert "are copied before" not in here.err
