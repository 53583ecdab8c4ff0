"""Every command line, suite and link that README and docs/ show is run or followed, with stand-ins filled in."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from kickstand.commands.demo import server

pytest_plugins = ["pytester"]
ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GUIDES = ("scenarios.md", "variants.md", "gallery.md", "models.md")  # whose commands are run by other tests, or made
BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
BLOCKS = [found for page in PAGES if page.name not in GUIDES for found in BLOCK.findall(page.read_text())]
LINES = [line.partition("  #")[0].strip() for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]
COMMANDS = list(dict.fromkeys(line for line in LINES if line.startswith("kickstand ")))
# Run by tests of their own: the curls in test_readme.py and below, the containers by `make compose-test`.
OTHERS = ("make ", "curl ", "printf ", "docker compose ", "python3 -m venv ", ". ", "pip install ")
SMALLER = {
    "--variant holds --any-number": "--variant none --any-number",
    "--matrix --vcpus 3": "--matrix",
    "--matrix": "--matrix --vcpus 1 --variant none",
}  # the same about less
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
    return made


@pytest.fixture(scope="module")
def kickstand(folder, url):
    """Run a command line of README, once; 1 is an answer (a property is violated), 2 is not."""

    @cache
    def run(line):
        command = [sys.executable, "-m", "kickstand", *shlex.split(line)[1:]]
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


def test_what_is_made_has_a_target():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {line.split()[1] for line in LINES if line.startswith("make ")} <= targets


@pytest.mark.parametrize("line", [line for line in COMMANDS if not line.startswith(ELSEWHERE)])
def test_the_command_does_something(line, kickstand, url, token):
    if "kvm" in line and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("no usable /dev/kvm")
    for word, instead in {"http://127.0.0.1:8000": url, "TOKEN": token, **SMALLER}.items():
        line = line.replace(word, instead)
    said = kickstand(line)
    assert said or " -o " in line


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
    options = ("-p", "kickstand.pytest_plugin", "-p", "pytest_asyncio.plugin", "-o", "asyncio_mode=auto")
    result = pytester.runpytest_subprocess(*options, "-W", "error", "-o", "asyncio_default_fixture_loop_scope=function")
    result.assert_outcomes(passed=2)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page):
    targets = re.findall(r'(?:\]\(|src="|srcset=")(?!http)([^)#"]+)', page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_is_named_exists(page):
    named = re.findall(r"`((?:app|tests|docker|benchmarks|docs|examples)/[\w/.-]+)`", page.read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_page_is_reached_from_readme():
    readme = (ROOT / "README.md").read_text()
    assert [page.name for page in PAGES[1:] if f"(docs/{page.name})" not in readme] == []
    assert len(readme.splitlines()) <= 125


def test_the_curls_of_the_api_page_answer(url):
    [block] = [block for kind, block in BLOCKS if kind == "sh" and "/vms/mine" in block]
    for line in block.splitlines():
        done = subprocess.run(
            line.replace("http://localhost:8000", url).replace("localhost:8000", url).replace("curl -s", "curl -sf"),
            shell=True, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, (line, done.stderr)
