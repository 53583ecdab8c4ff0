"""``make wheel-test``: build the wheel, install it alone in a clean environment, and use it as its user would.

Installs every dependency anew, so it is no part of ``make test``. Prints how much work a new user waits for. The tests
of README and of the pages run once more there, from a folder that has no sources.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).with_name("uv")
PAGES = (
    "Makefile", "CHANGELOG.md", "README.md", "docs", "examples", "tests/docs", "tests/golden/data",
    "tests/exec/programs", "tests/__init__.py",
)  # fmt: skip
FILES = [f"tests/docs/test_{name}.py" for name in ("commands", "examples", "guides", "readme")]
SOURCES = "not link and not named and not reached and not golden"  # what is about the sources stays with `make test`
pytestmark = pytest.mark.timeout(600)


def run(*command, cwd, check=True):
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=500)
    assert not check or done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done


def install(folder, *packages):
    """Into the environment of ``folder``, as pip would, at several times its speed."""
    run(UV, "pip", "install", "--quiet", "--python", "env/bin/python", *packages, cwd=folder)


def spent():
    """CPU seconds of everything that was run: beside others it takes longer, whoever does it."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, cwd=ROOT)
    [found] = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def home(wheel, tmp_path_factory):
    """A folder with an environment that has the wheel and what it asks for, and nothing else."""
    folder = tmp_path_factory.mktemp("home")
    run(UV, "venv", "--quiet", "--python", sys.executable, "env", cwd=folder)
    install(folder, wheel)
    return folder


def test_a_new_user_sees_a_counterexample_soon(wheel, tmp_path, capsys):
    began = spent()
    run(UV, "venv", "--quiet", "--python", sys.executable, "env", cwd=tmp_path)
    install(tmp_path, wheel)
    explore = ("env/bin/kickstand", "explore", "--variant", "sticky", "--property", "lost_exit")
    done = run(*explore, cwd=tmp_path, check=False)
    waited = spent() - began
    assert done.returncode == 1, done.stderr
    assert "lost_exit is violated" in done.stdout
    with capsys.disabled():
        sys.stdout.write(f"\nfrom an empty folder to the first counterexample: {waited:.1f} s of CPU\n")
    assert waited < 30


def test_the_token_of_the_counterexample_replays(home):
    shown = run("env/bin/kickstand", "explore", "--variant", "sticky", "--property", "lost_exit", cwd=home, check=False)
    token = re.search(r"--replay (\S+)", shown.stdout)[1]
    replayed = run("env/bin/kickstand", "explore", "--replay", token, cwd=home, check=False)
    assert "confirmed on the shipped runtime" in replayed.stdout


def test_the_demo_ends_as_the_explorer_says(home):
    rows = json.loads(run("env/bin/kickstand", "demo", "--rounds", "2", "--json", cwd=home).stdout)["rows"]
    assert {row["engine"] for row in rows} == {"script", "x86"}
    assert all(row["as_expected"] for row in rows)


def test_the_server_shows_the_dashboard_and_every_file_of_it(home):
    command = ["env/bin/kickstand", "serve", "--port", "0", "--ephemeral"]
    with subprocess.Popen(command, cwd=home, stdout=subprocess.PIPE, text=True) as server:
        try:
            url = next(line.strip() for line in server.stdout if line.startswith("http"))
            with httpx.Client(
                base_url=url, timeout=120
            ) as browser:  # the first page imports much, on a busy machine slowly
                page = browser.get("/").text
                files = re.findall(r'(?:href|src)="(/[^"#]+\.\w+)"', page)
                assert len(files) > 2
                assert {browser.get(path).status_code for path in ["/docs", "/openapi.json", *files]} == {200}
                assert browser.post("/vm/kick").json()["changed"] is True
        finally:
            server.terminate()


def test_the_fixtures_are_there_once_pytest_is(home):
    install(home, "pytest")
    (home / "test_it.py").write_text("def test_it(kickstand_server):\n    assert kickstand_server.client.kick()\n")
    assert "1 passed" in run("env/bin/python", "-m", "pytest", "-W", "error", "test_it.py", cwd=home).stdout


def test_what_the_pages_show_works_with_the_wheel_alone(home):
    """Every command line, suite and curl: the tests of the pages themselves, where there are no sources."""
    install(home, "pytest", "pytest-asyncio")
    (home / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\nmarkers = slow\n"
    )
    for name in PAGES:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, home / name)
    assert not (home / "kickstand").exists()
    options = ("-q", "-p", "no:cacheprovider", "-k", SOURCES)
    done = run("env/bin/python", "-m", "pytest", *options, *FILES, cwd=home, check=False)
    assert done.returncode == 0, done.stdout[-5000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 20


@pytest.mark.skipif(shutil.which("pipx") is None, reason="no pipx on this machine")
def test_pipx_runs_the_wheel_without_installing_it(wheel, tmp_path):
    explore = ("kickstand", "explore", "--variant", "none", "--property", "spurious_mmio")
    done = run("pipx", "run", "--spec", wheel, *explore, cwd=tmp_path, check=False)
    assert "spurious_mmio is violated" in done.stdout
