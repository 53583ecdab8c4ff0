"""``kickstand exec`` with a server beside the program. Nothing else of the command line is loaded for it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from kickstand.exec.command import main

if TYPE_CHECKING:
    from kickstand.main import Beside

MOST_VMS = 1 << 12


def run(arguments: Sequence[str]) -> int:
    """Run a program; returns the exit status."""
    return main(arguments, beside)


def beside(address: str) -> Beside:
    """A server for the VMs of a program; its address is printed, not among the program's output, once it answers.

    ``ValueError``: this is no address, or cannot be listened at.
    """
    # The framework takes longer to load than a program may run.
    from kickstand.main import Beside
    from kickstand.settings import Limits, Settings

    import_module("kickstand.exec.device.kvm")  # now, so that no client has to wait for it later
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        raise ValueError(f"--serve takes HOST:PORT, not {address!r}")
    settings = Settings(host=host or "127.0.0.1", port=int(port), default_vm=False, limits=Limits(vms=MOST_VMS))
    return Beside(settings, _tell)


def _tell(url: str) -> None:
    sys.stderr.write(f"kickstand exec: {url}\n")
    sys.stderr.flush()
