"""What every test shares: reproducible properties, and real-KVM tests only where there is one."""

import os

import pytest
from hypothesis import settings

from tests.stepper import Thread

# The same examples on every machine, and no deadline on a shared one.
settings.register_profile("kickstand", derandomize=True, deadline=None)
settings.load_profile("kickstand")


def pytest_collection_modifyitems(items):
    if os.access("/dev/kvm", os.R_OK | os.W_OK):
        return
    for item in items:
        if item.get_closest_marker("kvm"):
            item.add_marker(pytest.mark.skip(reason="no usable /dev/kvm"))


@pytest.fixture(autouse=True)
def _no_thread_left():
    """Threads that a test steps by hand do not outlive it."""
    yield
    Thread.kill_all()
