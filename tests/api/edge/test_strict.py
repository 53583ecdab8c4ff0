"""Types at the edge are not bent, numbers have an end, and both are said as problems."""

import pytest

from tests.api.live import assert_problem

HUGE = 10**4200


@pytest.mark.parametrize(
    "body",
    [
        *({"switches": {"rwsem_steal": value}} for value in (1, 0, None, [1], 0.5, {}, "\ud800", "true")),
        {"switches": {"exit_test": "never"}},
        {"switches": []},
        {"irqchip": 1},
        {"irqchip": "yes"},
        {"vcpus": True},
        {"vcpus": "2"},
        {"vcpus": 2.0},
        {"seed": -1},
        {"seed": 1 << 64},
        {"id": "\ud800"},
        {"programs": {"0": [["hlt"]], "x": []}},
    ],
)
async def test_a_vm_of_bent_types_is_refused(client, server, body):
    before = set(server.registry.machines)
    import json

    headers = {"Content-Type": "application/json"}
    assert_problem(await client.post("/vms", content=json.dumps(body), headers=headers), 422, "EINVAL")
    assert set(server.registry.machines) == before


@pytest.mark.parametrize("digits", [18, 4_301])
@pytest.mark.parametrize("path", ["", "/run", "/regs", "/signal"])
async def test_a_vcpu_of_many_digits_is_a_problem(client, vm, path, digits):
    method = "POST" if path in ("/run", "/signal") else "GET"
    answer = await client.request(method, f"{vm}/vcpu/{'7' * digits}{path}")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.status_code in (404, 422)


@pytest.mark.parametrize("timeout", [HUGE, -1, True, "5", 1.5, 1 << 31])
async def test_a_timeout_is_a_number_of_milliseconds_with_an_end(client, vm, timeout):
    assert_problem(await client.post(f"{vm}/kick", json={"timeout_ms": timeout}), 422, "EINVAL")


async def test_registers_hold_what_they_can_in_scripts_too(client, vm):
    for changes in ({"cs": 5}, {"cr0": {"base": 1}}, {"cs": {"type": 1 << 40}}, {"interrupt_bitmap": [1] * 4 + [1]}):
        script = [{"op": "set_sregs", "args": {"vcpu": 0, "changes": changes}}]
        answer = await client.post(f"{vm}/script", json=script)
        refused = answer.status_code == 422 or answer.json()["results"][0]["errno"] == "EINVAL"
        assert refused, (changes, answer.text)
    assert (await client.get(f"{vm}/vcpu/0/sregs")).status_code == 200
