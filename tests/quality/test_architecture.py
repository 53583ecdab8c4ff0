"""The house rules that a machine can keep: floors, a pure core, clean locks, no traces of a machine."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = sorted((ROOT / "kickstand" / "core").rglob("*.py"))
LOCKS = sorted(ROOT.glob("requirements*.lock"))
IMPURE = {"asyncio", "concurrent", "datetime", "multiprocessing", "random", "secrets", "threading", "time", "_thread"}


def imported(path):
    """The top-level names of all imports anywhere in a file, those for type checkers included."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").partition(".")[0]


def tracked_files():
    """Files that are or would be committed, as text."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a git checkout")
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip(f"git ls-files: {listed.stderr.strip()}")
    for name in filter(None, listed.stdout.split("\0")):
        data = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b"\0"
        if b"\0" not in data:
            yield name, data.decode(errors="replace")


@pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(ROOT)))
def test_core_has_no_loop_no_clock_no_chance_and_no_threads(path):
    assert not IMPURE.intersection(imported(path))


@pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(ROOT)))
def test_core_names_only_the_standard_library_and_itself(path):
    assert set(imported(path)) <= sys.stdlib_module_names | {"kickstand"}


def test_importing_core_loads_the_standard_library_and_core_only():
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in CORE]
    program = f"import json, sys\nimport {', '.join(modules)}\nprint(json.dumps(sorted(sys.modules)))"
    flags = ["-S", "-B"]  # without site-packages: what needs more than the standard library cannot even be imported
    done = subprocess.run(
        [sys.executable, *flags, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded = {name for name in json.loads(done.stdout) if name.partition(".")[0] == "kickstand"}
    assert {name for name in loaded if not name.startswith("kickstand.core")} == {"kickstand"}


@pytest.mark.slow
def test_imports_point_one_way():
    pytest.importorskip("importlinter")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command; lint_imports_command()",
            "--no-cache",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_are_three_locks():
    assert [path.name for path in LOCKS] == ["requirements-cluster.lock", "requirements-dev.lock", "requirements.lock"]


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_every_locked_package_has_a_version_and_hashes(path):
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip()]
    assert lines
    for line in lines:
        assert re.match(r"[a-z0-9][a-z0-9.-]*(?:\[[a-z0-9,-]+\])?==[\w.]+ .*--hash=sha256:[0-9a-f]{64}", line), line


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_a_lock_names_no_index(path):
    assert not re.findall(r"^.*(?:index-url|find-links|trusted-host|://| @ ).*$", path.read_text(), re.MULTILINE)


def test_each_lock_contains_the_smaller_ones():
    def pins(name):
        return set(re.findall(r"^\S+==\S+", (ROOT / name).read_text(), re.MULTILINE))

    assert pins("requirements.lock") <= pins("requirements-cluster.lock") <= pins("requirements-dev.lock")


def test_no_file_names_a_path_of_somebodys_machine():
    home = re.compile(r"/(?:home|Users)/\w+/|/root/\w|[A-Z]:\\Users|" + re.escape(str(ROOT)) + r"/")
    found = [f"{name}: {match[0]}" for name, text in tracked_files() if (match := home.search(text))]
    assert not found
