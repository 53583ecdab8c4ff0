"""Bytes to a file or to standard output."""

from __future__ import annotations

import sys
from pathlib import Path


def write(data: bytes, output: Path | None) -> None:
    """Write to ``output``; to standard output where it is None or ``-``. An ``OSError`` names which."""
    try:
        _write(data, output)
    except OSError as error:  # of a disk that is full, say
        error.filename = error.filename or str(output or "standard output")
        raise


def _write(data: bytes, output: Path | None) -> None:
    if output is None or str(output) == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        output.write_bytes(data)
