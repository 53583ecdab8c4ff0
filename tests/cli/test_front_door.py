"""What a newcomer meets first: help, versions, errors of one line, tables that fit, nothing lost by a slip."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kickstand import __version__
from kickstand.cli import app
from kickstand.client import Client
from kickstand.commands.client import show
from kickstand.commands.client.options import PROPERTIES, VARIANTS
from kickstand.commands.client.trouble import run
from kickstand.commands.demo import server
from kickstand.core.variants import variants
from kickstand.explore.search import properties

HERE = Path(__file__).parent
NOWHERE = "http://127.0.0.1:9"
SCRIPT = [
    {"op": "create_vcpu", "args": {"id": 0, "program": [["out", 16, 1], ["hlt"]]}},
    {"op": "run", "args": {"vcpu": 0}},
]


@pytest.fixture(scope="module")
def url():
    with server("--default-vm", "--vcpus", "2") as running:
        yield running


@pytest.fixture
def say(capfd, monkeypatch):
    """Run a command line in this process: exit status, standard output, standard error."""
    monkeypatch.setenv("COLUMNS", "80")

    def say(*arguments, url=None):
        if url is not None:
            monkeypatch.setenv("KICKSTAND_URL", url)
        status = run(app, [str(argument) for argument in arguments])
        return (status, *capfd.readouterr())

    return say


WRONG = [  # the command line, its exit status, a word of what is said
    (["nope"], 2, "nope"),
    (["--nope"], 2, "--nope"),
    (["vcpu", "run"], 2, "VCPU"),
    (["vcpu", "run", "x"], 2, "VCPU"),
    (["vcpu", "run", "0", "--reply", "zz"], 2, "hex"),
    (["vcpu", "regs", "0", "rip"], 2, "NAME=VALUE"),
    (["vcpu", "regs", "0", "rip=x"], 2, "number"),
    (["vcpu", "program", "0", "[["], 2, "JSON"),
    (["vcpu", "program", "0", "[" * 100_000], 2, "JSON"),
    (["vcpu", "program", "0", "@/nope/x"], 1, "/nope/x"),
    (["vcpu", "start", "0", "--behaviour", "odd"], 2, "careless"),
    (["memory", "set", "0", "zz", "1", "1"], 2, "GPA"),
    (["memory", "write", "0x1000", "xyz"], 2, "hex"),
    (["memory", "transaction", "@/"], 1, "/"),
    (["vm", "delete"], 2, "NAME"),
    (["vm", "create", "--engine", "odd"], 2, "script"),
    (["vm", "kick", "--timeout-ms", "-1"], 2, "--timeout-ms"),
    (["vm", "restore", "/nope/x"], 1, "/nope/x"),
    (["vm", "list", "--token-file", "/nope/x"], 1, "/nope/x"),
    (["vm", "list", "--url", NOWHERE], 1, "kickstand serve"),
    (["vm", "list", "--url", "nowhere"], 2, "http://"),
    (["vm", "list", "--url", "http://[::1"], 2, "port"),
    (["vm", "list", "--token", "\N{SNOWMAN}"], 1, "printable"),
    (["vm", "list", "--token", "a\nb"], 1, "printable"),
    (["top", "--interval", "0"], 2, "--interval"),
    (["top", "--count", "0"], 2, "--count"),
    (["trace", "--format", "odd"], 2, "perfetto"),
    (["events", "--limit", "0"], 2, "--limit"),
    (["demo", "--engine", "odd"], 2, "x86"),
    (["demo", "--rounds", "0"], 2, "--rounds"),
    (["serve", "--port", "99999"], 2, "--port"),
    (["serve", "--engine", "odd"], 2, "x86"),
    (["serve", "--variant", "odd", "--ephemeral"], 2, "sticky"),
    (["serve", "--host", "0.0.0.0", "--ephemeral"], 2, "token"),
    (["serve", "--token-file", "/nope/x", "--ephemeral"], 1, "/nope/x"),
    (["serve", "--state", "/proc/nope"], 1, "/proc/nope"),
    (["serve", "--variant-module", "/nope/x.py"], 2, "/nope/x.py"),
    (["replay"], 2, "FILE"),
    (["replay", "/nope/x.json"], 1, "/nope/x.json"),
    (["replay", "/dev/null"], 1, "JSON"),
    (["replay", "/nope/x.json", "-o", "y"], 2, "--record"),
    (["replay", "/nope/x.json", "--engine", "odd"], 2, "x86"),
    (["explore", "--strategy", "odd"], 2, "pct"),
    (["explore", "--behaviour", "odd"], 2, "careless"),
    (["explore", "--vcpus", "9"], 2, "--vcpus"),
    (["explore", "--replay", "nonsense"], 2, "ks"),
    (["explore", "--replay", "ks3:a:b"], 2, "token"),
    (["explore", "--report", "/proc/nope", "--variant", "none", "--property", "balance"], 1, "/proc/nope"),
    (["doctor", "--state", "/nope/x"], 2, "/nope/x"),
    (["serve", "--uds", "/nope/x", "--ephemeral"], 1, "/nope/x"),
    (["serve", "--state", "/dev/null"], 1, "/dev/null"),
    (["vm", "script", "/dev/null"], 2, "JSON"),
    (["memory", "read", "0x1000", "-5"], 2, "-5"),
    (["vcpu", "program", "0", "3"], 2, "list"),
    (["vm", "script", "{}"], 2, "list"),
    (["memory", "transaction", "{}"], 2, "list"),
    (["vcpu", "sregs", "0", "--set", "[1]"], 2, "object"),
    (["explore", "--variant-module", f"{HERE}/ends.py"], 2, "ends.py:3: SystemExit"),
    (["explore", f"{HERE}/ends.py"], 2, "SystemExit"),
    (["explore", f"{HERE}/ends.py", "--ledger"], 2, "--ledger"),
    (["serve", "--token-file", "/dev/null", "--ephemeral"], 1, "token"),
    (["serve", "--uds", "x" * 200, "--ephemeral"], 1, "too long"),
    (["explore", "--scenario", "/"], 2, "merge"),
]


ANSWERING = [wrong for wrong in WRONG if wrong[0][:1] != ["serve"]]  # what has an answer has --json, too


@pytest.mark.parametrize(("arguments", "status", "word"), WRONG, ids=lambda value: str(value)[:60])
def test_what_is_wrong_is_said_in_one_line_with_the_right_exit_status(arguments, status, word, say):
    code, out, err = say(*arguments)
    assert (code, out) == (status, "")
    assert err.startswith("kickstand: ")
    assert err.count("\n") == 1
    assert word in err
    assert not re.search(r"Traceback|[{}]|Errno", err)


@pytest.mark.parametrize(("arguments", "status", "word"), ANSWERING[::5], ids=lambda value: str(value)[:60])
def test_under_json_an_error_is_an_object(arguments, status, word, say):
    code, out, err = say(*arguments, "--json")
    told = json.loads(err)
    assert (code, out, told["status"]) == (status, "", status)
    assert "error" in told


def test_under_json_a_refusal_of_the_server_is_its_problem(say, url):
    code, _, err = say("vm", "kick", "--vm", "nobody", "--json", url=url)
    assert code == 1
    assert json.loads(err)["problem"]["errno"] == "ENODEV"


def test_every_complaint_of_the_server_is_in_the_line(say, url):
    code, _, err = say("memory", "transaction", "[{}]", url=url)
    assert code == 1
    assert err.count("\n") == 1
    assert "slot" in err
    assert "memory_size" in err


def test_a_file_that_cannot_be_written_is_one_line(say, url):
    assert say("trace", "-o", "/nope/x", url=url) == (1, "", "kickstand: /nope/x: No such file or directory\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("command", [("trace",), ("vm", "snapshot")])
def test_a_disk_that_is_full_is_one_line_with_the_file(command, say, url):
    assert say(*command, "-o", "/dev/full", url=url) == (1, "", "kickstand: /dev/full: No space left on device\n")


def test_a_server_that_is_no_kickstand_is_said_to_be_none(say, monkeypatch):
    import httpx

    monkeypatch.setattr(httpx.Client, "request", lambda *_args, **_kwargs: httpx.Response(200, text="<html>"))
    code, _, err = say("vm", "list")
    assert code == 1
    assert "no Kickstand server" in err


def test_a_reader_that_has_seen_enough_ends_the_command(url):
    command = f"{sys.executable} -m kickstand events --json --url {url} | head -1"
    with (
        subprocess.Popen(command, shell=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as pipe,
        Client(url) as client,
    ):
        assert json.loads(pipe.stdout.readline())["event"] == "snapshot"
        while pipe.poll() is None:  # the command learns of it with its next line
            client.kick()
            client.resume()
        assert pipe.stderr.read() == ""


# -- help ----------------------------------------------------------------------------------------------------


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


# -- answers -------------------------------------------------------------------------------------------------


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


# -- replay --------------------------------------------------------------------------------------------------


def test_a_script_without_recorded_answers_is_played_and_nothing_passes(say, tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(SCRIPT))
    code, out, _ = say("replay", file, "--engine", "script")
    assert code == 0
    assert '"exit_reason": "IO"' in out
    assert out.splitlines()[-1].startswith("1 played, nothing compared")
    assert "passed" not in out
    told = json.loads(say("replay", file, "--engine", "script", "--json")[1])
    assert (told["passed"], told["compared"], told["operations"]) == (0, 0, 2)
    assert told["unrecorded"][0]["answers"][1]["port"] == 16


@pytest.mark.parametrize("name", ["mine.json", "mine.jsonl", "mine.json.gz", "mine.jsonl.gz"])
def test_recorded_answers_are_compared_from_then_on(name, say, tmp_path):
    file = tmp_path / name
    text = json.dumps({"id": "mine", "family": "own", "ops": SCRIPT}).encode()
    file.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    assert say("replay", file, "--engine", "script", "--record")[0] == 0
    code, out, _ = say("replay", file, "--engine", "script")
    assert (code, out) == (0, "compared 2 of 2 operations\n1 passed, 0 failed\n")
    kept = file.read_bytes()
    assert say("replay", file, "--engine", "script", "--record")[1].endswith("1 passed, 0 failed\n")
    assert file.read_bytes() == kept or name.endswith(".json")
    data = json.loads(gzip.decompress(kept) if name.endswith(".gz") else kept)
    assert (data["family"], data["ops"][0]["result"]) == ("own", {"ret": 0, "errno": None})


def test_what_was_recorded_is_not_recorded_over(say, tmp_path):
    file = tmp_path / "mine.json"
    wrong = [{**SCRIPT[0], "result": {"ret": -1, "errno": "EEXIST"}}, SCRIPT[1]]
    file.write_text(json.dumps(wrong))
    code, out, _ = say("replay", file, "--engine", "script", "--record")
    assert (code, out.splitlines()[-1]) == (1, "0 passed, 1 failed")
    assert json.loads(file.read_text()) == wrong


def test_answers_are_recorded_elsewhere(say, tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(SCRIPT))
    assert say("replay", file, "--engine", "script", "--record", "-o", tmp_path / "out.jsonl")[0] == 0
    assert json.loads(file.read_text()) == SCRIPT
    assert json.loads((tmp_path / "out.jsonl").read_text())[1]["result"]["exit_reason"] == "IO"
    assert say("replay", file, "--engine", "script", "--record", "-o", "/nope/out")[0] == 1


def test_a_script_comes_from_standard_input():
    command = [sys.executable, "-m", "kickstand", "replay", "-", "--engine", "script", "--record", "-o", "-"]
    done = subprocess.run(command, input=json.dumps(SCRIPT), capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout.splitlines()[0])[1]["result"]["port"] == 16


def test_a_partly_recorded_script_says_how_much_was_compared(say, tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps([{**SCRIPT[0], "result": {"ret": 0, "errno": None}}, SCRIPT[1]]))
    assert say("replay", file, "--engine", "script")[1] == "compared 1 of 2 operations\n1 passed, 0 failed\n"
