"""What a machine has for ``kickstand exec`` is what exec itself finds."""

import subprocess
import sys

import pytest

from kickstand.exec import checks
from kickstand.exec.host import launch, maps


def test_every_need_has_a_name_and_a_meaning():
    found = checks.checks()
    assert found[0].needed
    assert all(check.name and check.meaning for check in found)
    assert len({check.name for check in found}) == len(found)


def test_a_machine_that_cannot_run_programs_says_why(monkeypatch):
    monkeypatch.setattr(checks, "unusable", lambda: "the kernel is too old")
    (only,) = checks.checks()
    assert (only.there, only.meaning) == (False, "the kernel is too old")


@pytest.fixture
def still():
    """A process whose memory does not change."""
    command = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield process.pid
        process.kill()


@pytest.mark.skipif(bool(launch.unusable()), reason=launch.unusable())
def test_maps_are_read_the_same_with_and_without_queries(monkeypatch, still):
    mine = maps.Maps(still)
    parsed = list(mine.all())
    monkeypatch.setattr(maps, "can_query", lambda: True)
    for area in parsed:
        if area.name == "[vsyscall]":
            continue
        found = mine.find(area.start)
        assert (found.start, found.end, found.access, found.key) == (area.start, area.end, area.access, area.key)
    mine.close()
