"""KVM_RUN as a long poll: who ends it, what it answers, and that nothing stays behind."""

import asyncio
import json
import re

import pytest
import pytest_asyncio

from kickstand.core.trace import VcpuState
from kickstand.main import _raise_file_limit
from tests.api.live import assert_problem, live, until


def in_guest(machine, vcpu=0):
    return lambda: machine.vm.vcpus[vcpu].watched.state is VcpuState.GUEST


def at_rest(machine):
    return lambda: (
        not machine.runs
        and all(vcpu.mutex.owner is None and vcpu.watched.state is VcpuState.USER for vcpu in machine.vm.vcpus.values())
    )


async def parked(client, machine, path, vcpu=0, **options):
    task = asyncio.create_task(client.post(path, **options))
    await until(in_guest(machine, vcpu), "the run parks")
    return task


async def test_a_poll_that_takes_too_long_answers_eintr_with_poll_timeout(client, vm):
    answer = await client.post(f"{vm}/vcpu/0/run", json={"timeout_ms": 5})
    assert answer.status_code == 200
    assert (answer.json()["errno"], answer.json()["cause"]) == ("EINTR", "poll_timeout")


async def test_immediate_exit_answers_eintr_without_entering_the_guest(client, machine, vm):
    answer = (await client.post(f"{vm}/vcpu/0/run", json={"immediate_exit": True})).json()
    assert (answer["errno"], answer["cause"]) == ("EINTR", "immediate_exit")
    assert machine.vm.vcpus[0].watched.counters.entries == 0


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "application/json"}, {"Content-Type": "text/plain"}])
async def test_an_empty_body_is_an_ordinary_run_whatever_its_content_type(client, machine, vm, headers):
    task = await parked(client, machine, f"{vm}/vcpu/0/run", content=b"", headers=headers)
    await machine.signal(0)
    assert (await task).json()["cause"] == "signal"


async def test_a_longer_poll_than_the_limit_is_refused_by_the_field_name(client, vm):
    problem = assert_problem(await client.post(f"{vm}/vcpu/0/run", json={"timeout_ms": 60_001}), 422, "EINVAL")
    assert problem["errors"][0]["pointer"] == "/timeout_ms"
    assert problem["ioctl"] == "KVM_RUN"


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"reply": "0g"}, "/reply"),
        ({"timeout_ms": -1}, "/timeout_ms"),
        ({"nowait": "never"}, "/nowait"),
        ({"x": 1}, "/x"),
    ],
)
async def test_a_wrong_field_of_run_is_named(client, vm, body, pointer):
    problem = assert_problem(await client.post(f"{vm}/vcpu/0/run", json=body), 422, "EINVAL")
    assert problem["errors"][0]["pointer"] == pointer
    assert pointer[1:] in problem["errors"][0]["message"]


async def test_a_reply_that_nobody_waits_for_is_refused(client, vm):
    problem = assert_problem(await client.post(f"{vm}/vcpu/0/run", json={"reply": "00"}), 422, "EINVAL")
    assert problem["errors"][0]["pointer"] == "/reply"


async def test_a_reply_is_refused_while_another_run_is_inside_since_no_access_waits_then(client, machine, vm):
    task = await parked(client, machine, f"{vm}/vcpu/0/run")
    problem = assert_problem(await client.post(f"{vm}/vcpu/0/run", json={"reply": "00"}), 422, "EINVAL")
    assert problem["errors"][0]["pointer"] == "/reply"
    await machine.signal(0)
    await task
    assert machine.vm.vcpus[0].run_page.reply is None


async def test_nowait_answers_ebusy_while_another_run_is_inside(client, machine, vm):
    task = await parked(client, machine, f"{vm}/vcpu/0/run")
    problem = assert_problem(await client.post(f"{vm}/vcpu/0/run", json={"nowait": True}), 409, "EBUSY")
    assert problem["retryable"]
    assert problem["vcpu"] == 0
    await machine.signal(0)
    await task


async def test_a_second_run_waits_on_the_vcpu_mutex(client, machine, vm):
    first = await parked(client, machine, f"{vm}/vcpu/0/run")
    second = asyncio.create_task(client.post(f"{vm}/vcpu/0/run"))
    await until(lambda: len(machine.runs) == 2)
    await machine.signal(0)
    assert (await first).json()["cause"] == "signal"
    await until(in_guest(machine))
    await machine.signal(0)
    assert (await second).json()["cause"] == "signal"


async def test_a_client_that_goes_away_is_a_signal_and_nothing_stays_behind(server, machine, vm):
    await asyncio.sleep(0)
    before = len(asyncio.all_tasks())
    exits = machine.vm.vcpus[0].watched.counters.signal_exits
    _reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(f"POST {vm}/vcpu/0/run HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode())
    await until(in_guest(machine), "the run parks")
    writer.transport.abort()
    await until(at_rest(machine), "the run leaves")
    assert machine.vm.vcpus[0].watched.counters.signal_exits == exits + 1
    assert machine.vm.variant.memory_transaction.readers == 0
    await until(lambda: len(asyncio.all_tasks()) <= before, "every task ends")


async def test_a_departed_client_that_waited_for_the_mutex_leaves_the_run_inside_alone(server, client, machine, vm):
    first = await parked(client, machine, f"{vm}/vcpu/0/run")
    _reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(f"POST {vm}/vcpu/0/run HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode())
    await until(lambda: len(machine.runs) == 2)
    writer.transport.abort()
    await until(lambda: len(machine.runs) == 1)
    assert in_guest(machine)()
    assert not first.done()
    await machine.signal(0)
    await first


class Crowd:
    """Clients with a socket each, all parked in KVM_RUN of a vCPU of their own."""

    def __init__(self, vm, size):
        self.vm = vm
        self.size = size
        self.links = []

    async def park(self, server, machine):
        _raise_file_limit()
        for number in range(self.size):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            path = f"/vms/{self.vm}/vcpu/{number}/run"
            writer.write(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode())
            self.links.append((reader, writer))
        await until(lambda: all(v.watched.state is VcpuState.GUEST for v in machine.vm.vcpus.values()), "all park")

    async def answers(self):
        """What each was told."""
        async with asyncio.timeout(20):
            heads = [await reader.readuntil(b"\r\n\r\n") for reader, _ in self.links]
            assert all(head.startswith(b"HTTP/1.1 200") for head in heads)
            lengths = [int(re.search(rb"content-length: (\d+)", head)[1]) for head in heads]
            links = zip(self.links, lengths, strict=True)
            return [json.loads(await reader.readexactly(length)) for (reader, _), length in links]

    def abort(self):
        """All sockets at once."""
        for _, writer in self.links:
            writer.transport.abort()


@pytest_asyncio.fixture(loop_scope="session")
async def crowd(server):
    """A thousand clients parked in KVM_RUN, and their machine; in the end nothing of them is left in the server."""
    machine = await server.registry.create("crowd", vcpus=1_000)
    tasks, connections = len(asyncio.all_tasks()), len(server.server.server_state.connections)
    here = Crowd("crowd", 1_000)
    await here.park(server, machine)
    yield here, machine
    here.abort()
    await until(lambda: len(server.server.server_state.connections) <= connections, "every connection ends")
    await until(lambda: len(asyncio.all_tasks()) <= tasks + 1, "every task ends")
    assert at_rest(machine)()
    assert machine.vm.variant.memory_transaction.readers == 0
    assert not any(vcpu.task.signal for vcpu in machine.vm.vcpus.values())
    await server.registry.destroy("crowd")


@pytest.mark.slow
async def test_a_thousand_clients_parked_in_kvm_run_are_answered_by_one_kick(client, crowd):
    clients, _ = crowd
    kick = (await client.post("/vms/crowd/kick")).json()
    answers = await clients.answers()
    assert kick["vcpus_stopped"] == 1_000
    assert {(a["errno"], a["cause"], a["kick_id"]) for a in answers} == {("EINTR", "userspace_kick", kick["kick_id"])}


@pytest.mark.slow
async def test_a_thousand_clients_that_vanish_at_once_leave_nothing_behind(client, crowd):
    clients, machine = crowd
    assert machine.vm.variant.memory_transaction.readers == 1_000
    clients.abort()
    await until(at_rest(machine), "all leave")
    kick = (await client.post("/vms/crowd/kick")).json()
    assert kick["vcpus_stopped"] == 0


async def test_destroying_the_vm_ends_parked_runs_with_eio(client, machine, vm):
    task = await parked(client, machine, f"{vm}/vcpu/0/run")
    assert (await client.delete(vm)).status_code == 204
    assert_problem(await task, 410, "EIO")


async def test_a_kick_that_times_out_names_the_vcpus_that_are_still_inside(client, machine, vm):
    semaphore = machine.vm.variant.memory_transaction
    stuck = machine.thread("stuck")
    await machine.call(semaphore.down_read(stuck))
    machine.vm.vcpus[1].watched.state = VcpuState.KERNEL
    try:
        problem = assert_problem(await client.post(f"{vm}/kick", json={"timeout_ms": 5}), 504, "ETIMEDOUT")
    finally:
        machine.vm.vcpus[1].watched.state = VcpuState.USER
        await machine.call(semaphore.up_read())
    assert problem["vcpus"] == [1]
    assert problem["retryable"]
    assert problem["ioctl"] == "KVM_KICK_ALL_RUNNING_VCPUS"


async def test_a_client_that_gives_up_a_kick_leaves_the_queue(server, machine, vm):
    semaphore = machine.vm.variant.memory_transaction
    await machine.call(semaphore.down_read(machine.thread("stuck")))
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(f"POST {vm}/kick HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode())
    await until(lambda: semaphore.queue, "the kick waits")
    writer.transport.abort()
    await until(lambda: not semaphore.queue, "the kick gives up")
    await machine.call(semaphore.up_read())


@pytest.mark.parametrize("path", ["{vm}/vcpu/0/run", "/vms/restore", "{vm}/kick"])
async def test_a_client_that_goes_away_before_its_body_is_there_is_no_error(server, machine, vm, caplog, path):
    tasks = server.server.server_state.tasks
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(f"POST {path.format(vm=vm)} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n".encode())
    await until(lambda: tasks, "the request is looked at")
    writer.transport.abort()
    await until(lambda: not tasks, "it ends")
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    assert at_rest(machine)()


@pytest.mark.slow
async def test_more_parked_runs_than_the_limit_are_refused_and_retryable():
    from kickstand.settings import Limits

    async with live(limits=Limits(parked_runs=1)) as server, server.client() as client:
        machine = server.registry.get("default")
        task = await parked(client, machine, "/vcpu/0/run")
        refused = await client.post("/vcpu/1/run")
        problem = assert_problem(refused, 503, "EAGAIN")
        assert problem["retryable"]
        assert refused.headers["retry-after"] == "1"
        assert "parked_runs" in problem["detail"]
        await machine.signal(0)
        await task
