"""Every command line and every suite that README shows is run, with the words that stand for something filled in."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app.demo import server

pytest_plugins = ["pytester"]
ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
LINES = [line.partition("  #")[0].strip() for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]
COMMANDS = [line for line in LINES if line.startswith("kickstand ")]
OTHERS = ("curl ", "docker compose ", "python3 -m venv ", ". ", "pip install ")  # run by tests of their own
SMALLER = {"--matrix --vcpus 3": "--matrix", "--matrix": "--matrix --vcpus 1 --variant none"}  # the same about less
# Run below, by tests/explore/test_cluster.py, and by tests/explore/test_gallery.py.
ELSEWHERE = ("kickstand serve", "kickstand explore --matrix --cluster", "kickstand explore --gallery")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def url():
    with server("--default-vm") as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with what the commands name: traces, and the variant of one's own."""
    made = tmp_path_factory.mktemp("readme")
    (made / "tests").symlink_to(ROOT / "tests")
    (made / "polite.py").write_text(next(block for kind, block in BLOCKS if "class Polite" in block))
    return made


@pytest.fixture(scope="module")
def kickstand(folder, url):
    """Run a command line of README; 1 is an answer (a property is violated), 2 is not."""

    def run(line):
        command = [sys.executable, "-m", "app", *shlex.split(line)[1:]]
        env = os.environ | {"KICKSTAND_URL": url, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=100)
        assert done.returncode in (0, 1), done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def token(kickstand):
    return re.search(r"--replay (\S+)", kickstand("kickstand explore --variant none --property spurious_mmio"))[1]


def test_every_line_is_run_by_some_test():
    assert [line for line in LINES if line and not line.startswith(("kickstand ", *OTHERS))] == []
    assert len(COMMANDS) > 10


@pytest.mark.parametrize("line", [line for line in COMMANDS if not line.startswith(ELSEWHERE)])
def test_the_command_does_something(line, kickstand, url, token):
    if "kvm" in line and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("no usable /dev/kvm")
    for word, instead in {"http://127.0.0.1:8000": url, "TOKEN": token, **SMALLER}.items():
        line = line.replace(word, instead)
    said = kickstand(line)
    assert said or " -o " in line


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("kickstand serve")])
def test_the_server_starts(line, folder):
    command = [sys.executable, "-m", "app", *shlex.split(line)[1:], "--port", "0", "--ephemeral"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "Kickstand serves\n"
        process.send_signal(signal.SIGTERM)


def test_the_first_counterexample_is_what_the_text_says(kickstand):
    [line] = [line for line in COMMANDS if line.endswith("--variant sticky --property lost_exit")]
    said = kickstand(line)
    assert "lost_exit is violated" in said
    assert "VMM" in said
    assert "CPU0" in said


def test_the_suite_in_the_text_passes(pytester, monkeypatch):
    suite = next(block for kind, block in BLOCKS if kind == "python" and "kickstand_server" in block)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(suite)
    options = ("-p", "app.pytest_plugin", "-p", "pytest_asyncio.plugin", "-o", "asyncio_mode=auto")
    result = pytester.runpytest_subprocess(*options, "-W", "error", "-o", "asyncio_default_fixture_loop_scope=function")
    result.assert_outcomes(passed=2)


def test_every_link_to_a_file_leads_somewhere():
    targets = re.findall(r'(?:\]\(|src="|srcset=")(?!http)([^)#"]+)', README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
