"""Every failure is application/problem+json, whatever layer it comes from."""

import asyncio
import errno
import json
import re

import pytest

from kickstand.api.edge.problems import STATUS, pointer
from kickstand.core.errors import KvmError, errno_name
from kickstand.main import create_app
from kickstand.settings import Limits, Settings
from tests.api.live import assert_problem, live

SCHEMA = create_app(Settings()).openapi()
ROUTES = sorted(SCHEMA["paths"])
METHODS = {path: SCHEMA["paths"][item.get("x-alias-of", path)] for path, item in SCHEMA["paths"].items()}
BODIES = sorted(
    (method.upper(), path)
    for path, methods in METHODS.items()
    for method, operation in methods.items()
    if "application/json" in operation.get("requestBody", {}).get("content", {})
)
LISTS = ("/program", "/script")  # bodies that are lists have no fields


def concrete(path):
    """A path with parameters that exist."""
    values = {
        "vm": "default", "id": "0", "slot": "0", "userspace_addr": "0x7f0000000000", "exploration": "x1",
        "chip": "ioapic", "errno": "einval",
    }  # fmt: skip
    return re.sub(r"\{(\w+)\}", lambda match: values[match[1]], path)


@pytest.mark.parametrize("path", ROUTES)
async def test_a_method_that_a_path_does_not_take_is_405_and_says_which_it_takes(client, path):
    response = await client.request("PATCH", concrete(path))
    assert_problem(response, 405, "ENOTTY")
    taken = {method.upper() for method in METHODS[path]}
    if path == "/vms/restore":  # which is the path of a VM of that name too
        taken |= {"GET", "DELETE"}
    taken |= {"HEAD"} & {"HEAD" if "GET" in taken else ""}
    assert set(response.headers["allow"].split(", ")) == taken


@pytest.mark.parametrize("path", ROUTES)
async def test_a_foreign_host_is_refused_everywhere(client, path):
    assert_problem(await client.get(concrete(path), headers={"Host": "evil.example"}), 403, "EACCES")


@pytest.mark.parametrize(("method", "path"), BODIES)
async def test_a_body_that_is_not_json_is_refused(client, method, path):
    headers = {"Content-Type": "application/json"}
    problem = assert_problem(await client.request(method, concrete(path), content="{", headers=headers), 422, "EINVAL")
    assert problem["errors"][0]["message"].startswith(("the body is not JSON", "body: Invalid JSON"))


@pytest.mark.parametrize(("method", "path"), BODIES)
async def test_a_body_of_another_media_type_is_refused(client, method, path):
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    response = await client.request(method, concrete(path), content="{}", headers=headers)
    assert_problem(response, 415, "EINVAL")


@pytest.mark.parametrize(("method", "path"), [body for body in BODIES if not body[1].endswith(LISTS)])
async def test_a_field_that_nobody_knows_is_named(client, method, path):
    response = await client.request(method, concrete(path), json={"nobody_knows": 1})
    problem = assert_problem(response, 422, "EINVAL")
    assert "/nobody_knows" in [error["pointer"] for error in problem["errors"]]


@pytest.mark.parametrize("path", ["/nowhere", "/vm/", "/vms/default/nowhere", "/static/nothing.js", "/vm//kick"])
async def test_a_path_that_does_not_exist_is_404(client, path):
    assert_problem(await client.get(path), 404, "ENOENT")


async def test_a_vm_that_does_not_exist_is_enodev_and_a_vcpu_is_enoent(client, vm):
    assert assert_problem(await client.get("/vms/nobody"), 404, "ENODEV")["vm"] == "nobody"
    problem = assert_problem(await client.get(f"{vm}/vcpu/77"), 404, "ENOENT")
    assert (problem["vcpu"], problem["vm"]) == (77, vm.removeprefix("/vms/"))


async def test_a_parameter_of_the_path_that_is_no_number_is_named(client):
    problem = assert_problem(await client.get("/vcpu/first"), 422, "EINVAL")
    assert problem["errors"] == [{**problem["errors"][0], "pointer": "/id", "in": "path"}]
    for odd in ("first", "--1", "1.5", "9" * 30, "%00"):
        problem = assert_problem(await client.post(f"/vcpu/{odd}/run"), 422, "EINVAL")
        assert problem["errors"] == [{**problem["errors"][0], "pointer": "/id", "in": "path"}]
        assert problem["ioctl"] == "KVM_RUN"


@pytest.mark.slow
async def test_a_declared_body_over_the_limit_is_413():
    async with live(limits=Limits(body=100)) as server, server.client() as client:
        assert_problem(await client.post("/vms", json={"id": "x" * 200}), 413, "E2BIG")


@pytest.mark.slow
async def test_a_chunked_body_over_the_limit_is_413():
    async def chunks():
        for _ in range(4):
            yield b" " * 50

    async with live(limits=Limits(body=100)) as server, server.client() as client:
        for path in ("/vms", "/vcpu/0/run"):
            headers = {"Content-Type": "application/json"}
            assert_problem(await client.post(path, content=chunks(), headers=headers), 413, "E2BIG")


async def test_an_internal_error_tells_the_client_only_where_the_log_has_it(client, server, monkeypatch, caplog):
    def broken():
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(server.registry, "describe", broken)
    problem = assert_problem(await client.get("/vms"), 500, "ENOTRECOVERABLE")
    assert "secret" not in json.dumps(problem)
    assert problem["instance"] in problem["detail"]
    assert "a secret" in caplog.text
    assert problem["instance"] in caplog.text


@pytest.mark.parametrize("number", [number for number in STATUS if number != errno.EINTR], ids=errno_name)
async def test_every_errno_has_its_status_and_carries_what_the_error_knows(client, server, monkeypatch, number):
    def failing():
        raise KvmError(number, "KVM_TEST", "the rule", field="operations.1.flags", vcpus=[3])

    monkeypatch.setattr(server.registry, "describe", failing)
    problem = assert_problem(await client.get("/vms"), STATUS[number], errno_name(number))
    assert (problem["ioctl"], problem["detail"], problem["vcpus"]) == ("KVM_TEST", "the rule", [3])
    assert problem["errno_value"] == number
    assert problem["type"] == f"/problems/{errno_name(number).lower()}"


async def test_eintr_outside_of_run_is_an_ordinary_answer(client, server, monkeypatch):
    def interrupted():
        raise KvmError(errno.EINTR, "KVM_TEST", "a signal came")

    monkeypatch.setattr(server.registry, "describe", interrupted)
    response = await client.get("/vms")
    assert (response.status_code, response.json()["ret"], response.json()["errno"]) == (200, -1, "EINTR")


@pytest.mark.parametrize(
    "request_bytes", [b"NONSENSE\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"GET /vm HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"]
)
async def test_bytes_that_are_no_proper_request_get_a_problem(server, request_bytes):
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(request_bytes)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    length = int(re.search(rb"content-length: (\d+)", head)[1])
    body = json.loads(await reader.readexactly(length))
    assert head.startswith(b"HTTP/1.1 400")
    assert b"application/problem+json" in head
    assert body["errno"] == "EINVAL"
    writer.close()


@pytest.mark.parametrize(
    ("path", "expected"),
    [("size", "/size"), ("operations.0.flags", "/operations/0/flags"), ("program[2][1]", "/2/1"), ("", "")],
)
def test_a_field_of_the_core_becomes_a_json_pointer(path, expected):
    assert pointer(path) == expected


async def test_a_request_id_that_the_client_sends_comes_back(client):
    response = await client.get("/nowhere", headers={"X-Request-Id": "abc-1"})
    assert response.headers["x-request-id"] == response.json()["instance"] == "abc-1"
    odd = await client.get("/nowhere", headers={"X-Request-Id": "a b\tc"})
    assert odd.headers["x-request-id"] != "a b\tc"
