"""What README says is what happens: its commands run, its tables are the tool's."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from kickstand.client import Client
from kickstand.commands.demo import server
from kickstand.commands.demo.qemu import story as qemu
from kickstand.commands.demo.qemu.race import CRASHED, SURVIVED, Row
from kickstand.commands.demo.told import HEADS
from kickstand.core.variants import summary, variants

README = Path(__file__).parents[2] / "README.md"


def block(heading, language):
    """The first code block of a language under a heading."""
    section = README.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.search(rf"^```{language}\n(.*?)^```", section, re.DOTALL | re.MULTILINE)[1]


def test_it_is_read_in_five_minutes_and_says_first_for_whom_it_is():
    lines = README.read_text().splitlines()
    assert len(lines) <= 130
    assert lines[2].startswith("For people who ")


def test_the_changelog_is_cut_by_version_and_topic():
    text = (README.parent / "CHANGELOG.md").read_text()
    assert re.findall(r"^## (\S+)", text, re.MULTILINE) == ["Unreleased", "0.2.0", "0.1.0"]
    for version in text.split("\n## ")[2:]:
        assert len(re.findall(r"^### ", version, re.MULTILINE)) >= 3


def test_the_two_commands_come_first():
    commands = re.findall(r"^    (make \w+)", README.read_text(), re.MULTILINE)
    assert commands[:2] == ["make run", "make test"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_the_five_curl_lines_do_what_the_text_says():
    lines = block("Five curl lines", "sh").splitlines()
    assert len(lines) == 5
    with server("--default-vm") as url, Client(url) as client:
        port = url.rpartition(":")[2]
        allocated, region, _, run, kick = (
            [*line.replace("localhost:8000", f"localhost:{port}").split(" ", 1)] for line in lines
        )
        assert shell(allocated)["userspace_addr"] == "0x7f0000000000"
        assert shell(region)["memory_size"] == 65536
        shell(lines[2].replace("localhost:8000", f"localhost:{port}").split(" ", 1))
        first = shell(run)
        assert (first["ret"], first["exit_reason"], first["io"]["data"]) == (0, "KVM_EXIT_IO", "41")
        parked = subprocess.Popen(" ".join(run), shell=True, stdout=subprocess.PIPE)
        while client.vcpu(0)["state"] != "guest":
            pass
        assert shell(kick)["changed"] is True
        out, _ = parked.communicate(timeout=30)
        assert (json.loads(out)["errno"], json.loads(out)["cause"]) == ("EINTR", "userspace_kick")
        assert shell(run)["errno"] == "EINTR"
        assert client.resume()["changed"] is True


def shell(command):
    done = subprocess.run(" ".join(command), shell=True, capture_output=True, check=True, timeout=30)
    return json.loads(done.stdout) if done.stdout else None


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_two_plus_two_is_four_and_then_it_halts():
    lines = block("Two plus two, by curl", "sh").splitlines()
    assert len(lines) == 6
    with server("--default-vm", "--engine", "x86") as url:
        port = url.rpartition(":")[2]
        commands = [[line.replace("localhost:8000", f"localhost:{port}")] for line in lines]
        first = [shell(command) for command in commands][-1]
        assert (first["exit_reason"], bytes.fromhex(first["io"]["data"])) == ("KVM_EXIT_IO", b"4")
        assert shell(commands[-1])["exit_reason"] == "KVM_EXIT_HLT"


def test_the_table_of_variants_is_the_code():
    section = (README.parent / "docs" / "variants.md").read_text().split("## The built-in ones\n")[1]
    told = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|$", section, re.MULTILINE))
    assert told == {name: summary(kind) for name, kind in variants().items()}


def test_the_rows_of_the_demo_have_its_form():
    shown = next(
        found for found in re.findall(r"```\n(.*?)```", README.read_text(), re.DOTALL) if "engine x86" in found
    )
    heads = [head.format(engine="engine x86") for head in HEADS]
    assert shown.splitlines()[:2] == heads
    row = re.compile(r"(\w+) +(yes|no) +(yes|no) +(\d+|-) +(\d+|-|hung) +\d+")
    told = {found[1]: found[3] for line in shown.splitlines()[2:] if (found := row.fullmatch(line))}
    assert told == {"accel_blocker": "no", "clear_on_exit": "yes", "holds": "no", "none": "yes", "sticky": "no"}


def test_the_rows_of_the_demo_with_qemu_have_its_form():
    shown = block("One command, before and after", "").splitlines()
    crashed = ["KVM internal error. Suberror: 1", "EIP=00000005 EFL=00000002", "CS =0800 00008000 0000ffff 00009b00"]
    rows = [
        Row("x86", "none", 400, CRASHED, CRASHED, 10, crashed),
        Row("x86", "hold", 400, SURVIVED, SURVIVED, 400, [], protected(40_000, 21_999_000, 0)),
        Row("x86", "kick", 400, SURVIVED, SURVIVED, 400, [], protected(217_000, 25_358_000, 402)),
    ]
    assert shown == [qemu.HEAD, *(line for row in rows for line in qemu.lines(row))]


def protected(median, longest, kicked):
    return {"drain_ns_median": median, "drain_ns_max": longest, "kicked_out": kicked, "eintr_while_closed": 0}
