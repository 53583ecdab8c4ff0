"""Threads stepped by hand do not outlive their test."""

import pytest

from .stepper import Thread


@pytest.fixture(autouse=True)
def _no_thread_left():
    yield
    Thread.kill_all()
