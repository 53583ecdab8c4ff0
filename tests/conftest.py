"""What every test shares: reproducible properties, and real-KVM tests only where there is one."""

import fcntl
import os
from collections import Counter

import pytest
from hypothesis import settings

from kickstand.core import variants
from tests.stepper import Thread

# The same examples on every machine, and no deadline on a shared one.
settings.register_profile("kickstand", derandomize=True, deadline=None)
settings.load_profile("kickstand")


LONG = 100  # a slow test takes about as long as so many others


def pytest_collection_modifyitems(items):
    # Files with much to do come first (a file stays on one worker): none is begun when the others are done.
    work = Counter()
    for item in items:
        work[item.path] += LONG if item.get_closest_marker("slow") else 1
    items.sort(key=lambda item: -work[item.path])
    if os.access("/dev/kvm", os.R_OK | os.W_OK):
        return
    for item in items:
        if item.get_closest_marker("kvm"):
            item.add_marker(pytest.mark.skip(reason="no usable /dev/kvm"))


@pytest.fixture(scope="session")
def _gate_and_room(tmp_path_factory):
    """Two files that the workers of one run share; None where there is no other."""
    if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) < 2:
        return None
    folder = tmp_path_factory.getbasetemp().parent
    return folder / "gate", folder / "room"


@pytest.fixture(autouse=True)
def _turn(request, _gate_and_room):
    """Tests run side by side, but one that is marked ``alone`` has the machine for itself."""
    if _gate_and_room is None:
        yield
        return
    how = fcntl.LOCK_EX if request.node.get_closest_marker("alone") else fcntl.LOCK_SH
    gate, room = (path.open("w") for path in _gate_and_room)
    with gate, room:
        fcntl.flock(gate, fcntl.LOCK_EX)  # whoever waits for the room keeps the gate, so that nobody overtakes
        fcntl.flock(room, how)
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield


@pytest.fixture(autouse=True)
def _no_thread_left():
    """Threads that a test steps by hand do not outlive it."""
    yield
    Thread.kill_all()


@pytest.fixture(autouse=True)
def _no_variant_left(monkeypatch):
    """What a test loads with ``--variant-module`` is not known to the next one."""
    monkeypatch.setattr(variants, "_own", {})
