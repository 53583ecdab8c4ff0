"""``make clients-test``: clients that others' generators make from the schema work, and compile.

The generators come from PyPI and npm, at the versions named here and in the lock; without a way there the tests skip.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kickstand.commands.demo import server
from kickstand.main import create_app
from kickstand.settings import Settings
from tests.dashboard.tools import node, npm

HERE = Path(__file__).parent
GENERATOR = "openapi-python-client==0.29.1"
KIT = Path(sys.prefix) / "clients"  # what npm installs, kept for the next time
FILES = ("package.json", "package-lock.json", "tsconfig.json", "use.ts")
pytestmark = pytest.mark.timeout(300)


def run(*command, **options):
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=200, **options)


@pytest.fixture(scope="module")
def schema(tmp_path_factory):
    file = tmp_path_factory.mktemp("schema") / "openapi.json"
    file.write_text(json.dumps(create_app(Settings()).openapi()))
    return file


@pytest.fixture(scope="module")
def url():
    with server("--default-vm") as running:
        yield running


def test_a_python_client_creates_a_vm_runs_kicks_and_resumes(schema, url, tmp_path):
    uvx = Path(sys.executable).with_name("uvx")
    if run(uvx, "--from", GENERATOR, "openapi-python-client", "--version").returncode:
        pytest.skip(f"{GENERATOR} cannot be had: PyPI is not reached")
    options = ("--meta", "none", "--output-path", tmp_path / "kickstand_client", "--fail-on-warning")
    made = run(uvx, "--from", GENERATOR, "openapi-python-client", "generate", "--path", schema, *options)
    assert made.returncode == 0, made.stdout + made.stderr
    used = run(uvx, "--with", GENERATOR, "python", HERE / "use.py", url, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert (used.returncode, used.stdout) == (0, "created, ran, kicked, resumed\n"), used.stderr


def test_a_typescript_client_compiles_and_runs(schema, url):
    executable = node()
    if executable is None:
        pytest.skip("no node on this machine")
    KIT.mkdir(exist_ok=True)
    for name in FILES:
        shutil.copy(HERE / name, KIT)
    lock = KIT / "node_modules" / ".package-lock.json"
    if not lock.exists() or lock.stat().st_mtime < (HERE / "package-lock.json").stat().st_mtime:
        installed = run(*npm(executable), "ci", "--no-audit", "--no-fund", cwd=KIT)
        if installed.returncode:
            pytest.skip(f"npm is not reached: {installed.stderr.splitlines()[-1:]}")
    bin_ = KIT / "node_modules" / ".bin"
    made = run(
        executable, bin_ / "openapi-typescript", schema, "--default-non-nullable=false", "-o", "schema.d.ts", cwd=KIT
    )
    assert made.returncode == 0, made.stderr
    compiled = run(executable, bin_ / "tsc", "-p", ".", cwd=KIT)
    assert (compiled.returncode, compiled.stdout) == (0, "")
    assert run(executable, "out/use.js", url, cwd=KIT).stdout == "KVM_EXIT_IO 41\n"
