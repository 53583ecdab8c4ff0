"""Hyperlight under ``kickstand exec``: ``make hyperlight-test``.

Microsoft's sandbox from PyPI, whose VMM knows KVM alone: a Python and a JavaScript interpreter as WebAssembly in guests
of 64-bit code. Its wheels go into an environment of their own in a cache folder (``HYPERLIGHT_DIR`` takes another).
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from .conftest import under_exec, why_not

PACKAGES = [
    "hyperlight-sandbox",
    *(f"hyperlight-sandbox-{part}" for part in ("backend-wasm", "python-guest", "javascript-guest")),
]
TIMEOUT_S = 200
MADE = """
    from hyperlight_sandbox import Sandbox
    sandbox = Sandbox(backend="wasm", module="{module}_guest.path")
"""


@pytest.fixture(scope="session")
def python() -> Path:
    """The interpreter of an environment that has Hyperlight."""
    if reason := why_not():
        pytest.skip(reason)
    given = os.environ.get("HYPERLIGHT_DIR")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(given) if given else Path(base) / "kickstand" / "hyperlight"
    interpreter = folder / "bin" / "python"
    if not interpreter.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    command = [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"pip cannot get {PACKAGES[0]}: {done.stderr.strip()[-300:]}")
    return interpreter


def guest(python, module, code, mode="precise"):
    """What a program prints that has a sandbox."""
    text = textwrap.dedent(MADE.format(module=module)) + textwrap.dedent(code)
    outcome = under_exec(python, "-c", text, options=("--mode", mode, "--summary"), timeout=TIMEOUT_S)
    assert outcome.status == 0, outcome.err
    return outcome.out.splitlines()


@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize("mode", ["precise", "fast"])
def test_a_python_guest_computes(python, mode):
    assert guest(python, "python", 'print(sandbox.run("print(6*7)").stdout)', mode)[0] == "42"


@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize("mode", ["precise", "fast"])
def test_a_javascript_guest_computes(python, mode):
    assert guest(python, "javascript", 'print(sandbox.run("console.log(6*7)").stdout)', mode)[0] == "42"


@pytest.mark.timeout(TIMEOUT_S)
def test_a_guest_calls_a_tool_of_its_host(python):
    code = """
        sandbox.register_tool("add", lambda a, b: a + b)
        print(sandbox.run("print(call_tool('add', a=40, b=2))").stdout)
    """
    assert guest(python, "python", code)[0] == "42"


@pytest.mark.timeout(TIMEOUT_S)
def test_a_snapshot_brings_back_what_a_guest_has_forgotten(python):
    code = """
        sandbox.run("x = 42")
        kept = sandbox.snapshot()
        sandbox.run("x = 0")
        sandbox.restore(kept)
        print(sandbox.run("print(x)").stdout)
    """
    assert guest(python, "python", code)[0] == "42"
