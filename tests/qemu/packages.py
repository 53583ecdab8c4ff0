"""What Debian has and is not installed here: unpacked into a cache folder (``QEMU_TEST_DIR`` takes another)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest


def cache() -> Path:
    given = os.environ.get("QEMU_TEST_DIR")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(base) / "kickstand" / "qemu"


def unpacked(package: str) -> Path:
    """The folder of a package's files; skips where it cannot be had."""
    folder = cache() / package
    if (folder / "usr").is_dir() or (folder / "boot").is_dir():
        return folder
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            pytest.skip(f"{package} is Debian's, and there is no {tool}")
    folder.mkdir(parents=True, exist_ok=True)
    done = _run("apt-get", "download", "-q", package, cwd=folder)
    if done.returncode:
        pytest.skip(f"apt-get cannot get {package}: {done.stderr.strip()}")
    (archive,) = folder.glob(f"{package}_*.deb")
    subprocess.run(["dpkg-deb", "-x", archive, folder], check=True)
    archive.unlink()
    return folder


def depends_on(package: str, pattern: str) -> str:
    """The package that a package without files of its own stands for."""
    said = _run("apt-cache", "depends", package) if shutil.which("apt-cache") else None
    found = re.search(rf"Depends: ({pattern})", said.stdout) if said else None
    if found is None:
        pytest.skip(f"apt does not know {package}")
    return found[1]


def _run(*command, cwd=None):
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
