"""There is one driver: what runs KVM_RUN and VMM threads in the server is what confirms a counterexample."""

import asyncio

import pytest

from kickstand.explore.matrix import explore, replay_token
from kickstand.runtime.driver.tasks import Performance
from kickstand.runtime.registry import Registry

pytestmark = pytest.mark.slow


class DriverError(Exception):
    """The driver was asked."""


@pytest.fixture
def broken_driver(monkeypatch):
    async def refuses(self):
        self._core.close()
        raise DriverError

    return lambda: monkeypatch.setattr(Performance, "to_end", refuses)


async def test_a_run_a_vmm_thread_and_a_kick_are_performed_by_it(broken_driver):
    registry = Registry()
    machine = await registry.create("vm", vcpus=2, programs=[[["out", 1, 1]], [["spin"]]])
    broken_driver()
    with pytest.raises(DriverError):
        await machine.run(0)
    with pytest.raises(DriverError):
        await machine.kick()
    await machine.start_thread(1)
    with pytest.raises(DriverError):
        await machine.threads[1].task
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_a_counterexample_is_confirmed_by_it(broken_driver):
    (verdict,) = explore("merge", "sticky", "careless", properties=["lost_exit"])
    token = verdict.counterexample.token
    replay_token(token)
    broken_driver()
    with pytest.raises((DriverError, AssertionError)):
        replay_token(token)
