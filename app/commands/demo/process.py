"""A server of one's own, for as long as a block lasts."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def server(*options: str) -> Generator[str, None, None]:
    """Run a server of our own on a free port; gives its URL and ends it afterwards."""
    command = [sys.executable, "-m", "kickstand", "serve", "--port", "0", "--ephemeral", "--no-default-vm", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield _url_of(process)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _url_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"http://[\w.:\[\]-]+", line):
            return found[0]
    raise RuntimeError(f"the server ended with status {process.wait()} before it was ready")
