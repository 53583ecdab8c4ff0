"""The durable store: SQLite in WAL mode behind one writer thread that commits in groups.

Whatever is submitted while a commit is under way goes into the next one, so that a thousand callers wait for two
commits and not for a thousand. A failed commit changes nothing; ``failure`` tells until one succeeds again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import sqlite3
import threading
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kickstand.guests.interpreter import hand_over_promptly
from kickstand.journal.disk.schema import DamagedError, checksum, connect, whole
from kickstand.journal.form import Encoded, encoded

FULL = "full"
NOBODY, LAST_NUMBER = 0, 1 << 53  # no machine has these numbers: a row that says so is damaged
OF_NOBODY = f"DELETE FROM state WHERE typeof(vm) <> 'integer' OR vm <= {NOBODY} OR vm >= {LAST_NUMBER}"  # noqa: S608  our own numbers


@dataclass(slots=True)
class Work:
    """What one transaction writes, in order. ``state`` maps (vm, part) to JSON, or to None to delete.

    A part that ends in ``*``: all that begin so; None: all.
    """

    state: dict[tuple[int, str | None], Encoded | None] = field(default_factory=dict)
    meta: dict[str, int | str] = field(default_factory=dict)
    events: tuple[int, int, float, bytes] | None = None  # first, last, when, lines


@dataclass(frozen=True, slots=True)
class Failure(Exception):
    """Why nothing can be written: ENOSPC or EROFS, and what the store said."""

    errno: int
    detail: str


class Store:
    """The journal's file. ``submit`` and ``wait`` belong to the event loop; the rest of the work to the thread."""

    def __init__(self, path: Path, committed: Callable[[int], object] = lambda _number: None) -> None:
        self.path = path
        self._committed = committed  # told of each commit, in the thread
        self.failure: Failure | None = None
        self.commits = 0
        self.submitted = 0
        self.done = 0
        self._connection = connect(path)
        self._number = int(read_meta(self._connection)[0].get("commits", 0))
        self._queue: list[tuple[int, Work | Callable[[sqlite3.Connection], None]]] = []
        self._more = threading.Condition()
        self._closing = False
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._failed: dict[int, Failure] = {}
        self._thread = threading.Thread(target=self._write, name="journal", daemon=True)
        self._thread.start()

    # -- on the loop -------------------------------------------------------------------------------------

    def submit(self, work: Work | Callable[[sqlite3.Connection], None]) -> int:
        """Have ``work`` written with the next commit, and return its ticket."""
        with self._more:
            self.submitted += 1
            self._queue.append((self.submitted, work))
            self._more.notify()
        return self.submitted

    async def wait(self, ticket: int) -> None:
        """Return once what was submitted under ``ticket`` is on disk. ``Failure``: it is not."""
        if ticket > self.done:
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._waiting.append((ticket, waiter))
            await waiter
        elif failed := self._failed.get(ticket):
            raise failed

    def _finished(self, tickets: range, failure: Failure | None) -> None:
        self.done = tickets[-1]
        self.failure = failure
        self._failed = dict.fromkeys(tickets, failure) if failure else {}
        waiting, self._waiting = self._waiting, []
        for ticket, waiter in waiting:
            if ticket > self.done:
                self._waiting.append((ticket, waiter))
            elif waiter.done():
                continue
            elif failure is not None and ticket in tickets:
                waiter.set_exception(failure)
            else:
                waiter.set_result(None)

    async def close(self) -> None:
        """Write what was submitted, shorten the log, and end the thread."""
        with self._more:
            self._closing = True
            self._more.notify()
        await asyncio.to_thread(self._thread.join)

    # -- in the thread -----------------------------------------------------------------------------------

    def _write(self) -> None:
        hand_over_promptly()
        while True:
            with self._more:
                self._more.wait_for(lambda: self._queue or self._closing)
                batch, self._queue = self._queue, []
            if not batch:
                break
            failure = self._commit([work for _, work in batch])
            tickets = range(batch[0][0], batch[-1][0] + 1)
            self._loop.call_soon_threadsafe(self._finished, tickets, failure)
        with contextlib.suppress(sqlite3.Error):  # the log is read at the next start
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        self._connection.close()

    def _commit(self, batch: Iterable[Work | Callable[[sqlite3.Connection], None]]) -> Failure | None:
        connection = self._connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            for work in batch:
                if isinstance(work, Work):
                    _apply(connection, work)
                else:
                    work(connection)
            _remember(connection, {"commits": self._number + 1})
            connection.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            if connection.in_transaction:
                connection.rollback()
            return Failure(errno.ENOSPC if FULL in str(error) else errno.EROFS, str(error))
        self.commits += 1
        self._number += 1
        self._committed(self._number)
        return None


def _apply(connection: sqlite3.Connection, work: Work) -> None:
    for (vm, part), value in work.state.items():
        if part is None and vm == NOBODY:
            connection.execute(OF_NOBODY)
        elif part is None:
            connection.execute("DELETE FROM state WHERE vm = ?", (vm,))
        elif value is None:
            same = "GLOB" if part.endswith("*") else "="
            connection.execute(f"DELETE FROM state WHERE vm = ? AND part {same} ?", (vm, part))  # noqa: S608  our own
        else:
            kept = vm, part, encoded(value)
            connection.execute("REPLACE INTO state VALUES (?, ?, ?, ?)", (*kept, checksum(*kept)))
    _remember(connection, work.meta)
    if work.events is not None:
        first, last, at, lines = work.events
        row = (last, first, at, zlib.compress(lines, 1))
        connection.execute("REPLACE INTO events VALUES (?, ?, ?, ?, ?)", (*row, checksum(*row)))


def _remember(connection: sqlite3.Connection, facts: Mapping[str, int | str]) -> None:
    rows = [(key, value, checksum(key, value)) for key, value in facts.items()]
    connection.executemany("REPLACE INTO meta VALUES (?, ?, ?)", rows)


def keep_only(uids: Collection[int]) -> Callable[[sqlite3.Connection], None]:
    """Work that removes every machine but these."""

    def work(connection: sqlite3.Connection) -> None:
        for (uid,) in connection.execute("SELECT DISTINCT vm FROM state").fetchall():
            if uid not in uids:
                connection.execute("DELETE FROM state WHERE vm = ?", (uid,))

    return work


# -- reading, with a connection of its own -------------------------------------------------------------------


def read_meta(connection: sqlite3.Connection) -> tuple[dict[str, Any], list[str]]:
    """Everything in ``meta`` that is whole, and the names of what is not."""
    connection.text_factory = _text
    rows = connection.execute("SELECT key, value, sum FROM meta").fetchall()
    return {row[0]: row[1] for row in rows if whole(row)}, [str(row[0]) for row in rows if not whole(row)]


class Rows(dict[str, bytes]):
    """One machine's parts, and the names of those whose checksum is wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.damaged: list[str] = []

    @property
    def name(self) -> str | None:
        """How a person knows the machine, as far as that can be read."""
        with contextlib.suppress(KeyError, TypeError, ValueError):
            return str(json.loads(self["vm"])["id"])
        return None

    def check(self) -> None:
        """``DamagedError`` names the parts that are not what was written."""
        if self.damaged:
            raise DamagedError(f"the checksum of {', '.join(sorted(self.damaged))} is wrong")


def read_state(connection: sqlite3.Connection) -> dict[int, Rows]:
    """Every machine's parts, in the order in which the machines were made."""
    connection.text_factory = _text
    found: dict[int, Rows] = {}
    for row in connection.execute("SELECT vm, part, value, sum FROM state ORDER BY vm, part"):
        vm, part, value, _ = row
        rows = found.setdefault(vm if isinstance(vm, int) and 0 < vm < LAST_NUMBER else NOBODY, Rows())
        rows[str(part)] = value if isinstance(value, bytes) else repr(value).encode()
        if not whole(row):
            rows.damaged.append(str(part))
    return found


def read_rows_of_events(connection: sqlite3.Connection) -> Iterator[tuple[int, bool]]:
    """Every batch of events: how many there are in it, and whether it is whole."""
    for row in connection.execute("SELECT last, first, at, lines, sum FROM events ORDER BY last"):
        good = row[-1] is None or whole(row)
        yield (row[0] - row[1] + 1 if good else 0), good


def read_events(connection: sqlite3.Connection, after: int) -> Iterator[tuple[int, int, bytes]]:
    """The batches of events that reach beyond ``after`` and are whole: first, last, lines."""
    query = "SELECT last, first, at, lines, sum FROM events WHERE last > ? ORDER BY last"
    for row in connection.execute(query, (after,)):
        last, first, _, packed, sum_ = row
        with contextlib.suppress(zlib.error, TypeError):
            if sum_ is None or whole(row):
                yield first, last, zlib.decompress(packed)


def last_event(connection: sqlite3.Connection) -> int:
    """The number of the last event that is kept whole; 0: there is none."""
    query = "SELECT last, first, at, lines, sum FROM events ORDER BY last DESC"
    return next((row[0] for row in connection.execute(query) if row[-1] is None or whole(row)), 0)


def _text(data: bytes) -> str:
    return data.decode(errors="replace")  # what is damaged is for the checksum to say


def trim(connection: sqlite3.Connection, oldest: float, size: int) -> None:
    """Forget events from before ``oldest`` (seconds since the epoch), and the oldest ones beyond ``size`` bytes."""
    connection.execute("DELETE FROM events WHERE at < ?", (oldest,))
    kept = 0
    for last, length in connection.execute("SELECT last, length(lines) FROM events ORDER BY last DESC").fetchall():
        kept += length
        if kept > size:
            connection.execute("DELETE FROM events WHERE last <= ?", (last,))
            return


def checkpoint(path: Path) -> None:
    """Move the log into the file and shorten it; readers and the writer are not waited for.

    The writer has to wait while the log is shortened, so that most of it is moved before.
    """
    connection = connect(path)
    try:
        for mode in ("PASSIVE", "TRUNCATE"):
            connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()
    finally:
        connection.close()
