"""The durable store: SQLite in WAL mode behind one writer thread that commits in groups.

Whatever is submitted while a commit is under way goes into the next one, so that a thousand callers wait for two
commits and not for a thousand. A failed commit changes nothing; ``failure`` tells until one succeeds again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import sqlite3
import threading
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.guests.interpreter import hand_over_promptly
from app.journal.schema import connect

FULL = "full"


@dataclass(slots=True)
class Work:
    """What one transaction writes. ``state`` maps (vm, part) to bytes, or to None to delete; part None: all parts."""

    state: dict[tuple[int, str | None], bytes | None] = field(default_factory=dict)
    meta: dict[str, int | str] = field(default_factory=dict)
    events: tuple[int, int, float, bytes] | None = None  # first, last, when, lines


@dataclass(frozen=True, slots=True)
class Failure(Exception):
    """Why nothing can be written: ENOSPC or EROFS, and what the store said."""

    errno: int
    detail: str


class Store:
    """The journal's file. ``submit`` and ``wait`` belong to the event loop; the rest of the work to the thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failure: Failure | None = None
        self.commits = 0
        self.submitted = 0
        self.done = 0
        self._connection = connect(path)
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
            connection.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            if connection.in_transaction:
                connection.rollback()
            return Failure(errno.ENOSPC if FULL in str(error) else errno.EROFS, str(error))
        self.commits += 1
        return None


def _apply(connection: sqlite3.Connection, work: Work) -> None:
    for (vm, part), value in work.state.items():
        if part is None:
            connection.execute("DELETE FROM state WHERE vm = ?", (vm,))
        elif value is None:
            connection.execute("DELETE FROM state WHERE vm = ? AND part = ?", (vm, part))
        else:
            connection.execute("REPLACE INTO state VALUES (?, ?, ?)", (vm, part, value))
    connection.executemany("REPLACE INTO meta VALUES (?, ?)", work.meta.items())
    if work.events is not None:
        first, last, at, lines = work.events
        connection.execute("REPLACE INTO events VALUES (?, ?, ?, ?)", (last, first, at, zlib.compress(lines, 1)))


# -- reading, with a connection of its own -------------------------------------------------------------------


def read_meta(connection: sqlite3.Connection) -> dict[str, Any]:
    """Everything in ``meta``."""
    return dict(connection.execute("SELECT key, value FROM meta"))


def read_state(connection: sqlite3.Connection) -> dict[int, dict[str, bytes]]:
    """Every machine's parts, in the order in which the machines were made."""
    found: dict[int, dict[str, bytes]] = {}
    for vm, part, value in connection.execute("SELECT vm, part, value FROM state ORDER BY vm, part"):
        found.setdefault(vm, {})[part] = value
    return found


def read_events(connection: sqlite3.Connection, after: int) -> tuple[int, int, bytes] | None:
    """The first batch of events that reaches beyond ``after``: first, last, lines."""
    row = connection.execute(
        "SELECT first, last, lines FROM events WHERE last > ? ORDER BY last LIMIT 1", (after,)
    ).fetchone()
    return None if row is None else (row[0], row[1], zlib.decompress(row[2]))


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
