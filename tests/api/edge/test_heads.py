"""HEAD, ends of answers, and the pages that problems lead to."""

import errno
import json
import re

import pytest

from kickstand.api.edge.errnos import MEANS
from kickstand.api.edge.problems import STATUS
from kickstand.core.errors import errno_name
from kickstand.main import create_app
from kickstand.settings import Settings
from tests.api.edge.test_problems import concrete
from tests.api.live import assert_problem, live

PATHS = create_app(Settings()).openapi()["paths"]
GETS = sorted(path for path, item in PATHS.items() if "get" in PATHS[item.get("x-alias-of", path)])


@pytest.mark.parametrize("path", GETS)
async def test_head_is_get_without_the_body(client, path):
    head = await client.head(concrete(path))
    assert head.content == b""
    if path.endswith("/events"):
        assert head.status_code == 200
        assert head.headers["content-type"].startswith("text/event-stream")
        return
    get = await client.get(concrete(path))
    assert head.status_code == get.status_code
    assert head.headers["content-type"] == get.headers["content-type"]


async def test_head_of_a_stream_leaves_nothing_behind_and_the_connection_goes_on(client, server):
    for _ in range(3):
        assert (await client.head("/vm/events")).status_code == 200
    assert (await client.get("/vm")).status_code == 200
    assert server.context.hub.streams == 0


async def test_head_of_the_dirty_log_forgets_nothing(client, machine, vm):
    arena = machine.memory.allocate(4096)
    region = {"flags": 1, "guest_phys_addr": 0x1000, "memory_size": 4096, "userspace_addr": arena.base}
    await client.put(f"{vm}/memory-regions/0", json=region)
    await client.put(f"{vm}/vcpu/0/program", json=[["write", 0x1000, 1], ["hlt"]])
    await client.post(f"{vm}/vcpu/0/run")
    assert (await client.head(f"{vm}/dirty-log/0")).status_code == 200
    assert (await client.get(f"{vm}/dirty-log/0")).json() == {"dirty_pages": [0]}
    assert (await client.head(f"{vm}/dirty-log/9")).status_code == 404


@pytest.mark.parametrize("path", [path for path in GETS if not path.endswith("/events")])
async def test_an_answer_that_is_json_ends_in_a_newline(client, path):
    answer = await client.get(concrete(path))
    if "json" in answer.headers["content-type"]:
        assert answer.text.endswith("\n")
        assert not answer.text.endswith("\n\n")


async def test_runs_lists_and_refusals_end_in_a_newline_too(client, vm):
    for method, path, body in (
        ("POST", f"{vm}/vcpu/0/run", {"immediate_exit": True}),
        ("POST", f"{vm}/script", [{"op": "resume"}]),
        ("POST", f"{vm}/kick", {"odd": 1}),
        ("GET", "/nowhere", None),
    ):
        assert (await client.request(method, path, json=body)).text.endswith("}\n")
    assert (await client.get("/vm", headers={"Host": "evil.example"})).text.endswith("}\n")


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/vcpu", {"vcpu_id": 3}, ("vcpu_id", "id: Field required")),
        ("/vm/host-memory", {"bytes": 3}, ("bytes: there is no such field", "size")),
        ("/vm/kick", {"timeout": 3}, ("timeout: there is no such field",)),
        ("/vms", {"switches": {"colour": 1}}, ("colour",)),
        ("/vm/memory-transaction", {"operations": [{"slot": 0, "size": 0}]}, ("operations.0.size", "memory_size")),
        ("/vcpu/0/run", {"wait": 1}, ("wait: there is no such field",)),
        ("/vm/script", [{"op": "kick", "args": {"wait": 1}}], ("wait",)),
    ],
)
async def test_the_detail_names_the_unknown_field_that_was_given(client, path, body, words):
    detail = assert_problem(await client.post(path, json=body), 422, "EINVAL")["detail"]
    assert all(word in detail for word in words), detail


@pytest.mark.parametrize("number", sorted({*STATUS, *MEANS}), ids=errno_name)
async def test_the_type_of_a_problem_leads_to_a_page_that_says_what_to_do(client, server, monkeypatch, number):
    page = await client.get(f"/problems/{errno_name(number).lower()}")
    assert page.headers["content-type"].startswith("text/html")
    for words in (errno_name(number), "What to do", str(number)):
        assert words in page.text
    assert number in MEANS


async def test_a_refusal_names_its_page_and_all_pages_are_listed(client):
    problem = assert_problem(await client.post("/vcpu", json={"id": 0}), 409, "EEXIST")
    assert (await client.get(problem["type"])).status_code == 200
    listed = re.findall(r'href="(/problems/\w+)"', (await client.get("/problems")).text)
    assert {f"/problems/{errno_name(number).lower()}" for number in MEANS} == set(listed)
    assert (await client.get(f"/problems/{errno.errorcode[errno.EDOM].lower()}")).status_code == 200
    assert_problem(await client.get("/problems/eodd"), 404, "ENOENT")


@pytest.mark.slow
async def test_pages_of_problems_need_no_token(tmp_path):
    (tmp_path / "token").write_text("secret")
    async with live(token_file=tmp_path / "token") as server, server.client() as client:
        problem = assert_problem(await client.get("/vm"), 401, "EACCES")
        assert (await client.get("/problems/eacces")).status_code == 200
        assert problem["type"] == "about:blank"


async def test_the_schema_is_served_as_it_is_printed(client):
    assert (await client.get("/openapi.json")).json() == json.loads(json.dumps(create_app(Settings()).openapi()))
