"""Generated scripts: the same on every machine for a seed, equal on emulator and device, short when they differ."""

import copy
import json

import pytest

from kickstand.scripts.differential import __main__ as command
from kickstand.scripts.differential import both
from kickstand.scripts.differential.both import Differential
from kickstand.scripts.differential.campaign import campaign
from kickstand.scripts.differential.code.encodings import HLT, MODES, program
from kickstand.scripts.differential.mutate import Mutations
from kickstand.scripts.differential.quirks import QUIRKS, explained
from kickstand.scripts.differential.shrink import blank, shrink
from kickstand.scripts.language.parse import parse_operations, plain
from kickstand.scripts.language.script import check, parse_trace
from tests.long import either

SEEDS = either(8, 100)


async def made(seed, emulator="x86"):
    return await Differential(emulator, emulator)._make(seed)


@pytest.mark.slow
async def test_a_seed_always_gives_the_same_script_and_a_valid_one():
    for seed in range(6):
        operations, answers = await made(seed)
        assert (operations, answers) == await made(seed)
        check(operations)
        assert answers[0] == {"ret": 0, "errno": None}


@pytest.mark.slow
async def test_scripts_cover_every_kind_of_operation_and_exit():
    ops, exits, ioctls = set(), set(), set()
    for seed in range(60):
        operations, answers = await made(seed)
        ops |= {operation.op for operation in operations}
        ioctls |= {operation.args.name for operation in operations if operation.op == "ioctl"}
        exits |= {answer.get("exit_reason") for answer in answers}
    wanted = (
        "set_memory_region memory_transaction get_dirty_log clear_dirty_log kick resume start_run finish_run signal"
    )
    wanted += " create_irqchip set_run_flag run get_regs hash_host interrupt nmi set_mp_state"
    wanted += " get_irqchip set_irqchip irq_line irq_line_status set_gsi_routing signal_msi"
    assert set(wanted.split()) <= ops
    asked = "CPUID2 MSRS VCPU_EVENTS DEBUGREGS XSAVE FPU XCRS SREGS2 GUEST_DEBUG CLOCK MSR_FILTER"
    assert all(any(name.endswith(what) for name in ioctls) for what in asked.split())
    assert {"IO", "MMIO", "HLT", "INTR"} <= exits


@pytest.mark.parametrize("mode", MODES)
def test_a_generated_program_ends_as_it_was_told(mode):
    import random

    code = program(mode, random.Random(1), 10, HLT)
    assert code.endswith(HLT)
    assert code == program(mode, random.Random(1), 10, HLT)


@pytest.mark.kvm
@pytest.mark.slow
async def test_generated_scripts_are_answered_alike_by_emulator_and_device():
    report = await campaign(range(SEEDS))
    assert report.scripts == SEEDS
    assert [line for finding in report.unexplained for line in finding.lines()] == []


async def test_a_difference_is_shrunk_to_the_shortest_script(monkeypatch):
    """The script engine knows no x86 code: as a stand-in for a faulty emulator it must differ, and early."""
    _, finding = await Differential("x86", "script").run(3)
    assert finding is not None
    assert finding.quirk is None
    assert len(finding.operations) <= 4
    trace = json.loads(finding.lines()[-1])
    assert parse_trace(trace, "x").operations[-1].result == finding.device


async def test_shrinking_keeps_what_matters_and_only_that():
    async def fails(items):
        return {3, 17} <= set(items)

    assert await shrink(list(range(40)), fails) == [3, 17]
    assert len(await shrink(list(range(40)), fails, budget=3)) > 2


async def test_blanking_keeps_the_bytes_that_matter():
    async def fails(data):
        return data[5] == 5 and data[9:11] == bytes([9, 10])

    assert await blank(bytes(range(20)), fails) == bytes([*[0x90] * 5, 5, *[0x90] * 3, 9, 10, *[0x90] * 9])


def test_every_quirk_has_a_reason_and_a_test_of_its_own():
    run = parse_operations(
        [{"op": "create_irqchip"}, {"op": "create_vcpu", "args": {"id": 0}}, {"op": "run", "args": {"vcpu": 0}}]
    )
    assert explained(run, {"exit_reason": "INTERNAL_ERROR"}, {"errno": "ENOSPC"}).name == "run-without-memory"
    assert explained(run, {"exit_reason": "IO", "port": 0x21}, {"exit_reason": "HLT"}).name == "pic-ports"
    assert explained(run, {"exit_reason": "IO", "port": 0x80}, {"exit_reason": "HLT"}) is None
    assert explained(run, {"errno": "EFAULT"}, {"exit_reason": "MMIO"}).name == "unbacked-slot"
    assert explained(run[1:], {"exit_reason": "IO", "port": 0x21}, {"exit_reason": "HLT"}) is None
    frame = explained(run, {"exit_reason": "INTERNAL_ERROR", "suberror": 3}, {"exit_reason": "SHUTDOWN"})
    assert frame.name == "frame-in-a-hole"
    failure = {"exit_reason": "INTERNAL_ERROR", "suberror": 1}
    assert explained(run, {"errno": "EFAULT"}, failure).name == "unbacked-slot"
    assert explained(run, {"exit_reason": "HLT"}, failure).name == "interpreted"
    assert explained(run, {"exit_reason": "HLT"}, {"exit_reason": "INTERNAL_ERROR", "suberror": 3}) is None
    paging = parse_operations([{"op": "set_sregs", "args": {"vcpu": 0, "preset": "long64"}}])
    assert explained([*run[:-1], *paging, run[-1]], {"exit_reason": "HLT"}, failure) is None
    nmi = parse_operations([{"op": "nmi", "args": {"vcpu": 0}}])
    assert explained([*nmi, *nmi, run[-1]], {"exit_reason": "HLT"}, {"exit_reason": "IO"}).name == "nmi-behind-nmi"
    assert explained([*nmi, run[-1]], {"exit_reason": "HLT"}, {"exit_reason": "IO"}) is None
    scan = [{"op": "arena", "args": {"name": "A", "size": 4096}}]
    scan += [{"op": "write_host", "args": {"arena": "A", "offset": 0, "hex": "0fbdf0f4"}}]
    scan = parse_operations([*scan, {"op": "get_regs", "args": {"vcpu": 0}}])
    high = {"regs": {"rsi": 0x1_0000_0005, "rax": 0}}
    assert explained(scan, {"regs": {"rsi": 5, "rax": 0}}, high).name == "scan-of-zero"
    assert explained(scan, {"regs": {"rsi": 6, "rax": 0}}, high) is None
    assert explained(scan[2:], {"regs": {"rsi": 5, "rax": 0}}, high) is None
    tables = {"preset": "long64", "changes": {"gdt": {"base": 0x80, "limit": 23}}}
    for access, name in (("bb", "handler-unchecked"), ("93", "handler-unchecked"), ("9b", None)):
        gate = [{"op": "arena", "args": {"name": "A", "size": 4096}}]
        gate += [{"op": "write_host", "args": {"arena": "A", "offset": 0x80, "hex": "00" * 13 + access + "af00"}}]
        gate += [{"op": "set_sregs", "args": {"vcpu": 0, **tables}}, {"op": "run", "args": {"vcpu": 0}}]
        found = explained(parse_operations(gate), {"exit_reason": "SHUTDOWN"}, {"exit_reason": "HLT"})
        assert (found and found.name) == name
    assert all(len(quirk.reason) > 40 for quirk in QUIRKS)
    names = {
        "run-without-memory",
        "unbacked-slot",
        "pic-ports",
        "frame-in-a-hole",
        "interpreted",
        "scan-of-zero",
        "nmi-behind-nmi",
        "handler-unchecked",
    }
    assert {quirk.name for quirk in QUIRKS} == names


RECORDED = {
    "id": "recorded",
    "family": "x",
    "ops": [
        {"op": "arena", "args": {"name": "A", "size": 65536}},
        {"op": "write_host", "args": {"arena": "A", "offset": 4096, "hex": "8b0300c8f4"}},
        {
            "op": "set_memory_region",
            "args": {"slot": 0, "flags": 0, "gpa": 0, "size": 65536, "host": {"arena": "A", "offset": 0}},
        },
        {"op": "create_vcpu", "args": {"id": 0}},
        {"op": "set_sregs", "args": {"vcpu": 0, "preset": "prot32"}},
        {"op": "set_regs", "args": {"vcpu": 0, "regs": {"rip": 4096, "rflags": 2, "rbx": 1 << 20}}},
        {"op": "run", "args": {"vcpu": 0, "kick_after_ms": 3}},
        {"op": "get_dirty_log", "args": {"slot": 0}},
        {"op": "clear_dirty_log", "args": {"slot": 0, "first_page": 0, "num_pages": 64, "bits": [3]}},
    ],
}


def test_a_mutation_is_the_same_for_a_seed_a_valid_script_and_something_else_than_what_it_was_made_of():
    trace = parse_trace(RECORDED, "recorded")
    mutations = Mutations([trace])
    seen = set()
    for seed in range(200):
        made = mutations.script(seed)
        assert made == Mutations([trace]).script(seed)
        check(made)
        seen.add(json.dumps(plain(made)))
    assert len(seen) > 50
    assert not any("kick_after_ms" in text for text in seen)


def test_mutations_of_a_folder_are_played_on_both_and_a_folder_without_scripts_is_refused(
    monkeypatch, capsys, tmp_path
):
    monkeypatch.setattr(Differential.__init__, "__defaults__", ("x86", "x86", None))
    assert command.main(["--mutate", str(tmp_path)]) == 2
    assert "no script" in capsys.readouterr().err
    (tmp_path / "recorded.jsonl").write_text(json.dumps(RECORDED) + "\n")
    assert command.main(["--mutate", str(tmp_path), "--count", "40"]) == 0
    assert capsys.readouterr().out.endswith("0 unexplained differences\n")


async def test_a_guest_that_spins_is_compared_up_to_there(monkeypatch):
    monkeypatch.setattr(both, "SHRUNK_TIMEOUT_MS", 5)
    ops = copy.deepcopy(RECORDED["ops"][:-2])
    ops[1]["args"]["hex"] = "ebfe"
    ops[-1]["args"] = {"vcpu": 0}
    sides = Differential("x86", "x86", Mutations([parse_trace(RECORDED | {"ops": ops}, "spins")]))
    sides._mutations.script = lambda _seed: parse_operations(ops)
    assert await sides.run(7) == (len(ops), None)
    assert (sides.spun, sides.spun_alone) == ([7], [])
    ops[1]["args"]["hex"] = "f4"
    assert await sides.run(8) == (len(ops), None)
    assert sides.spun == [7]


def test_the_command_prints_a_summary_and_says_whether_something_differed(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(Differential.__init__, "__defaults__", ("x86", "x86", None))
    assert command.main(["--count", "2"]) == 0
    assert capsys.readouterr().out.endswith("known quirks seen: none\n0 unexplained differences\n")
    monkeypatch.setattr(Differential.__init__, "__defaults__", ("x86", "script", None))
    assert command.main(["--count", "1", "--first", "3", "--out", str(tmp_path / "x.jsonl")]) == 1
    assert (tmp_path / "x.jsonl").read_text().startswith('{"id": "differential/3"')
