"""What README says is what happens: its commands run, its tables are the tool's."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from app.client import Client
from app.core.variants import load_variant_module, summary, variants
from app.demo import server

README = Path(__file__).parents[2] / "README.md"


def block(heading, language):
    """The first code block of a language under a heading."""
    section = README.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)[1]


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


def test_the_table_of_variants_is_the_code():
    section = README.read_text().split("## The variants\n")[1].split("\n## ")[0]
    told = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|$", section, re.MULTILINE))
    assert told == {name: summary(kind) for name, kind in variants().items()}


def test_the_variant_in_the_text_loads(tmp_path, monkeypatch):
    monkeypatch.setattr("app.core.variants._own", {})  # other tests do not know it
    path = tmp_path / "polite.py"
    path.write_text(block("The variants", "python"))
    assert load_variant_module(path).name == "polite"


def test_the_files_that_follow_a_kick_exist():
    for path in re.findall(r"`(app/[\w/.]+)`", README.read_text()):
        assert (README.parent / path).exists(), path
