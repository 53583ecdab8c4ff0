"""The journal's file: what makes it ours, its versions, and how an older one becomes a newer one.

A file that is not ours, or newer than this program, is refused and not touched. A damaged one is kept aside, and what
of it is still whole is taken over: every row carries a checksum.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from kickstand.settings import SettingsError

APPLICATION_ID = 0x4B49434B  # "KICK"
# Each entry brings a file from the version that is its index to the next one.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
    CREATE TABLE state (vm INTEGER, part TEXT, value BLOB NOT NULL, PRIMARY KEY (vm, part)) WITHOUT ROWID;
    CREATE TABLE events (last INTEGER PRIMARY KEY, first INTEGER NOT NULL, at REAL NOT NULL, lines BLOB NOT NULL);
    """,
    # Events from before have none: what they are packed with has a checksum of its own.
    """
    ALTER TABLE meta ADD COLUMN sum INTEGER;
    ALTER TABLE state ADD COLUMN sum INTEGER;
    ALTER TABLE events ADD COLUMN sum INTEGER;
    UPDATE meta SET sum = checksum(key, value);
    UPDATE state SET sum = checksum(vm, part, value);
    """,
)
VERSION = len(MIGRATIONS)
WAL_LIMIT = 16 << 20
TABLES = {
    "meta": ("key", "value"),
    "state": ("vm", "part", "value"),
    "events": ("last", "first", "at", "lines"),
}
BESIDE = ("", "-wal", "-shm")
# What the machine lacks, rather than the file: nothing is damaged then.
OF_THE_HOST = {
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY,
}  # fmt: skip
PRIMARY_CODE = 0xFF


class DamagedError(Exception):
    """The file is a journal no more, or not a whole one."""


def checksum(*values: float | str | bytes) -> int:
    """CRC-32 over a row's values, each with its length so that none runs into the next."""
    crc = 0
    for value in values:
        data = value if isinstance(value, bytes) else repr(value).encode()
        crc = zlib.crc32(data, zlib.crc32(b"%d:" % len(data), crc))
    return crc


def whole(row: tuple[Any, ...]) -> bool:
    """The last value of a row is the checksum of the others."""
    *values, found = row
    return bool(found == checksum(*values))


def connect(path: Path) -> sqlite3.Connection:
    """Open the journal's file, made if it is not there. ``sqlite3.Error`` as it comes."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)
    for pragma in ("journal_mode=WAL", "synchronous=FULL", f"journal_size_limit={WAL_LIMIT}", "wal_autocheckpoint=0"):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    return connection


@contextlib.contextmanager
def reading(path: Path) -> Generator[sqlite3.Connection, None, None]:
    """A connection that changes nothing."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=5)) as connection:
        connection.execute("PRAGMA query_only=1")
        yield connection


def prepare(path: Path) -> None:
    """Make or check the file and bring it to this version.

    ``SettingsError``: not ours, from a newer version, or it cannot be written. ``DamagedError``: set it aside.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        path.chmod(0o600)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=5)) as connection:
            check(connection, path)
            _migrate(connection)
    except sqlite3.Error as error:
        if error.sqlite_errorcode & PRIMARY_CODE in OF_THE_HOST:
            raise SettingsError(f"the journal {path} cannot be used: {error}") from error
        raise DamagedError(str(error)) from error
    except OSError as error:
        raise SettingsError(f"the journal {path} cannot be used: {error.strerror or error}") from error


def check(connection: sqlite3.Connection, path: Path) -> None:
    """``SettingsError``: not ours, or newer; ``DamagedError``, ``sqlite3.Error``: not whole."""
    version = _pragma(connection, "user_version")
    owner = _pragma(connection, "application_id")
    if owner != APPLICATION_ID and connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
        raise SettingsError(f"{path} is a database of another program; choose another directory (--state)")
    if version > VERSION:
        raise SettingsError(
            f"{path} has version {version}; this Kickstand knows versions up to {VERSION} and leaves it alone"
        )
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise DamagedError(str(found))


def _migrate(connection: sqlite3.Connection) -> None:
    connection.create_function("checksum", -1, checksum, deterministic=True)
    for version in range(_pragma(connection, "user_version"), VERSION):
        connection.executescript(
            f"BEGIN IMMEDIATE; {MIGRATIONS[version]} PRAGMA user_version={version + 1};"
            f"PRAGMA application_id={APPLICATION_ID}; COMMIT;"
        )


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def salvage(damaged: Path, fresh: Path) -> int:
    """Take every row that is whole over into an empty journal; how many of the state there were.

    The rows are read from both ends, because a page that cannot be read ends a walk.
    """
    taken = 0
    with reading(damaged) as old, contextlib.closing(sqlite3.connect(fresh)) as new, new:
        for table, names in TABLES.items():
            columns, key = ", ".join((*names, "sum")), names[: 2 if table == "state" else 1]
            for way in ("ASC", "DESC"):
                order = ", ".join(f"{name} {way}" for name in key)
                rows = _readable(old, f"SELECT {columns} FROM {table} ORDER BY {order}")  # noqa: S608  our own names
                marks = ", ".join("?" * (len(names) + 1))
                for row in filter(whole, rows):
                    done = new.execute(f"INSERT OR IGNORE INTO {table} ({columns}) VALUES ({marks})", row)  # noqa: S608
                    taken += done.rowcount if table == "state" else 0
    return taken


def _readable(connection: sqlite3.Connection, query: str) -> Iterator[tuple[Any, ...]]:
    with contextlib.suppress(sqlite3.Error, ValueError):
        yield from connection.execute(query)
