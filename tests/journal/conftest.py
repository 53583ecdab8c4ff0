"""Servers on a state directory, and what a crash leaves of one."""

import shutil

import pytest

from tests.api.live import live


@pytest.fixture
def state(tmp_path):
    """Where a server keeps its state."""
    return tmp_path / "state"


@pytest.fixture
def serve(state):
    """Serve on a state directory, by default on ``state``."""
    return lambda directory=None, **settings: live(ephemeral=False, state_dir=directory or state, **settings)


@pytest.fixture
def crash(state, tmp_path):
    """What a kill -9 would leave at this moment, as a directory of its own."""
    numbers = iter(range(100))

    def crashed():
        return shutil.copytree(state, tmp_path / f"crashed-{next(numbers)}")

    return crashed
