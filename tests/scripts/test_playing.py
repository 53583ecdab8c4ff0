"""Scripts on the emulator: files of every form, Kickstand's own operations, and what is compared."""

import gzip
import json

import httpx
import pytest

from kickstand.runtime.registry import Registry
from kickstand.scripts.language.parse import parse_operation, parse_operations, plain
from kickstand.scripts.language.presets import PRESETS
from kickstand.scripts.language.reader import load, read_presets
from kickstand.scripts.language.script import parse_trace
from kickstand.scripts.play.backends import InProcess, vm_options
from kickstand.scripts.play.compare import compare
from kickstand.scripts.play.forms import pattern
from kickstand.scripts.play.http_player import OverHttp, ServerError, answers
from kickstand.scripts.play.player import Player, play_script
from kickstand.scripts.replay import replay, replay_traces


def op(name, /, **args):
    return {"op": name, "args": args}


MEMORY = [
    op("arena", name="A", size=0x10000),
    op("set_memory_region", slot=0, flags=0, gpa=0, size=0x10000, host={"arena": "A", "offset": 0}),
]


@pytest.fixture
async def registry():
    registry = Registry()
    yield registry
    await registry.reset()


async def played(registry, operations, **options):
    machine = await registry.create(**options)
    return [answer async for answer in play_script(machine, operations)]


# -- files -----------------------------------------------------------------------------------------------------

TRACE = {"id": "one", "ops": [{**op("arena", name="A", size=4096), "result": {"ret": 0, "errno": None}}]}
FORMS = {
    "trace.json": json.dumps(TRACE),
    "list-of-traces.json": json.dumps([TRACE]),
    "operations.json": json.dumps(TRACE["ops"]),
    "wrapped.json": json.dumps({"operations": TRACE["ops"]}),
    "lines.jsonl": json.dumps(TRACE) + "\n\n",
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_file_is_read(tmp_path, name, packed):
    data = FORMS[name].encode()
    file = tmp_path / (name + (".gz" if packed else ""))
    file.write_bytes(gzip.compress(data) if packed else data)
    (trace,) = load([tmp_path])
    assert [operation.op for operation in trace.operations] == ["arena"]
    assert trace.id in ("one", f"{file.name}#0")
    assert replay([file], engine="script").line == "1 passed, 0 failed"


def test_presets_of_the_folder_go_before_the_built_in_ones(tmp_path):
    (tmp_path / "meta.json").write_text(
        json.dumps({"format": 1, "presets": {"real": {"cr0": 7}, "mine": {"cr3": "0x8000"}}})
    )
    presets = read_presets(tmp_path / "meta.json")
    assert presets["real"] == {"cr0": 7}
    assert presets["mine"] == {"cr3": 0x8000}
    assert presets["long64"] == PRESETS["long64"]


def test_the_built_in_presets_are_those_of_the_recorded_traces():
    from tests.golden.test_golden import SAMPLE

    assert read_presets(SAMPLE / "meta.json") == PRESETS


def test_what_is_read_is_written_the_same():
    operations = [*MEMORY, op("create_vcpu", id=0), op("run", vcpu=0, reply="00ff")]
    assert plain(parse_operations(operations)) == operations


# -- operations ------------------------------------------------------------------------------------------------


async def test_a_refused_ioctl_is_an_answer(registry):
    results = await played(
        registry, [*MEMORY, op("set_memory_region", slot=0, flags=0, gpa=0, size=0x2000, host={"abs": 0})]
    )
    assert results == [{"ret": 0, "errno": None}, {"ret": 0, "errno": None}, {"ret": -1, "errno": "EINVAL"}]


def test_the_pattern_numbers_units_of_four_bytes():
    assert pattern(6) == bytes([0, 0, 0x5A, 0xC3, 1, 0])
    assert pattern(0x40004)[-4:] == bytes([0, 0, 0x5A, 0xC3])


async def test_memory_of_an_arena_is_filled_read_and_hashed(registry):
    script = [
        MEMORY[0], op("fill_host", arena="A", offset=0, length=2, byte=0xAA), op("fill_pattern", arena="A"),
        op("fill_host", arena="A", offset=1, length=2, byte=7), op("read_host", arena="A", offset=0, length=5),
        op("hash_host", arena="A"),
    ]  # fmt: skip
    *_, read, hashed = await played(registry, script)
    assert read["hex"] == "000707c301"
    assert len(hashed["sha256"]) == 64


async def test_kick_and_resume_surround_a_run_that_overlaps(registry):
    script = [
        *MEMORY, op("create_vcpu", id=0, program=[["spin"]]), op("start_run", vcpu=0), op("kick"),
        op("finish_run", vcpu=0), op("run", vcpu=0), op("resume"), op("resume"),
    ]  # fmt: skip
    results = await played(registry, script)
    kicked = {"ret": -1, "errno": "EINTR", "exit_reason": "UNKNOWN"}
    assert results[4:] == [
        {"ret": 0, "errno": None, "changed": True, "holds": 1}, kicked, kicked,
        {"ret": 0, "errno": None, "changed": True, "holds": 0}, {"ret": 0, "errno": None, "changed": False, "holds": 0},
    ]  # fmt: skip


async def test_a_transaction_is_all_or_nothing(registry):
    good = MEMORY[1]["args"] | {"slot": 1, "gpa": 0x10000}
    script = [
        *MEMORY, op("memory_transaction", operations=[good], protect="kick"),
        op("memory_transaction", operations=[good | {"slot": 2, "gpa": 0x20000}, good | {"slot": 3}]),
        op("set_memory_region", slot=2, flags=0, gpa=0, size=0, host={"abs": 0}),
    ]  # fmt: skip
    *_, done, refused, absent = await played(registry, script)
    assert done == {"ret": 0, "errno": None, "results": [{"ret": 0, "errno": None}]}
    assert refused == {"ret": -1, "errno": "EEXIST"}
    assert absent["errno"] == "EINVAL"


async def test_a_signal_before_a_run_ends_it(registry):
    *_, result = await played(registry, [*MEMORY, op("create_vcpu", id=0), op("signal", vcpu=0), op("run", vcpu=0)])
    assert result == {"ret": -1, "errno": "EINTR", "exit_reason": "INTR"}


async def test_threads_programs_interrupts_and_states_are_operations_too(registry):
    script = [
        *MEMORY,
        op("create_irqchip"),
        op("create_vcpu", id=0, program=[["hlt"]]),
        op("create_vcpu", id=1),
        op("set_program", vcpu=0, program=[["out", 16, 1], ["hlt"]]),
        op("start_thread", vcpu=0),
        op("stop_thread", vcpu=0),
        op("signal_msi", address=0xFEE00000, data=0x40),
        op("irq_line", irq=4, level=1),
        op("nmi", vcpu=0),
        op("get_mp_state", vcpu=1),
        op("set_mp_state", vcpu=1, mp_state=77),
        op("set_cpuid_supported", vcpu=1),
        op("raw_ioctl", on="vm", request="RUN"),
        op("raw_ioctl", on="system", request=0xAEFF),
        op("raw_ioctl", on="vm", request="NMI"),
        op("run", vcpu=1, kick_after_ms=5),
        op("set_run_flag", vcpu=0, flag="immediate_exit", value=True),
    ]
    results = await played(registry, script)
    assert [result["errno"] for result in results[2:]] == [
        *[None] * 10, "EINVAL", None, "ENOTTY", "EINVAL", "ENOTTY", "EINTR", None,
    ]  # fmt: skip
    assert results[8]["delivered"] is True
    assert results[11]["mp_state"] == "UNINITIALIZED"


async def test_a_script_goes_on_in_the_next_request(registry):
    machine = await registry.create(vcpus=1)
    first = [answer async for answer in play_script(machine, [*MEMORY, op("start_run", vcpu=0)])]
    second = [
        answer
        async for answer in play_script(machine, {"operations": [op("signal", vcpu=0), op("finish_run", vcpu=0)]})
    ]
    assert [answer["errno"] for answer in first + second] == [None, None, None, None, "EINTR"]


async def test_a_thousand_operations_are_one_request(registry):
    machine = await registry.create(vcpus=1)
    toggles = [op("set_run_flag", vcpu=0, flag="immediate_exit", value=n % 2) for n in range(1000)]
    assert len([answer async for answer in play_script(machine, toggles)]) == 1000


# -- comparing -------------------------------------------------------------------------------------------------


def differing(name, expected, actual, **args):
    return [str(one) for one in compare(parse_operation(op(name, **args)), expected, actual)]


def test_every_recorded_field_is_compared():
    recorded = {"ret": 0, "errno": None, "dirty_pages": [1, 2], "x": 300}
    assert differing("get_dirty_log", recorded, recorded | {"more": 1}, slot=0) == []
    assert differing("get_dirty_log", recorded, {"ret": 0, "errno": None, "dirty_pages": [1], "x": 1}, slot=0) == [
        "dirty_pages: expected [1, 2], got [1]", "x: expected 0x12c, got 1",
    ]  # fmt: skip
    assert differing("get_dirty_log", recorded, {"ret": 0, "errno": None}, slot=0)[0].endswith("got 'nothing'")
    assert differing("nmi", {"ret": 0}, {"ret": False}, vcpu=0) == ["ret: expected 0, got False"]


def test_of_rflags_only_the_defined_bits_count():
    def flags(expected, actual):
        return differing(
            "get_regs", {"regs": {"rflags": expected, "rax": 1}}, {"regs": {"rflags": actual, "rax": 1}}, vcpu=0
        )

    assert flags(0x202, 0x10202) == []
    assert flags(0x202, 0x2) == ["regs.rflags: expected 0x202, got 2"]
    assert flags(0x2, 0x0) == ["regs.rflags: expected 2, got 0"]


def test_the_exit_reason_of_a_failed_run_counts_only_after_a_signal():
    recorded = {"ret": -1, "errno": "EINTR", "exit_reason": "IO"}
    assert differing("run", recorded, recorded | {"exit_reason": "MMIO"}, vcpu=0) == []
    signalled = recorded | {"exit_reason": "INTR"}
    assert differing("run", signalled, recorded, vcpu=0, kick_after_ms=1) == ["exit_reason: expected 'INTR', got 'IO'"]


def test_the_first_difference_of_each_failure_is_shown_field_by_field(tmp_path):
    wrong = {
        **TRACE,
        "id": "wrong",
        "ops": [{**TRACE["ops"][0], "result": {"ret": -1, "errno": "ENOMEM"}}, TRACE["ops"][0]],
    }
    wrong["ops"][1] = {**op("hash_host", arena="A"), "result": {"ret": -1}}
    (tmp_path / "x.jsonl").write_text(f"{json.dumps(TRACE)}\n{json.dumps(wrong)}\n")
    seen = []
    summary = replay(
        [tmp_path],
        engine="script",
        started=lambda traces: seen.append(len(traces)),
        progress=lambda *one: seen.append(one),
    )
    assert summary.lines() == [
        'FAILED wrong: operation 0: arena {"name": "A", "size": 4096}', "    ret: expected -1, got 0",
        "    errno: expected 'ENOMEM', got None", f"compared {summary.compared} of {summary.operations} operations",
        "1 passed, 1 failed",
    ]  # fmt: skip
    assert seen[0] == 2
    assert [failure is None for _, failure in seen[1:]] == [True, False]
    assert summary.as_json()["failures"][0]["differences"][0] == {"field": "ret", "expected": -1, "actual": 0}


async def test_one_engine_is_compared_with_another():
    spin = parse_trace([*MEMORY, op("create_vcpu", id=0), op("get_regs", vcpu=0)], "x")
    summary = await replay_traces([spin], InProcess("script"), InProcess("script"))
    assert summary.line == "1 passed, 0 failed"
    summary = await replay_traces([spin], InProcess("script"), InProcess("x86"))
    assert "    regs.rip: expected 0xfff0, got 0" in summary.failures[0].lines()


def test_the_vm_is_what_was_asked_for_or_what_the_trace_says():
    trace = parse_trace(
        {"id": "x", "ops": [], "vm": {"engine": "script", "variant": "holds", "switches": {"killable": True}}}, "x"
    )
    assert vm_options(trace, None, None)["engine"] == "script"
    assert vm_options(trace, "x86", None) | {"mode": "precise"} == {
        "engine": "x86", "variant": "holds", "irqchip": False, "seed": 0, "switches": {"killable": True},
        "mode": "precise",
    }  # fmt: skip


# -- HTTP --------------------------------------------------------------------------------------------------------


async def test_presets_are_resolved_before_they_go_over_http():
    seen = []

    async def server(request):
        seen.append((request.method, request.url.path, json.loads(request.content or b"null")))
        body = {"id": "vm/1"} if request.url.path == "/vms" else [{"ret": 0, "errno": None}] * 2
        return httpx.Response(200, json=body)

    trace = parse_trace(
        [op("create_vcpu", id=0), op("set_sregs", vcpu=0, preset="real", changes={"cs": {"base": 4}})], "x"
    )
    async with OverHttp("http://x", transport=httpx.MockTransport(server)) as backend:
        assert len([answer async for answer in backend.play(trace)]) == 2
    assert [(method, path) for method, path, _ in seen] == [
        ("POST", "/vms"), ("POST", "/vms/vm/1/script"), ("DELETE", "/vms/vm/1"),
    ]  # fmt: skip
    changes = seen[1][2][1]["args"]["changes"]
    assert changes == PRESETS["real"] | {"cs": PRESETS["real"]["cs"] | {"base": 4}}


async def test_what_the_server_says_against_a_request_is_the_error():
    transport = httpx.MockTransport(lambda request: httpx.Response(409, json={"detail": "no room"}))
    async with OverHttp("http://x", transport=transport) as backend:
        with pytest.raises(ServerError, match="POST /vms: 409 no room"):
            await anext(backend.play(parse_trace([], "x")))


def test_an_answer_without_results_is_refused():
    assert answers({"results": []}) == answers([]) == []
    with pytest.raises(ServerError):
        answers({"operations": []})


async def test_a_player_takes_plain_operations(registry):
    player = Player(await registry.create())
    assert await player.play(MEMORY[0]) == {"ret": 0, "errno": None}
