"""Events as they are kept: batches of lines, read back in order with every hole named."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from app.journal.store import read_events
from app.runtime.events import Record


@dataclass(frozen=True, slots=True)
class Batch:
    """Events that follow each other; ``lost`` before them are not known."""

    records: list[Record]
    lost: int


def encode(records: Iterable[Record]) -> bytes:
    """One line an event: its name, then its data."""
    return "\n".join([f"{record.name}\t{record.data}" for record in records]).encode()


def decode(lines: bytes) -> list[Record]:
    """The events of a batch."""
    return [_record(*line.split("\t", 1)) for line in lines.decode().split("\n")]


def _record(name: str, data: str) -> Record:
    fields = json.loads(data)
    envelope = (fields.pop("seq"), fields.pop("t_ns"), fields.pop("vm"), fields.pop("vcpu"))
    return Record(*envelope, name, fields, data)


def read(path: Path, after: int) -> Batch | None:
    """The next batch after event ``after``, in a transaction of its own; None: there is no more."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=5)
    try:
        found = read_events(connection, after)
    finally:
        connection.close()
    if found is None:
        return None
    first, _, lines = found
    return Batch([record for record in decode(lines) if record.seq > after], max(0, first - after - 1))
