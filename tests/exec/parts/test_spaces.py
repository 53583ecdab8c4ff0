"""Whose memory a call is about, when the numbers of threads come again."""

import os
import subprocess
import sys

import pytest

from kickstand.exec.device import spaces as module
from kickstand.exec.device.spaces import Spaces


@pytest.fixture
def child():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("ended", [True, False])
def test_a_number_that_another_process_has_now_is_that_process(monkeypatch, child, ended):
    own, threads = module.tgid_of(child.pid), {7: child.pid}
    assert own == child.pid
    monkeypatch.setattr(module, "tgid_of", threads.__getitem__)
    spaces = Spaces()
    assert spaces.of(7).process.tgid == child.pid
    if ended:
        child.kill()
        child.wait()
    threads[7] = os.getpid()
    assert spaces.of(7).process.tgid == os.getpid()
    for space in spaces:
        space.process.close()


def test_what_a_process_leaves_behind_is_given_back(child):
    spaces = Spaces()
    there = spaces.of(child.pid)
    there.vms.add(vm := object())
    child.kill()
    child.wait()
    spaces.sweep()
    os.fstat(there.process.maps.descriptor)
    there.vms.remove(vm)
    own = spaces.of(os.getpid())
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(there.process.maps.descriptor)
    assert list(spaces) == [own]
    own.process.close()
