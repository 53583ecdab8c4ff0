"""However the program, its supervisor or a thread ends: the other side ends too, clearly, and nothing is left."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .conftest import PROGRAMS

pytestmark = pytest.mark.slow


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pid, seconds=5):
    for _ in range(int(seconds * 100)):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                time.sleep(0.01)
                continue
        return True
    return False


@pytest.fixture
def spinning(emulated):
    """A supervisor whose program is inside KVM_RUN: the process, and the program's pid."""
    command = [sys.executable, "-m", "kickstand", "exec", "--", sys.executable, PROGRAMS / "spin.py"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "entering\n"
    time.sleep(0.1)
    (program,) = children(process.pid)
    yield process, program
    process.kill()
    process.communicate()
    with contextlib.suppress(ProcessLookupError):
        os.kill(program, signal.SIGKILL)


def test_a_killed_program_ends_the_supervisor_with_its_status(spinning):
    process, program = spinning
    os.kill(program, signal.SIGKILL)
    assert process.wait(5) == -signal.SIGKILL
    assert process.stderr.read() == ""


def test_a_killed_vcpu_thread_takes_its_program_along(compiled):
    command = [sys.executable, "-m", "kickstand", "exec", "--", compiled("merge"), "1000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        threads = vcpu_threads(process.pid)
        ctypes.CDLL(None).tgkill(threads[0], threads[-1], signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
        assert process.stderr.read() == ""
    assert all(map(gone, threads))


def vcpu_threads(supervisor):
    """The program's threads, once all of them are there."""
    for _ in range(1000):
        for program in children(supervisor):
            with contextlib.suppress(OSError):
                threads = sorted(int(task.name) for task in Path(f"/proc/{program}/task").iterdir())
                if len(threads) == 3:
                    return threads
        time.sleep(0.01)
    raise AssertionError("the program never had its threads")


def test_a_killed_supervisor_takes_the_program_along(spinning):
    process, program = spinning
    process.kill()
    process.wait(5)
    assert gone(program)


def test_sigterm_reaches_the_program(spinning):
    process, program = spinning
    process.terminate()
    assert process.wait(5) == -signal.SIGTERM
    assert gone(program)


def test_a_stopped_program_goes_on_where_it_was(spinning):
    process, program = spinning
    os.kill(program, signal.SIGSTOP)
    os.kill(program, signal.SIGCONT)
    # KVM_RUN answers EINTR to a stop, as to every signal, and the program issues it again.
    time.sleep(0.1)
    assert process.poll() is None
    assert not gone(program, 0.1)


def test_the_supervisor_outlives_a_program_that_left_a_vm_to_a_child(emulated):
    script = (
        "import os, sys, time; sys.path.insert(0, sys.argv[1]); import kvm\n"
        "vm = kvm.Vm(); read, write = os.pipe()\n"
        "if os.fork():\n os._exit(3)\n"
        "time.sleep(0.3); os.write(1, b'%d' % kvm.fcntl.ioctl(kvm.kvm, 0xAE00, 0))"
    )
    here = emulated(sys.executable, "-c", script, str(PROGRAMS))
    assert (here.status, here.out) == (3, "12"), here.err


def test_ten_thousand_random_ioctls_harm_nobody(emulated):
    program = sys.executable, PROGRAMS / "fuzz.py", 10_000, 20261130
    here = emulated(*program, options=("--variant", "sticky"))
    assert (here.status, here.out) == (0, "survived\n"), here.err
    assert here.err == ""


COUNTING = """
import gc, sys, weakref
from kickstand.commands.program import run
from kickstand.runtime.machine import Machine
there = weakref.WeakSet()
make = Machine.__init__
def counted(machine, *args, **options):
    make(machine, *args, **options)
    gc.collect()
    there.add(machine)
    print(len(there), file=sys.stderr)
Machine.__init__ = counted
sys.exit(run(sys.argv[1:]))
"""
MAKING = """
import os
from kvm import Vcpu, Vm
for _ in range(20):
    vm = Vm()
    vcpus = [Vcpu(vm, number) for number in range(2)]
    for one in (vm, *vcpus):
        os.close(one.fd)
    for vcpu in vcpus:
        vcpu.page.close()
"""


def test_nothing_stays_of_vms_that_a_program_has_closed(emulated):
    command = [sys.executable, "-c", COUNTING, "--", sys.executable, "-c", MAKING]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PROGRAMS), *sys.path])}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    counts = [int(line) for line in ended.stderr.split()]
    assert len(counts) == 20
    assert max(counts) <= 6  # one that is made, and those whose end is under way
