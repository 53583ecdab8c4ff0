"""What goes wrong is said in one line, with the right exit status."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kickstand.client import Client

HERE = Path(__file__).parent


NOWHERE = "http://127.0.0.1:9"


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
