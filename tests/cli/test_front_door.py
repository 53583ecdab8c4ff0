"""What a newcomer meets first: help, versions, tables that fit, nothing lost by a slip."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from kickstand import __version__
from kickstand.cli import app
from kickstand.client import Client
from kickstand.commands.client import show
from kickstand.commands.client.options import PROPERTIES, VARIANTS
from kickstand.commands.demo import server
from kickstand.core.variants import variants
from kickstand.explore.search import properties


def test_programs_come_before_client_commands_in_help(say):
    code, out, _ = say("-h")
    names = re.findall(r"^  (\w+)  ", out.split("Commands:")[1], re.MULTILINE)
    assert code == 0
    assert names[:4] == ["serve", "demo", "explore", "replay"]
    assert names[-3:] == ["vm", "vcpu", "memory"]


def commands(group, path=()):
    for name, command in group.commands.items():
        yield (*path, name)
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))


def test_every_command_has_help_that_fits_and_says_what_each_value_is(say):
    import typer.main

    for path in commands(typer.main.get_command(app)):
        if path == ("exec",):  # it reads its own command line: most of it is the program's
            continue
        code, out, _ = say(*path, "-h")
        assert code == 0
        assert max(map(len, out.splitlines())) <= 80, path
        assert not re.search(r"^  -.*<(?:str|path)>", out, re.MULTILINE), (path, out)
        assert not re.search(r"^  [\w-]+ .*\.\.\.$", out, re.MULTILINE), (path, out)  # a summary that was cut


def test_nothing_asked_shows_what_there_is(say):
    for path in ([], ["vm"], ["vcpu"], ["memory"]):
        code, out, err = say(*path)
        assert (code, err) == (2, "")
        assert "Commands:" in out


def test_a_shell_completes_commands_and_options():
    def completed(*words):
        env = os.environ | {"_KICKSTAND_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(("kickstand", *words)),
                            "COMP_CWORD": str(len(words))}  # fmt: skip
        command = [sys.executable, "-c", "from kickstand.cli import app; app(prog_name='kickstand')"]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False).stdout.split()

    assert completed("ex") == ["explore", "exec"]
    assert completed("demo", "--eng") == ["--engine"]


def test_the_demo_says_what_it_does_before_it_has_done_it():
    """Into a pipe, too."""
    command = [sys.executable, "-m", "kickstand", "demo", "--engine", "script"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout.readline().startswith("Two pages")
        assert demo.poll() is None
        demo.terminate()


def test_the_version(say):
    assert say("--version") == (0, f"kickstand {__version__}\n", "")


def test_help_names_the_variants_and_properties_that_there_are():
    assert VARIANTS.split(", ") == sorted(variants())
    assert PROPERTIES.split(", ") == list(properties.PROPERTIES)


def test_deleting_needs_a_name_and_says_what_is_gone(say, url):
    with Client(url) as client:
        client.create_vm(id="gone")
        assert say("vm", "delete", url=url)[0] == 2
        assert say("vm", "delete", "a", "--vm", "b", url=url)[0] == 2
        assert say("vm", "delete", "gone", url=url) == (0, "deleted gone\n", "")
        client.create_vm(id="gone")
        assert json.loads(say("vm", "delete", "--vm", "gone", "--json", url=url)[1]) == {"deleted": "gone"}
        assert [vm["id"] for vm in client.vms()["vms"]] == ["default"]


@pytest.mark.parametrize("name", ["a/b", "..", "%2e", "a b", "?x"])
def test_a_name_is_one_segment_of_a_path_whatever_is_in_it(name, say, url):
    code, _, err = say("vm", "state", "--vm", name, url=url)
    assert code == 1
    assert "E" in err


def test_values_come_from_files_and_from_standard_input(say, url, tmp_path, monkeypatch):
    (tmp_path / "p.json").write_text('[["out", 16, 7]]')
    assert say("vcpu", "program", "1", f"@{tmp_path / 'p.json'}", url=url)[0] == 0
    assert json.loads(say("vcpu", "run", "1", "--json", url=url)[1])["io"]["data"] == "07"
    at = json.loads(say("memory", "allocate", "0x1000", "--json", url=url)[1])["userspace_addr"]
    (tmp_path / "raw").write_bytes(b"\x00\xff\n")
    assert say("memory", "write", at, f"@{tmp_path / 'raw'}", url=url)[0] == 0
    assert say("memory", "read", at, "4", url=url)[1] == "00ff0a00\n"
    assert say("memory", "read", at, "3", "-o", tmp_path / "back", url=url)[1] == ""
    assert (tmp_path / "back").read_bytes() == b"\x00\xff\n"
    command = [sys.executable, "-m", "kickstand", "vm", "script", "-", "--url", url, "--json"]
    script = json.dumps([{"op": "get_mp_state", "args": {"vcpu": 0}}])
    done = subprocess.run(command, input=script, capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout)["results"][0]["mp_state"] == "RUNNABLE"


def test_a_token_comes_from_a_file(say, tmp_path):
    (tmp_path / "token").write_text("s3cret\n")
    with server("--default-vm", "--token-file", str(tmp_path / "token")) as guarded:
        assert say("vm", "list", url=guarded)[0] == 1
        assert say("vm", "list", "--token-file", tmp_path / "token", url=guarded)[0] == 0
        env = os.environ | {"KICKSTAND_TOKEN_FILE": str(tmp_path / "token"), "KICKSTAND_URL": guarded}
        command = [sys.executable, "-m", "kickstand", "vm", "list"]
        assert "default" in subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout


def test_a_snapshot_goes_to_a_file_and_back(say, url, tmp_path):
    assert say("vm", "snapshot", "-o", tmp_path / "x", url=url) == (0, "", "")
    assert json.loads(say("vm", "restore", tmp_path / "x", "--as", "twin", "--json", url=url)[1])["kicked"] is True
    assert say("vm", "delete", "twin", url=url)[0] == 0


def test_nested_answers_are_indented_and_fit(say, url):
    out = say("vm", "state", url=url)[1]
    assert max(map(len, out.splitlines())) <= 80
    assert "{" not in out
    assert re.search(r"^vcpus +2$", out, re.MULTILINE)
    assert "switches        rwsem_steal no, killable no, exit_test before_r\n" in out


def vcpu(number, **changes):
    counters = dict.fromkeys(("runs", "exits", "eintr", "spins"), 123_456_789)
    shape = {"id": number, "state": "blocked", "mp_state": "INIT_RECEIVED", "requests": ["KVM_REQ_USERSPACE_KICK"],
             "exit_reason": "KVM_EXIT_INTERNAL_ERROR", "thread": {"behaviour": "careless"}}  # fmt: skip
    return shape | {"counters": counters} | changes


def test_the_table_of_vcpus_has_no_column_that_says_nothing_and_fits():
    rows = show.vcpu_table([vcpu(4095), vcpu(1)])
    assert all(word in rows[1] for word in ("INTERNAL_ERROR", "INIT_RECEIVED", "USERSPACE_KICK", "123M"))  # uncut
    usual = show.vcpu_table([vcpu(number, mp_state="RUNNABLE", exit_reason="KVM_EXIT_IO") for number in (0, 1)])
    assert max(map(len, usual)) <= 80
    idle = show.vcpu_table([vcpu(0, mp_state="RUNNABLE", requests=[], thread=None)])
    assert idle[0].split() == ["vcpu", "state", "last", "exit", "runs", "exits", "EINTR", "spins"]


def test_page_numbers_are_told_as_ranges():
    assert show.plain([1, 2, 3, 7]) == "1-3, 7 (4)"
    assert show.plain([5]) == "5"
    assert show.plain([]) == "-"
    assert show.plain([True, False]) == "yes, no"


def test_a_server_says_where_its_state_is_what_it_restored_and_how_to_stop(tmp_path):
    def served():
        command = [sys.executable, "-m", "kickstand", "serve", "--port", "0", "--state", str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                return [next(process.stdout).strip() for _ in range(5)]
            finally:
                process.terminate()

    first = served()
    assert first[0] == "Kickstand serves"
    assert first[1].startswith("http://127.0.0.1:")
    assert first[2:] == [f"state: {tmp_path}", f"docs:  {first[1]}docs", "stop:  Ctrl-C"]
    assert served()[2] == f"state: {tmp_path}, restored default"
