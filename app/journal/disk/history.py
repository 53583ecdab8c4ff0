"""Events as they are kept: batches of lines, read back in order with every hole named."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kickstand.journal.disk.schema import reading
from kickstand.journal.disk.store import read_events
from kickstand.runtime.events import Record


@dataclass(frozen=True, slots=True)
class Batch:
    """Events that follow each other; ``lost`` before them are not known."""

    records: list[Record]
    lost: int


def encode(records: Iterable[Record]) -> bytes:
    """One line an event: its name, then its data."""
    return "\n".join([f"{record.name}\t{record.data}" for record in records]).encode()


def decode(lines: bytes) -> list[Record]:
    """The events of a batch. ``ValueError``, ``KeyError``, ``AttributeError``: these are none."""
    return [_record(*line.split("\t", 1)) for line in lines.decode().split("\n")]


def _record(name: str, data: str) -> Record:
    fields = json.loads(data)
    envelope = (fields.pop("seq"), fields.pop("t_ns"), fields.pop("vm"), fields.pop("vcpu"))
    return Record(*envelope, name, fields, data)


def read(path: Path, after: int) -> Batch | None:
    """The next batch after event ``after`` that can be read; None: there is no more. A damaged one is lost."""
    with contextlib.suppress(sqlite3.Error), reading(path) as connection:
        for first, last, lines in read_events(connection, after):
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                found = decode(lines)
                if [record.seq for record in found] == list(range(first, last + 1)):
                    return Batch([record for record in found if record.seq > after], max(0, first - after - 1))
    return None
