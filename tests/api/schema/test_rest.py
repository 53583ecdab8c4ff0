"""Threads that run while somebody watches rest for nobody, and after a minute of spinning; they go on by themselves."""

import pytest

from kickstand.api import rest
from tests.api.live import events, until

EXAMPLE = {"behaviour": "careless", "while_watched": True}


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    for name, seconds in (("LOOK_S", 0.005), ("QUIET_S", 0.05), ("KICKED_S", 0.05)):
        monkeypatch.setattr(rest, name, seconds)


def running(machine):
    return sum(thread.running for thread in machine.threads.values())


async def start(client, vm, **body):
    for vcpu in range(2):
        assert (await client.post(f"{vm}/vcpu/{vcpu}/start", json=body)).status_code == 200


async def test_an_example_rests_when_nobody_watches_and_goes_on_when_somebody_does(client, machine, vm):
    await start(client, vm, **EXAMPLE)
    await until(lambda: not running(machine), "a rest")
    async with events(client, f"{vm}/events") as stream:
        await stream.until("vmm_rest", phase="end")
        assert running(machine) == 2
    await until(lambda: not running(machine), "another rest")


async def test_a_thread_that_was_started_for_good_runs_for_nobody(client, machine, vm):
    await start(client, vm, **EXAMPLE)
    await client.post(f"{vm}/vcpu/0/stop")
    await client.post(f"{vm}/vcpu/0/start", json={"behaviour": "careless"})
    await until(lambda: running(machine) == 1, "a rest of the other")
    assert machine.threads[0].running


async def test_an_example_that_spins_under_a_kick_rests_until_the_resume(client, machine, vm):
    async with events(client, f"{vm}/events") as stream:
        await start(client, vm, **EXAMPLE)
        await client.post(f"{vm}/kick")
        told = (await stream.until("vmm_rest", phase="begin"))[-1]
        assert told["data"]["why"] == "kicked for a minute"
        assert not running(machine)
        await client.post(f"{vm}/resume")
        await stream.until("vmm_rest", phase="end")
        assert running(machine) == 2


async def test_who_waits_for_the_resume_need_not_rest_under_a_kick(client, machine, vm):
    async with events(client, f"{vm}/events"):
        await start(client, vm, behaviour="well", while_watched=True)
        await client.post(f"{vm}/kick")
        watched = rest._Watched(machine, {0: ("well", True)})
        looker = client_of(machine)
        assert looker._reason(watched, 1e9) == looker._reason(watched, 2e9) == ""
        await client.post(f"{vm}/resume")


def client_of(machine):
    class Hub:
        streams = 1

    looker = rest.WhileWatched(None, Hub())
    looker._seen_at = 2e9
    return looker


async def test_nothing_is_left_of_a_vm_that_is_gone(server, client, machine, vm):
    await start(client, vm, **EXAMPLE)
    await client.delete(vm)
    watch = server.context.while_watched
    await until(lambda: not watch._watched, "forgetting")
