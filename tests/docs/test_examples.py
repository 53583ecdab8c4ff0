"""Every example does what its page says, as far as this machine has what it needs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kickstand.commands.demo import server

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
pytestmark = pytest.mark.slow


def run(*command, **options):
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=110, **options)


def test_every_example_is_on_the_page():
    page = (EXAMPLES / "README.md").read_text()
    listed = {link for link in re.findall(r"\]\(([^)]+)\)", page) if not link.startswith("..")}
    assert listed == {path.name for path in EXAMPLES.iterdir()} - {"README.md", "__pycache__"}


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_two_plus_two():
    with server("--default-vm", "--engine", "x86") as url:
        done = run("sh", EXAMPLES / "two_plus_two.sh", env=os.environ | {"KICKSTAND_URL": url})
    first, second = (json.loads(text) for text in re.findall(r"\{.*?\}\}?(?=\{|$)", done.stdout.replace("\n", "")))
    assert (first["io"]["data"], second["exit_reason"]) == ("34", "KVM_EXIT_HLT"), done.stderr


def test_the_suite():
    options = ("-p", "kickstand.pytest_plugin", "-p", "no:cacheprovider", "-q")
    env = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)}
    done = run(sys.executable, "-m", "pytest", *options, EXAMPLES / "test_pause.py", "-c", os.devnull, env=env)
    assert "2 passed" in done.stdout, done.stdout


@pytest.mark.skipif(shutil.which("go") is None, reason="no Go compiler on this machine")
def test_the_go_client():
    with server("--default-vm") as url:
        assert run("go", "run", EXAMPLES / "client.go", url).stdout == "KVM_EXIT_IO 41\n"


@pytest.mark.skipif(shutil.which("rustc") is None, reason="no Rust compiler on this machine")
def test_the_rust_client(tmp_path):
    made = run("rustc", "-O", "-o", tmp_path / "client", EXAMPLES / "client.rs")
    assert (made.returncode, made.stderr) == (0, "")
    with server("--default-vm") as url:
        assert run(tmp_path / "client", url.removeprefix("http://")).stdout == "KVM_EXIT_IO 41\n"


def test_the_job_is_one():
    job = yaml.safe_load((EXAMPLES / "github-actions.yml").read_text())["jobs"]["pause-and-memslots"]
    assert all("run" in step or "uses" in step for step in job["steps"])


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        ("--variant-module polite.py --variant polite --behaviour well --property lost_exit", 0, "holds"),
        ("--scenario grow_too_late.yaml --variant sticky --property missing_slot", 1, "is violated"),
    ],
)  # fmt: skip
def test_the_explorer_takes_them(options, status, said):
    command = [sys.executable, "-m", "kickstand", "explore", *options.split()]
    done = run(*command, cwd=EXAMPLES, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == status, done.stderr
    assert said in done.stdout
