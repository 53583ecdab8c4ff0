"""Every target of `make fuzz` takes a few seeds here, so that it works when it is wanted; and a fault is found."""

import pytest

from kickstand.scripts.language import structures
from tests.fuzz import ioctls, targets
from tests.fuzz.__main__ import once

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("target", targets.TARGETS)
def test_a_target_takes_its_seeds(target, capsys):
    assert all(once(target, seed) for seed in range(3)), capsys.readouterr().out


def test_a_fault_is_found_and_told_with_its_seed(monkeypatch, capsys):
    def forgetful(code, bits):
        return code[40]

    monkeypatch.setattr(targets, "decode", forgetful)
    assert not once("decoder", 7)
    assert "python -m tests.fuzz --target decoder --seed 7" in capsys.readouterr().out


def test_a_loop_that_is_held_and_an_ioctl_that_breaks_are_found(monkeypatch, capsys):
    monkeypatch.setattr(ioctls, "LONGEST_S", 0)
    assert not once("ioctls", 7)
    assert "the loop was held" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.setattr(structures, "answer", lambda *_: 1 / 0)
    assert not once("ioctls", 7)
    assert "internal error" in capsys.readouterr().out
