"""What an operator sees: a log that other programs read, and a watchdog that names who holds what."""

import asyncio
import json
import logging

import pytest

from kickstand.api import context
from kickstand.api.edge import logs
from tests.api.live import until


def test_a_log_line_is_json_with_the_requests_id_and_no_line_ends_of_others():
    record = logging.LogRecord("kickstand.api", logging.WARNING, "", 0, "%s", ("a\nb",), None)
    record.fields = {"vm": "x"}
    token = logs.request_id.set("r-1")
    line = logs.JsonLines().format(record)
    logs.request_id.reset(token)
    assert "\n" not in line
    found = json.loads(line)
    assert (found["message"], found["request"], found["level"], found["vm"]) == ("a\nb", "r-1", "warning", "x")


async def test_a_call_that_waits_for_long_is_reported_with_who_holds_what(client, machine, vm, monkeypatch, caplog):
    monkeypatch.setattr(context, "SLOW_S", 0.0)
    run = machine.start_run(0)
    await until(lambda: machine.vcpu(0).watched.state.value == "guest", "the guest runs")
    waiting = asyncio.create_task(client.put(f"{vm}/vcpu/0/regs", json={"rax": 1}))
    await until(lambda: caplog.records, "the watchdog barks")
    fields = caplog.records[0].fields
    assert caplog.records[0].getMessage() == f"PUT {vm}/vcpu/0/regs has waited for 0 s"
    assert (fields["locks"]["readers"], list(fields["mutexes"]), fields["states"]) == ([0], [0], {0: "guest"})
    await machine.kick()
    await run.result()
    assert (await waiting).status_code == 200


@pytest.mark.parametrize("name", ["kickstand_ready", "kickstand_vm_drain_seconds_total", "kickstand_events_total"])
async def test_metrics_have_what_an_operator_watches(client, machine, name):
    text = (await client.get("/metrics")).text
    assert any(line.startswith(name) for line in text.splitlines())
