"""Programs that use /dev/kvm, run under ``kickstand exec``; where there is a real device, it is the oracle."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parent / "programs"
TIMEOUT_S = 60


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str


def run(command, timeout=TIMEOUT_S, **options) -> Outcome:
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, **options)
    return Outcome(done.returncode, done.stdout, done.stderr)


def under_exec(*command, options=(), **more) -> Outcome:
    return run([sys.executable, "-m", "kickstand", "exec", *options, "--", *map(str, command)], **more)


def why_not() -> str:
    from kickstand.exec.host.launch import unusable

    return unusable()


def pytest_collection_modifyitems(items):
    if reason := why_not():
        for item in items:
            if "emulated" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def emulated():
    return under_exec


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """Compile one of ``programs`` by name; skips where no compiler is."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    folder = tmp_path_factory.mktemp("programs")

    def make(name, *flags):
        if compiler is None:
            pytest.skip("no C compiler (cc)")
        if not Path("/usr/include/linux/kvm.h").exists():
            pytest.skip("no kernel headers (linux/kvm.h)")
        target = folder / "-".join((name, *(flag.lstrip("-") for flag in flags)))
        if not target.exists():
            command = [compiler, "-O1", "-Wall", "-Werror", *flags, "-o", target, PROGRAMS / f"{name}.c", "-lpthread"]
            subprocess.run(command, check=True)
        return target

    return make


@pytest.fixture
def on_device():
    """Run a command on the real /dev/kvm; None where there is none."""

    def real(*command, **more):
        return run([*map(str, command)], **more) if os.access("/dev/kvm", os.R_OK | os.W_OK) else None

    return real


async def start_under_exec(*command, options=()):
    """Start it with pipes, and leave it running."""
    words = [sys.executable, "-m", "kickstand", "exec", *options, "--", *map(str, command)]
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*words, stdin=pipe, stdout=pipe, stderr=pipe)
