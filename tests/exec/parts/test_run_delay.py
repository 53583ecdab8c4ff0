"""How long a program's thread has waited for a CPU: looked at once in a KVM_RUN."""

import pytest

from kickstand.exec.host.process import RunDelay


@pytest.fixture
def looks(monkeypatch):
    """The threads that were looked at."""
    seen = []
    monkeypatch.setattr("kickstand.exec.host.process.run_delay_ns", lambda tid: seen.append(tid) or 1000 * len(seen))
    return seen


def test_it_is_looked_at_once_and_only_if_somebody_asks(looks):
    delay = RunDelay()
    delay.begin(7)
    assert looks == []
    assert [delay(), delay()] == [1000, 1000]
    assert looks == [7]


def test_the_next_kvm_run_is_looked_at_anew(looks):
    delay = RunDelay()
    delay.begin(7)
    delay()
    delay.begin(8)
    assert delay() == 2000
    assert looks == [7, 8]
