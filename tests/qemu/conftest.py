"""QEMU, unmodified, under ``kickstand exec``."""

from __future__ import annotations

import shutil

import pytest


def why_not() -> str:
    from kickstand.exec.host.launch import unusable

    if shutil.which("qemu-system-x86_64") is None:
        return "no qemu-system-x86_64 (Debian and Ubuntu: qemu-system-x86, seabios)"
    return unusable()


@pytest.fixture(scope="session")
def qemu():
    """The name of the program; skips where it is not, or cannot be run under exec."""
    if reason := why_not():
        pytest.skip(reason)
    return "qemu-system-x86_64"
