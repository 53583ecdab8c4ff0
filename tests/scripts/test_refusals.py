"""A malformed script is refused with its place and a reason, and nothing is touched."""

import gzip
import json

import pytest

from kickstand.runtime.registry import Registry
from kickstand.scripts.language.errors import ScriptError
from kickstand.scripts.language.parse import parse_operation, parse_operations
from kickstand.scripts.language.reader import MAX_FILE, load, read_bounded
from kickstand.scripts.language.script import ScriptLimits, check, parse_trace
from kickstand.scripts.play.player import play_script
from kickstand.scripts.replay import replay

ARENA = {"op": "arena", "args": {"name": "A", "size": 4096}}
VCPU = {"op": "create_vcpu", "args": {"id": 0}}

WRONG = [
    ({"op": "nope", "args": {}}, "op", "unknown operation 'nope'"),
    ({"args": {}}, "op", "unknown operation None"),
    ([], None, "an operation is an object"),
    ({"op": "nmi", "args": []}, "args", "args is an object"),
    ({"op": "nmi", "args": {"vcpu": 0}, "result": 1}, "result", "result is an object"),
    ({"op": "nmi", "args": {"vcpu": 0}, "arg": {}}, "arg", "op, args and result only"),
    ({"op": "nmi", "args": {}}, "args.vcpu", "Field required"),
    ({"op": "nmi", "args": {"vcpu": "0"}}, "args.vcpu", "valid integer"),
    ({"op": "nmi", "args": {"vcpu": 0.0}}, "args.vcpu", "valid integer"),
    ({"op": "nmi", "args": {"vcpu": True}}, "args.vcpu", "valid integer"),
    ({"op": "nmi", "args": {"vcpu": -1}}, "args.vcpu", "greater than or equal to 0"),
    ({"op": "nmi", "args": {"vcpu": 1 << 64}}, "args.vcpu", "less than"),
    ({"op": "nmi", "args": {"vcpu": 0, "cpu": 0}}, "args.cpu", "not permitted"),
    ({"op": "arena", "args": {"name": "A", "size": 0}}, "args.size", "greater than 0"),
    ({"op": "arena", "args": {"name": "A", "size": 1 << 50}}, "args.size", "less than or equal"),
    ({"op": "arena", "args": {"name": "", "size": 1}}, "args.name", "at least 1 character"),
    ({"op": "write_host", "args": {"arena": "A", "offset": 0, "hex": "0"}}, "args.hex", "pattern"),
    ({"op": "write_host", "args": {"arena": "A", "offset": 0, "hex": "zz"}}, "args.hex", "pattern"),
    ({"op": "set_regs", "args": {"vcpu": 0, "regs": {"eax": 1}}}, "args.regs", "'eax' is no register"),
    ({"op": "set_sregs", "args": {"vcpu": 0, "changes": {"cr1": 1}}}, "args.changes", "'cr1' is no special register"),
    ({"op": "get_sregs", "args": {"vcpu": 0, "only": ["cr9"]}}, "args.only", "'cr9' is no special register"),
    ({"op": "get_sregs", "args": {"vcpu": 0, "only": [["cr0"]]}}, "args.only", "['cr0'] is no special register"),
    ({"op": "set_mp_state", "args": {"vcpu": 0, "mp_state": "ASLEEP"}}, "args.mp_state", "'ASLEEP' is none of"),
    ({"op": "set_run_flag", "args": {"vcpu": 0, "flag": "x", "value": 1}}, "args.flag", "immediate_exit"),
    ({"op": "raw_ioctl", "args": {"on": "vm", "request": "NOPE"}}, "args.request", "'NOPE' is no ioctl"),
    ({"op": "run", "args": {"vcpu": 0, "kick_after_ms": 10**9}}, "args.kick_after_ms", "less than or equal"),
    ({"op": "set_program", "args": {"vcpu": 0, "program": [["jump"]]}}, "args.program", "'jump' is none of"),
    ]  # fmt: skip


@pytest.mark.parametrize(("value", "field", "reason"), WRONG)
def test_an_operation_that_is_wrong_by_itself_names_its_number_field_and_reason(value, field, reason):
    with pytest.raises(ScriptError) as refused:
        parse_operations([ARENA, value])
    assert (refused.value.operation, refused.value.field) == (1, field)
    assert reason in refused.value.detail
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    "host", [{}, {"arena": "A"}, {"offset": 0}, {"abs": 0, "arena": "A", "offset": 0}, {"abs": None}]
)
def test_a_host_address_is_an_arena_and_an_offset_or_absolute(host):
    args = {"slot": 0, "flags": 0, "gpa": 0, "size": 0, "host": host}
    with pytest.raises(ScriptError, match="a host address is"):
        parse_operation({"op": "set_memory_region", "args": args})


def test_integers_may_be_hexadecimal_strings_as_everywhere_in_the_api():
    region = {"slot": 0, "flags": 0, "gpa": "0x10000", "size": "0x1000", "host": {"abs": "0x7000"}}
    parsed = parse_operation({"op": "set_memory_region", "args": region})
    assert (parsed.args.gpa, parsed.args.size, parsed.args.host.abs) == (0x10000, 0x1000, 0x7000)


def region(host):
    return {"op": "set_memory_region", "args": {"slot": 0, "flags": 0, "gpa": 0, "size": 4096, "host": host}}


TOGETHER = [
    ([{"op": "hash_host", "args": {"arena": "B"}}], "args.arena", "no arena 'B' yet"),
    ([region({"arena": "B", "offset": 0})], "args.host.arena", "no arena 'B' yet"),
    ([{"op": "memory_transaction", "args": {"operations": [region({"arena": "B", "offset": 0})["args"]]}}],
     "args.operations.0.host.arena", "no arena 'B' yet"),
    ([ARENA], "args.name", "there is an arena 'A' already"),
    ([{"op": "arena", "args": {"name": "B", "size": 1 << 39}}], "args.size", "of host memory in all"),
    ([{"op": "write_host", "args": {"arena": "A", "offset": 4095, "hex": "0000"}}], "args.hex", "pass the end"),
    ([{"op": "write_host", "args": {"arena": "A", "offset": 1 << 63, "hex": ""}}], "args.offset", "past the end"),
    ([{"op": "read_host", "args": {"arena": "A", "offset": 0, "length": 4097}}], "args.length", "pass the end"),
    ([{"op": "nmi", "args": {"vcpu": 1}}], "args.vcpu", "no create_vcpu of 1 before this"),
    ([{"op": "raw_ioctl", "args": {"on": "vcpu", "request": 1}}], "args.vcpu", "says on which"),
    ([{"op": "set_sregs", "args": {"vcpu": 0, "preset": "vm86"}}], "args.preset", "no preset 'vm86'; there are real"),
    ([{"op": "finish_run", "args": {"vcpu": 0}}], "args.vcpu", "no start_run of 0"),
    ([{"op": "start_run", "args": {"vcpu": 0}}, {"op": "run", "args": {"vcpu": 0}}], "args.vcpu",
     "until its finish_run"),
]  # fmt: skip


@pytest.mark.parametrize(("more", "field", "reason"), TOGETHER)
def test_an_operation_that_does_not_fit_those_before_it_is_refused(more, field, reason):
    operations = parse_operations([ARENA, VCPU, *more])
    with pytest.raises(ScriptError) as refused:
        check(operations)
    assert (refused.value.operation, refused.value.field) == (1 + len(more), field)
    assert reason in refused.value.detail


def test_too_many_operations_are_refused():
    with pytest.raises(ScriptError, match="2 operations are more than the limit of 1"):
        check(parse_operations([ARENA, VCPU]), limits=ScriptLimits(operations=1))


def test_a_trace_is_named_in_the_refusal():
    trace = {"id": "mine/first", "ops": [ARENA, {"op": "nmi", "args": {"vcpu": 7}}]}
    with pytest.raises(ScriptError) as refused:
        parse_trace(trace, "file#0")
    assert str(refused.value) == "mine/first: operation 1 (nmi): args.vcpu: there is no create_vcpu of 7 before this"


@pytest.mark.parametrize(
    "value", [7, "x", None, {"id": "x"}, {"ops": {}}, {"id": 7, "ops": []}, {"id": "x", "ops": [1]}]
)
def test_what_is_no_trace_is_refused(value):
    with pytest.raises(ScriptError):
        parse_trace(value, "file#0")


def test_a_recording_whose_beginning_was_dropped_is_refused():
    with pytest.raises(ScriptError, match="cannot be replayed"):
        parse_trace({"id": "x", "dropped": 3, "ops": []}, "file#0")


async def test_a_refused_script_touches_nothing():
    registry = Registry()
    machine = await registry.create("vm", vcpus=1)
    before = machine.describe(), machine.memory.allocated
    with pytest.raises(ScriptError, match="operation 1"):
        async for _ in play_script(machine, [ARENA, {"op": "nmi", "args": {"vcpu": 7}}]):
            pass
    assert (machine.describe(), machine.memory.allocated) == before
    await registry.reset()


# -- files -----------------------------------------------------------------------------------------------------

BAD_FILES = {
    "broken.json": (b"{", "is not JSON"),
    "latin.json": (b'"\xff"', "is not JSON"),
    "huge-number.json": (b"[" + b"9" * 5000 + b"]", "is not JSON"),
    "deep.json": (b"[" * 100_000, "is nested too deeply"),
    "not-gzip.json.gz": (b"{}", "cannot be read"),
    "cut.json.gz": (gzip.compress(b"[]" * 1000)[:-9], "cannot be read"),
    "second-line.jsonl": (b'{"id": "a", "ops": []}\n{', "second-line.jsonl:2: is not JSON"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_no_script_is_refused(tmp_path, name):
    data, reason = BAD_FILES[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ScriptError, match=reason):
        load([tmp_path / name])


@pytest.mark.slow
def test_a_gzip_bomb_is_refused_without_being_unpacked(tmp_path):
    bomb = tmp_path / "bomb.json.gz"
    bomb.write_bytes(gzip.compress(bytes(8 << 20)) * (MAX_FILE // (8 << 20) + 1))
    assert bomb.stat().st_size < 100_000
    with pytest.raises(ScriptError, match=f"has more than {MAX_FILE} bytes"):
        load([bomb])


def test_reading_stops_at_the_limit(tmp_path):
    file = tmp_path / "x.json"
    file.write_bytes(bytes(11))
    assert len(read_bounded(file, 11)) == 11
    with pytest.raises(ScriptError, match="more than 10 bytes"):
        read_bounded(file, 10)


def test_a_missing_file_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(ScriptError, match="No such file"):
        load([tmp_path / "absent.json"])
    with pytest.raises(ScriptError, match="there is no script in"):
        load([tmp_path])


@pytest.mark.parametrize(
    ("meta", "reason"),
    [({"format": 2}, "format 2 is not 1"), ([], "an object with presets"), ({"presets": {"x": {"cr1": 0}}}, "cr1")],
)
def test_a_wrong_meta_json_is_refused(tmp_path, meta, reason):
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(ScriptError, match=reason):
        load([tmp_path])


def test_nothing_is_played_when_a_later_file_is_refused(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([ARENA]))
    (tmp_path / "b.json").write_text("[7]")
    played = []
    with pytest.raises(ScriptError, match="an operation is an object"):
        replay([tmp_path], engine="script", progress=lambda *done: played.append(done))
    assert played == []
