"""The journal's file: what makes it ours, its versions, and how an older one becomes a newer one.

A file that is not ours, or newer than this program, is refused and not touched. A damaged one is kept aside.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from pathlib import Path

from app.settings import SettingsError

APPLICATION_ID = 0x4B49434B  # "KICK"
# Each entry brings a file from the version that is its index to the next one.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
    CREATE TABLE state (vm INTEGER, part TEXT, value BLOB NOT NULL, PRIMARY KEY (vm, part)) WITHOUT ROWID;
    CREATE TABLE events (last INTEGER PRIMARY KEY, first INTEGER NOT NULL, at REAL NOT NULL, lines BLOB NOT NULL);
    """,
)
VERSION = len(MIGRATIONS)
WAL_LIMIT = 16 << 20


class DamagedError(Exception):
    """The file is a journal no more."""


def connect(path: Path) -> sqlite3.Connection:
    """Open the journal's file, made if it is not there. ``sqlite3.Error`` as it comes."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)
    for pragma in ("journal_mode=WAL", "synchronous=FULL", f"journal_size_limit={WAL_LIMIT}", "wal_autocheckpoint=0"):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    return connection


def prepare(path: Path) -> None:
    """Make or check the file and bring it to this version.

    ``SettingsError``: not ours, from a newer version, or it cannot be written. ``DamagedError``: set it aside.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        path.chmod(0o600)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=5)) as connection:
            _check(connection, path)
            _migrate(connection)
    except sqlite3.OperationalError as error:
        raise SettingsError(f"the journal {path} cannot be used: {error}") from error
    except sqlite3.DatabaseError as error:
        raise DamagedError(str(error)) from error
    except OSError as error:
        raise SettingsError(f"the journal {path} cannot be used: {error.strerror or error}") from error


def _check(connection: sqlite3.Connection, path: Path) -> None:
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
    for version in range(_pragma(connection, "user_version"), VERSION):
        connection.executescript(
            f"BEGIN IMMEDIATE; {MIGRATIONS[version]} PRAGMA user_version={version + 1};"
            f"PRAGMA application_id={APPLICATION_ID}; COMMIT;"
        )


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def set_aside(paths: list[Path]) -> list[Path]:
    """Rename what is damaged, so that it can be looked at; nothing is overwritten."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    number = 0
    while any(path.with_name(f"{path.name}.damaged-{stamp}-{number}").exists() for path in paths):
        number += 1
    return [path.rename(path.with_name(f"{path.name}.damaged-{stamp}-{number}")) for path in paths if path.exists()]
