"""``make wheel-test``: build the wheel, install it alone in a clean environment, and use it as its user would.

Installs every dependency anew, so it is no part of ``make test``. Prints how long a new user waits.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(600)
started = time.monotonic()


def run(*command, cwd, check=True):
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert not check or done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, cwd=ROOT)
    [found] = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def home(wheel, tmp_path_factory):
    """A folder with an environment that has the wheel and what it asks for, and nothing else."""
    global started  # noqa: PLW0603
    folder = tmp_path_factory.mktemp("home")
    started = time.monotonic()
    venv.create(folder / "env", with_pip=True)
    run("env/bin/python", "-m", "pip", "install", "--quiet", wheel, cwd=folder)
    return folder


def test_a_new_user_sees_a_counterexample_within_two_minutes(home, capsys):
    done = run("env/bin/kickstand", "explore", "--variant", "sticky", "--property", "lost_exit", cwd=home, check=False)
    waited = time.monotonic() - started
    assert done.returncode == 1, done.stderr
    assert "lost_exit is violated" in done.stdout
    with capsys.disabled():
        sys.stdout.write(f"\nfrom an empty folder to the first counterexample: {waited:.0f} s\n")
    assert waited < 120


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
            with httpx.Client(base_url=url) as browser:
                page = browser.get("/").text
                files = re.findall(r'(?:href|src)="(/[^"#]+\.\w+)"', page)
                assert len(files) > 2
                assert {browser.get(path).status_code for path in ["/docs", "/openapi.json", *files]} == {200}
                assert browser.post("/vm/kick").json()["changed"] is True
        finally:
            server.terminate()


def test_the_fixtures_are_there_once_pytest_is(home):
    run("env/bin/python", "-m", "pip", "install", "--quiet", "pytest", cwd=home)
    (home / "test_it.py").write_text("def test_it(kickstand_server):\n    assert kickstand_server.client.kick()\n")
    assert "1 passed" in run("env/bin/python", "-m", "pytest", "-W", "error", "test_it.py", cwd=home).stdout


@pytest.mark.skipif(shutil.which("pipx") is None, reason="no pipx on this machine")
def test_pipx_runs_the_wheel_without_installing_it(wheel, tmp_path):
    explore = ("kickstand", "explore", "--variant", "none", "--property", "spurious_mmio")
    done = run("pipx", "run", "--spec", wheel, *explore, cwd=tmp_path, check=False)
    assert "spurious_mmio is violated" in done.stdout
