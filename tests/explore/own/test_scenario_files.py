"""A user's scenario and a user's variant: what runs, and what is refused with which words."""

import json

import pytest

from kickstand.explore.command import Refused, check_size
from kickstand.explore.matrix import Matrix, explore, replay_token
from kickstand.explore.question import Question
from kickstand.explore.world.scenarios import ScenarioError
from kickstand.explore.world.scenarios.files import load, parse

GOOD = """
name: planted
vms:
  - memory_regions: [{slot: 0, guest_phys_addr: 0x1000, memory_size: 0x1000, userspace_addr: 0x1000}]
    program: [[read, 0x1000]]
vmms:
  - operations:
      - {op: kick}
      - {op: resume}
      - {op: set_memory_region, args: {slot: 0, gpa: 0x1000, size: 0, host: 0x1000}}
      - {op: set_memory_region, args: {slot: 0, gpa: 0x1000, size: 0x1000, host: 0x1000}}
"""
REGION = {"slot": 0, "gpa": 4096, "size": 4096}
VM = {"memory_regions": [REGION], "program": [["read", 4096]]}
VMM = {"operations": [{"op": "kick"}, {"op": "resume"}]}


def one(op, **args):
    return {"operations": [{"op": op, "args": args}]}


@pytest.mark.slow
def test_a_scenario_file_finds_a_planted_bug_and_its_token_replays_it_without_the_file(tmp_path):
    file = tmp_path / "planted.yaml"
    file.write_text(GOOD)
    (verdict,) = explore(str(file), "sticky", "well", properties=["missing_slot"])
    assert verdict.verdict == "violated"
    file.unlink()
    token, _, _ = replay_token(verdict.counterexample.token)
    assert token.scenario == "planted"


def test_json_means_the_same_as_yaml(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"name": "a", "vms": [VM], "vmms": [VMM]}))
    assert load(str(tmp_path / "a.json")).vms[0].regions == parse({"vms": [VM], "vmms": [VMM]}).vms[0].regions


@pytest.mark.parametrize("flags", ["LOG_DIRTY_PAGES", ["LOG_DIRTY_PAGES"], ["LOG_DIRTY_PAGES"] * 2, 1, "0x1"])
def test_flags_are_a_number_a_name_or_names(flags):
    found = parse({"vms": [{**VM, "memory_regions": [{**REGION, "flags": flags}]}], "vmms": [VMM]})
    assert found.vms[0].regions[0].flags == 1


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ([], "the scenario is a mapping"),
        ({"vms": [], "vmms": [VMM]}, "vms is a list of at least one item"),
        ({"vms": [{**VM, "colour": 1}], "vmms": [VMM]}, r"vms\[0\]: 'colour' is none of"),
        (
            {"vms": [{**VM, "program": [["jump"]]}], "vmms": [VMM]},
            r"vms\[0\].programs\[0\]: step \[0\]: 'jump' is none of",
        ),
        (
            {"vms": [{**VM, "memory_regions": [{"slot": 0, "gpa": 1, "size": 4096}]}], "vmms": [VMM]},
            r"vms\[0\].memory_regions\[0\]: 0x1 is not a multiple",
        ),
        ({"vms": [{**VM, "memory_regions": [{"slot": 0, "gpa": 1}]}], "vmms": [VMM]}, "size is missing"),
        ({"vms": [{**VM, "vcpus": 9}], "vmms": [VMM]}, r"vms\[0\].vcpus: 9 is no integer from 1 to 4"),
        ({"vms": [{**VM, "switches": {"exit_test": "never"}}], "vmms": [VMM]}, "'never' is none of before_r, after_r"),
        ({"vms": [VM], "vmms": [{"operations": [{"op": "fly"}]}]}, r"vmms\[0\].operations\[0\].op: 'fly' is none of"),
        ({"vms": [VM], "vmms": [{"operations": [{"op": "get_dirty_log"}]}]}, "get_dirty_log needs slot"),
        ({"vms": [VM], "vmms": [{**VMM, "vm": "other"}]}, "there is no VM 'other'"),
        (
            {"vms": [VM], "vmms": [{**VMM, "loop": True}]},
            r"vmms\[0\].operations\[0\].op: a thread that loops is no VMM",
        ),
        ({"vms": [{**VM, "hotplug": 1}], "vmms": [VMM]}, r"vms\[0\].hotplug is a list of integers from 1 to 7"),
        ({"vms": [{**VM, "faults": [0, 0]}], "vmms": [VMM]}, r"vms\[0\].faults: two are the same"),
        (
            {"vms": [{**VM, "memory_regions": [{"slot": 0, "gpa": 0, "size": 4096, "flags": [["READONLY"]]}]}]},
            r"memory_regions\[0\].flags: \['READONLY'\] is none of",
        ),
        ({"vms": [{**VM, "memory_regions": VM["memory_regions"] * 2}]}, r"\[1\].slot: there is a slot 0 already"),
        (
            {"vms": [VM], "vmms": [one("signal", vcpu=7)]},
            r"operations\[0\].args.vcpu: 7 is none of the vcpus of vm: \[0\]",
        ),
        ({"vms": [VM], "vmms": [one("create_vcpu", id=3)]}, r"args.id: 3 is none of the hotplug of vm: \[\]"),
        ({"vms": [{**VM, "faults": [0]}], "vmms": [one("provide_page", vcpu=1)]}, "1 is none of the faults"),
        (
            {"vms": [{**VM, "memory_regions": [{"slot": 0, "gpa": 0, "size": 1 << 40}]}], "vmms": [VMM]},
            r"memory_regions\[0\].size: 1099511627776 is no integer from 0 to 1073741824",
        ),
        ({"name": "a/b", "vms": [VM], "vmms": [VMM]}, "name: 'a/b' may have letters"),
        ({"vms": [VM]}, "vmms is a list of at least one item"),
        ({"vms": [3], "vmms": [VMM]}, r"vms\[0\] is a mapping with faults, handlers, hotplug"),
        ({"vms": [VM], "vmms": [one("memory_transaction", operations=[])]}, r"args.operations is a list of at least"),
        (
            {
                "vms": [VM],
                "vmms": [one("memory_transaction", operations=[{"op": "set_memory_region", "args": {"slot": 1}}])],
            },
            r"vmms\[0\].operations\[0\].args.operations\[0\].args: set_memory_region needs gpa",
        ),
        (
            {"vms": [VM], "vmms": [one("memory_transaction", operations=[{"op": "kick"}], protect="hope")]},
            "'hope' is none of",
        ),
        ({"vms": [VM], "vmms": [one("signal", vcpu=0, to=1)]}, r"args: 'to' is none of vcpu"),
        (
            {"vms": [{**VM, "memory_regions": [{**REGION, "flags": "DIRTY"}]}], "vmms": [VMM]},
            r"\[0\].flags: 'DIRTY' is none of",
        ),
    ],
)
def test_a_wrong_scenario_is_refused_by_the_field(data, complaint):
    with pytest.raises(ScenarioError, match=complaint):
        parse(data)


def test_a_missing_file_and_broken_text_are_refused(tmp_path):
    with pytest.raises(ScenarioError, match="No such file"):
        load(str(tmp_path / "none.yaml"))
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ScenarioError, match=r"bad\.json"):
        load(str(tmp_path / "bad.json"))


@pytest.mark.parametrize(
    "cell",
    [
        {"scenario": "nothing"},
        {"behaviours": ("rude",)},
        {"vcpus": (5,)},
        {"vmms": 3},
        {"properties": ("speed",)},
        {"strategy": "luck"},
        {"max_states": 0},
    ],
)
def test_wrong_names_and_sizes_are_refused_before_anything_runs(cell):
    with pytest.raises(ScenarioError):
        Matrix(Question(**({"variants": ("sticky",), "behaviours": ("well",)} | cell)))


@pytest.mark.parametrize("vcpus", ["", "vcpus: 2, "])
def test_a_file_that_says_how_many_threads_there_are_is_believed(tmp_path, vcpus):
    file = tmp_path / "mine.yaml"
    region = "memory_regions: [{slot: 0, gpa: 0x1000, size: 0x1000}]"
    file.write_text(f"vms: [{{{vcpus}{region}}}]\nvmms: [{{operations: [{{op: kick}}]}}]")
    cells = list(Question(str(file), ("sticky",), ("well",), properties=("balance",)).split())
    assert [cell.vcpus for cell in cells] == [(2 if vcpus else 1,)]
    with pytest.raises(Refused, match="names its VMM threads: --vmms is for the built-in scenarios"):
        check_size(str(file), None, 2)
    if vcpus:
        with pytest.raises(Refused, match="says how many vCPUs there are, 2: leave --vcpus out"):
            check_size(str(file), 3, 1)
    else:
        check_size(str(file), 3, 1)


@pytest.mark.slow
def test_a_variant_of_ones_own_is_explored(tmp_path):
    file = tmp_path / "lazy.py"
    file.write_text(
        'from kickstand.core.variants.sticky import Sticky\n\n\nclass Lazy(Sticky):\n    """Nobody is kicked."""\n\n'
        "    async def kick(self, task):\n        return True\n"
    )
    (verdict,) = explore("merge", "lazy", "well", properties=["closed_window"], variant_module=str(file))
    assert verdict.verdict == "violated"
    replay_token(verdict.counterexample.token)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("class Lazy\n", r"lazy\.py:1: SyntaxError: expected ':'"),
        ("\nimport nothing_like_it\n", r"lazy\.py:2: ModuleNotFoundError: No module named 'nothing_like_it'"),
        ("\n\nVariant\n", r"lazy\.py:3: NameError: name 'Variant' is not defined"),
        ("x = 1\n", "exactly one subclass of Variant, this has 0"),
    ],
)
def test_a_variant_that_does_not_load_is_refused_with_its_line(tmp_path, text, complaint):
    file = tmp_path / "lazy.py"
    file.write_text(text)
    with pytest.raises(ValueError, match=complaint):
        explore("merge", "lazy", "well", variant_module=str(file))


@pytest.mark.parametrize(
    ("flags", "access", "verdict"),
    [("READONLY", "write", "holds"), ("READONLY", "read", "violated"), (0, "write", "violated")],
)
def test_mmio_is_spurious_where_there_is_ram_for_that_access(tmp_path, flags, access, verdict):
    """The slot is missing for a while: a store to a read-only one is MMIO in any case."""
    region = {**REGION, "flags": flags}
    changes = [{"op": "set_memory_region", "args": {**region, "size": size}} for size in (0, 4096)]
    vm = {"memory_regions": [region], "program": [[access, 4096, *([1] if access == "write" else [])]]}
    (tmp_path / "a.json").write_text(json.dumps({"name": "a", "vms": [vm], "vmms": [{"operations": changes}]}))
    (found,) = explore(str(tmp_path / "a.json"), "none", "well", properties=["spurious_mmio"])
    assert found.verdict == verdict
