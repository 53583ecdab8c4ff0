"""The schema as a program reads it: each operation once, each field told, every example answered with success."""

import json
import re
from pathlib import Path

import jsonschema_rs
import pytest

from kickstand.api.openapi import words
from kickstand.api.openapi.examples import EXAMPLES, PARAMETERS
from kickstand.api.shapes.events import EVENTS
from kickstand.core import trace
from kickstand.core.trace import Tracepoint
from kickstand.guests.program import ARGUMENTS
from kickstand.main import create_app
from kickstand.settings import Settings
from tests.api.live import events, live

SCHEMA = create_app(Settings()).openapi()
SHAPES = SCHEMA["components"]["schemas"]
PATHS = {
    "/kvm": "get", "/vms": "get post", "/reset": "post", "/": "get", "/docs": "get", "/healthz": "get",
    "/readyz": "get", "/metrics": "get", "/events": "get", "/session": "post", "/problems/{errno}": "get",
    "/openapi.json": "get",
}  # fmt: skip
OF_A_VM = {
    "": "get delete", "/kick": "post", "/resume": "post", "/locks": "get", "/host-memory": "post",
    "/host-memory/{userspace_addr}": "get put", "/memory-regions": "get", "/memory-regions/{slot}": "put delete",
    "/memory-transaction": "post", "/dirty-log/{slot}": "get", "/dirty-log/{slot}/clear": "post", "/irqchip": "post",
    "/irq-line": "post", "/msi": "post", "/script": "post", "/events": "get", "/trace": "get",
}  # fmt: skip
OF_A_VCPU = {
    "": "get post", "/{id}": "get", "/{id}/run": "post", "/{id}/regs": "get put", "/{id}/sregs": "get put",
    "/{id}/mp-state": "get put", "/{id}/interrupt": "post", "/{id}/nmi": "post", "/{id}/signal": "post",
    "/{id}/program": "put", "/{id}/start": "post", "/{id}/stop": "post", "/{id}/events": "get",
}  # fmt: skip


def operations():
    for path, item in SCHEMA["paths"].items():
        if "x-alias-of" not in item:
            for method, operation in item.items():
                yield method, path, operation


def nodes(schema, where="#"):
    """Every object within the schema, with where it is."""
    if isinstance(schema, dict):
        yield where, schema
        for name, value in schema.items():
            yield from nodes(value, f"{where}/{name}")
    elif isinstance(schema, list):
        for number, value in enumerate(schema):
            yield from nodes(value, f"{where}/{number}")


def validator(name):
    return jsonschema_rs.Draft202012Validator({**SCHEMA, "$ref": f"#/components/schemas/{name}"})


# -- operations ----------------------------------------------------------------------------------------------


def test_every_operation_of_the_contract_is_there_once_and_has_its_short_path_as_an_alias():
    found = {path: " ".join(sorted(item)) for path, item in SCHEMA["paths"].items() if "x-alias-of" not in item}
    aliases = {path: item["x-alias-of"] for path, item in SCHEMA["paths"].items() if "x-alias-of" in item}
    wanted = PATHS | {"/vms/{vm}" + path: methods for path, methods in OF_A_VM.items()}
    wanted |= {"/vms/{vm}/vcpu" + path: methods for path, methods in OF_A_VCPU.items()}
    assert {path: methods for path, methods in wanted.items() if path in found} == wanted
    assert {path: found[path] for path in wanted if not set(wanted[path].split()) <= set(found[path].split())} == {}
    of_default = {"/vm" + path for path in OF_A_VM} | {"/vcpu" + path for path in OF_A_VCPU}
    assert of_default <= set(aliases)
    for alias, path in aliases.items():
        assert path in (alias.replace("/vm", "/vms/{vm}", 1), alias.replace("/vcpu", "/vms/{vm}/vcpu", 1))
        assert path in found
        assert path.replace("{vm}", "default") in SCHEMA["paths"][alias]["summary"]
    ids = [operation["operationId"] for _, _, operation in operations()]
    assert len(ids) == len(set(ids))
    assert len(found) < 60


def test_the_schema_is_the_same_each_time():
    assert json.dumps(create_app(Settings(port=1)).openapi()) == json.dumps(SCHEMA)


@pytest.mark.parametrize(("path", "operation"), [pytest.param(p, o, id=o["operationId"]) for _, p, o in operations()])
def test_an_operation_is_told_in_words_with_its_failures_parameters_and_body(path, operation):
    assert re.fullmatch(r"[A-Z].* .*[^.]", operation["summary"]), operation["summary"]
    assert {"4XX", "5XX"} <= set(operation["responses"])
    declared = {p["name"]: p for p in operation.get("parameters", [])}
    assert {name for name, p in declared.items() if p["in"] == "path"} == set(re.findall(r"\{(\w+)\}", path))
    for parameter in declared.values():
        assert parameter["description"]
        assert parameter["in"] != "path" or parameter["example"] == PARAMETERS[parameter["name"]]
        assert {"type": "null"} not in parameter["schema"].get("anyOf", [])
    body = operation.get("requestBody")
    if body is not None:
        assert isinstance(body["required"], bool)
        for content in body["content"].values():
            assert "example" in content or content["examples"]
            assert {"type": "null"} not in content["schema"].get("anyOf", [])
    assert [tag for tag in operation["tags"] if tag not in {known["name"] for known in SCHEMA["tags"]}] == []


def test_servers_and_how_to_be_let_in_are_told():
    assert [server["url"] for server in SCHEMA["servers"]] == ["/", "http://{host}:{port}"]
    assert set(SCHEMA["components"]["securitySchemes"]) == {"token", "session"}
    assert {} in SCHEMA["security"]
    assert all(tag["description"] for tag in SCHEMA["tags"])


def test_streams_tell_events_and_a_slot_of_size_0_is_no_content():
    stream = SCHEMA["paths"]["/vms/{vm}/events"]["get"]["responses"]["200"]["content"]
    assert set(stream) == {"text/event-stream", "application/x-ndjson"}
    assert stream["application/x-ndjson"]["schema"] == {"$ref": "#/components/schemas/Event"}
    assert {"200", "204"} <= set(SCHEMA["paths"]["/vms/{vm}/memory-regions/{slot}"]["put"]["responses"])
    assert SCHEMA["paths"]["/vms/{vm}/vcpu/{id}/run"]["post"]["x-ioctl"] == "KVM_RUN"


# -- shapes --------------------------------------------------------------------------------------------------


def test_every_reference_leads_to_a_shape_and_every_shape_is_referred_to():
    used = {match[1] for match in re.finditer(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(SCHEMA))}
    assert used == set(SHAPES)
    assert "HTTPValidationError" not in SHAPES


def test_every_shape_says_what_it_is_and_each_field_what_it_means():
    assert [name for name, shape in SHAPES.items() if not shape.get("description") and "enum" not in shape] == []
    fields = [(name, *item) for name, shape in SHAPES.items() for item in shape.get("properties", {}).items()]
    assert [field for field in fields if not re.match(r"[A-Z0-9`].*\.$", field[2].get("description", ""))] == []


def test_every_number_says_how_large_it_may_be():
    found = [(where, node) for where, node in nodes(SCHEMA) if node.get("type") == "integer"]
    assert [(where, node) for where, node in found if not {"enum", "const", "minimum"} & set(node)] == []


def test_every_word_is_used():
    used = {(name, field) for name, shape in SHAPES.items() for field in shape.get("properties", {})}
    known = {f"{name}.{field}" for name, field in used} | {field for _, field in used}
    assert set(words.WORDS) - known == set()


def test_unions_are_told_apart_by_a_discriminator():
    for name, by, member in (("Event", "event", "Event"), ("ScriptOperation", "op", "Operation")):
        mapping = SHAPES[name]["discriminator"]["mapping"]
        assert SHAPES[name]["discriminator"]["propertyName"] == by
        assert [{"$ref": ref} for ref in mapping.values()] == SHAPES[name]["oneOf"]
        for value, ref in mapping.items():
            assert ref.endswith(member)
            assert SHAPES[ref.rpartition("/")[2]]["properties"][by]["const"] == value
    for step in ARGUMENTS:
        [ref] = [ref["$ref"] for ref in SHAPES["Step"]["oneOf"] if ref["$ref"].endswith(f"Step{step.capitalize()}")]
        assert f'"const": "{step}"' in json.dumps(SHAPES[ref.rpartition("/")[2]])


@pytest.mark.parametrize(
    ("name", "value", "is_one"),
    [
        ("Program", [["read", "0x1000"], ["choose", [["hlt"]], [["in", 0x3F8, 2]]]], True),
        ("Program", [["read", 4096, 3]], False),
        ("Program", [["fly"]], False),
        ("Program", [["choose"]], False),
        ("Program", [[[["hlt"]], [["hlt"]]]], False),
        ("Program", [], False),
        ("Script", [{"op": "run", "args": {"vcpu": 0, "reply": "2a"}}], True),
        ("Script", {"operations": [{"op": "resume"}]}, True),
        ("Script", [{"op": "run", "args": {"slot": 0}}], False),
        ("Script", [{"op": "fly"}], False),
        ("CreateVm", {"id": "a", "switches": {"killable": True}}, True),
        ("CreateVm", {"name": "a"}, False),
        ("RegsIn", {"rax": "0xff"}, True),
        ("RegsIn", {"rax": 1 << 65}, False),
    ],
)
def test_what_the_schema_allows(name, value, is_one):
    assert validator(name).is_valid(value) is is_one


# -- as it is ------------------------------------------------------------------------------------------------


async def test_every_example_is_valid_and_answered_with_success():
    bodies = {
        operation["operationId"]: (method, path, operation["requestBody"]["content"]["application/json"])
        for method, path, operation in operations()
        if "application/json" in operation.get("requestBody", {}).get("content", {})
    }
    assert list(bodies) != []
    assert set(bodies) == set(EXAMPLES)
    async with live(engine="x86", vcpus=0, allow_reset=True) as server, server.client() as client:
        await client.post("/vm/irqchip")
        await client.post("/vcpu", json={"id": 0})
        await client.post("/vms", json={"id": "bare", "vcpus": 1})
        for name in EXAMPLES:  # in the order of the file: they build on each other
            method, path, content = bodies[name]
            [example] = content["examples"].values()
            schema = {**SCHEMA, **content["schema"]}
            assert jsonschema_rs.Draft202012Validator(schema).is_valid(example["value"]), name
            if name in ("create_session", "run", "create_irqchip"):
                continue  # needs a code; a read that waits for its reply; a VM without vCPUs
            plain = name in ("set_program", "start", "interrupt", "create_vcpu", "kick")  # of VMs without an irqchip
            url = re.sub(r"\{(\w+)\}", lambda match: str(PARAMETERS[match[1]]), path)
            url = url.replace("/default", "/bare") if plain else url
            answer = await client.request(method.upper(), url, json=example["value"])
            assert 200 <= answer.status_code < 300, (name, answer.text)
            assert str(answer.status_code) in SCHEMA["paths"][path][method]["responses"], name


def test_every_tracepoint_has_a_shape_and_somebody_who_reports_it():
    assert {point.value for point in Tracepoint} <= set(EVENTS)
    declared = Path(trace.__file__)
    sources = "".join(path.read_text() for path in declared.parents[1].rglob("*.py") if path != declared)
    assert [point.name for point in Tracepoint if not re.search(rf"\b{point.name}\b", sources)] == []


@pytest.mark.slow
async def test_what_streams_tell_is_as_the_schema_says():
    check = validator("Event")
    seen = set()
    async with (
        live(vcpus=1, allow_reset=True) as server,
        server.client() as client,
        events(client, "/events", ndjson=True) as every,
        events(client, "/vm/events", ndjson=True) as of_vm,
        events(client, "/vcpu/0/events", ndjson=True) as of_vcpu,
        events(client, "/events?after=nonsense", ndjson=True) as late,
    ):
        await client.post("/vms", json={"id": "it", "vcpus": 1, "irqchip": False, "programs": [[["out", 16, 1]]]})
        for path in ("kick", "resume"):
            await client.post(f"/vms/it/{path}")
        await client.post("/vms/it/vcpu/0/run")
        await client.put("/vcpu/0/program", json=[["read", 4096], ["write", 4096, 7]])
        for _ in range(2):
            await client.post("/vcpu/0/run")
        await client.post("/vm/host-memory", json=EXAMPLES["create_host_memory"]["example"]["value"])
        await client.put("/vm/memory-regions/0", json=EXAMPLES["set_memory_region"]["example"]["value"])
        await client.post("/vm/memory-transaction", json=EXAMPLES["memory_transaction"]["example"]["value"])
        await client.delete("/vms/it")
        for stream in (every, of_vm, of_vcpu, late):
            assert check.is_valid(await stream.next())
        found = [*await every.until("kvm_destroy_vm"), *await late.until("kvm_destroy_vm")]
        await client.delete("/vm")
        found += await of_vm.rest()
    for event in found:
        check.validate(event)
        seen.add(event["event"])
    assert {
        "kvm_create_vm", "kvm_create_vcpu", "kvm_kick_all", "kvm_resume_all", "kvm_entry", "kvm_exit", "kvm_pio",
        "kvm_userspace_exit", "kvm_mmio", "kvm_memslot", "mem_transaction", "vcpu_state", "kvm_destroy_vm", "bye",
        "kvm_make_request", "kvm_mode",
    } <= seen  # fmt: skip
