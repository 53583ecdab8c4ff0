"""A server, and command lines run in this process."""

from __future__ import annotations

import pytest

from kickstand.cli import app
from kickstand.commands.client.trouble import run
from kickstand.commands.demo import server


@pytest.fixture(scope="module")
def url():
    with server("--default-vm", "--vcpus", "2") as running:
        yield running


@pytest.fixture
def say(capfd, monkeypatch):
    """Run a command line in this process: exit status, standard output, standard error."""
    monkeypatch.setenv("COLUMNS", "80")

    def say(*arguments, url=None):
        if url is not None:
            monkeypatch.setenv("KICKSTAND_URL", url)
        status = run(app, [str(argument) for argument in arguments])
        return (status, *capfd.readouterr())

    return say
