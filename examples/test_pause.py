"""A suite for a VMM's pause and resume, with the fixtures that come with Kickstand: pytest examples/test_pause.py."""

import threading

import pytest


@pytest.fixture
def vm(kickstand_server):
    """Two vCPUs that never leave the guest by themselves."""
    client = kickstand_server.client
    for vcpu in range(2):
        client.set_program(vcpu, [["spin"]])
    return client


def test_pause_stops_every_vcpu_that_runs(vm):
    answers = {}

    def run(vcpu):
        answers[vcpu] = vm.run(vcpu)

    threads = [threading.Thread(target=run, args=(vcpu,)) for vcpu in range(2)]
    for thread in threads:
        thread.start()
    while {vm.vcpu(vcpu)["state"] for vcpu in range(2)} != {"guest"}:
        pass
    vm.kick()
    for thread in threads:
        thread.join(10)
    assert {answer["cause"] for answer in answers.values()} == {"userspace_kick"}


def test_nothing_runs_until_the_resume(vm):
    vm.kick()
    assert vm.run(0)["errno"] == "EINTR"
    vm.resume()
    assert vm.run(0, timeout_ms=10)["cause"] == "poll_timeout"  # it was in the guest
