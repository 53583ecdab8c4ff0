"""The state directory: one server at a time, everything in it for this user only.

lock               held while a server uses the directory; says which one, and how many commits it has seen
journal.sqlite3    state and events
memory/N-M         host memory: arena M of machine N, mapped by the server and written by its guests
damaged/WHEN-WHAT  what could not be used, each with a sentence that says why

Nothing in it is followed that is a link. The number of commits stands in two files, so that a journal that was lost,
or set back by the loss of its write-ahead log, is noticed beside the memory that belongs to it.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import re
import stat
import sys
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from kickstand.guests.mapping import of_file
from kickstand.journal.disk.aside import keep_aside
from kickstand.journal.disk.schema import BESIDE, DamagedError, prepare, reading, salvage
from kickstand.journal.disk.store import read_meta
from kickstand.settings import SettingsError

FOREIGN_WRITE = stat.S_IWGRP | stat.S_IWOTH
ARENA = re.compile(r"([1-9][0-9]*)-([0-9]+)")
COMMITS = re.compile(rb"commits ([0-9]{1,19}) ([0-9a-f]{8})")
LOCK_SIZE = 128
GONE = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENXIO)
Warn = Callable[[str], None]


class Directory:
    """A state directory that belongs to this process until ``close``.

    ``SettingsError``: another server has it, or it cannot be used. ``warn`` is told what a person should know.
    """

    def __init__(self, path: Path, warn: Warn) -> None:
        self.path = path
        self.memory = path / "memory"
        self.journal = path / "journal.sqlite3"
        self.warn = warn
        self.sure = False  # the journal is known to be the one that goes with the memory beside it
        try:
            _make(path)
            check_folder(path, warn)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise _unusable(path, error) from error
        try:
            self._take()
            self._check()
        except OSError as error:
            self.close()
            raise _unusable(path, error) from error
        except BaseException:
            self.close()
            raise

    def _take(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._lock, LOCK_SIZE, 0).decode(errors="replace").split("\n")[0].strip() or "unknown"
            raise SettingsError(
                f"the state directory {self.path} is in use by another server (process {owner}); "
                "choose another one (--state DIR), or none (--ephemeral)"
            ) from None

    # -- what is there -----------------------------------------------------------------------------------

    def _check(self) -> None:
        """Make what is missing; keep aside what is damaged, and say so."""
        known = read_commits(os.pread(self._lock, LOCK_SIZE, 0))
        self._check_kinds()
        log = _size(self.journal.with_name(self.journal.name + "-wal"))  # before anybody reads it: that may end it
        if lost := self._lost_journal(known, log):
            self._start_anew(lost)
        try:
            prepare(self.journal)
        except DamagedError as error:
            self._rescue(str(error))
        else:
            self._compare(known, log)
        os.ftruncate(self._lock, 0)
        self.committed(self._commits() or 0)

    def _check_kinds(self) -> None:
        """Every file is a file, and the folder a folder. ``SettingsError``: one is a link, or somebody else's."""
        for path in (*(self.journal.with_name(self.journal.name + suffix) for suffix in BESIDE), self.memory):
            wanted = stat.S_ISDIR if path == self.memory else stat.S_ISREG
            if os.path.lexists(path) and not wanted(check_own(path).st_mode):
                self._aside(path.name, f"{path} is not what it should be", [path])
        self.memory.mkdir(0o700, exist_ok=True)

    def _lost_journal(self, known: int | None, log: int) -> str:
        """Why there is no journal any more although there was one; empty if there is one, or never was."""
        if _size(self.journal) or not (known or log or self.arenas()):
            return ""
        return "the journal is empty" if self.journal.exists() else "the journal is gone"

    def _commits(self) -> int | None:
        """How many the journal knows of; None: that is damaged."""
        with reading(self.journal) as connection:
            found, damaged = read_meta(connection)
        return found.get("commits", None if found or damaged else 0)

    def _compare(self, known: int | None, log: int) -> None:
        """Find out whether this journal is the one that goes with the memory beside it."""
        commits = self._commits()
        if known is not None and commits is not None:
            self.sure = commits >= known
            if commits < known:
                self._set_back(known - commits, log)

    def _set_back(self, lost: int, log: int) -> None:
        """The journal is older than it was: without its log nothing fits together, else its last calls are missing."""
        if log:
            self.warn(f"the journal lacks its last {lost} commits: its write-ahead log is cut off or damaged")
            return
        self._start_anew(f"the write-ahead log is gone, and with it the last {lost} commits")
        prepare(self.journal)

    def _start_anew(self, why: str) -> None:
        """Keep everything aside."""
        folder = self._aside("everything", why, [*self._files(), self.memory])
        self.memory.mkdir(0o700, exist_ok=True)
        self.warn(f"{why}; what is left of it was kept aside in {folder}, and this server starts empty")

    def _rescue(self, why: str) -> None:
        """Keep the journal aside, and take over what of it is whole."""
        folder = self._aside("journal", f"the journal is damaged ({why})", self._files())
        prepare(self.journal)
        taken = salvage(folder / self.journal.name, self.journal)
        what = f"{taken} records of it are whole and go on" if taken else "this server starts empty"
        self.warn(f"the journal is damaged ({why}); it was kept aside in {folder}, and {what}")

    def _files(self) -> list[Path]:
        return [self.journal.with_name(self.journal.name + suffix) for suffix in BESIDE]

    def _aside(self, what: str, why: str, paths: Iterable[Path]) -> Path:
        return keep_aside(self.path, what, why, paths)

    # -- host memory -------------------------------------------------------------------------------------

    def gauges(self) -> list[tuple[str, str, float]]:
        """How large the journal is: name, meaning, value."""
        files = [self.journal.with_name(self.journal.name + suffix) for suffix in ("", "-wal")]
        sizes = [path.stat().st_size if path.exists() else 0 for path in files]
        return [
            ("size_bytes", "Size of the journal's file", sizes[0]),
            ("wal_bytes", "Size of its write-ahead log", sizes[1]),
        ]

    def arenas(self) -> list[str]:
        """The files that this program has made for host memory, whoever they belong to."""
        return sorted(path.name for path in self.memory.iterdir() if ARENA.fullmatch(path.name))

    def sweep(self, used: Iterable[str]) -> None:
        """Look after memory that no machine has: of one that was never told of, or is deleted, it goes.

        If the journal may not be the one that goes with it, it is kept aside.
        """
        left = [self.memory / name for name in set(self.arenas()) - set(used)]
        if left and not self.sure:
            folder = self._aside("memory", "the journal knows no machine that has this memory", left)
            self.warn(f"there is memory of machines that the journal does not know; it was kept aside in {folder}")
            return
        for path in left:
            if stat.S_ISREG(path.lstat().st_mode):
                path.unlink()

    # -- the other file that knows how many commits there are -----------------------------------------------

    def committed(self, commits: int) -> None:
        """The journal has seen so many commits; any thread may say so."""
        os.pwrite(self._lock, f"{os.getpid()}\n".encode() + write_commits(commits), 0)

    def close(self) -> None:
        """Let another server have it."""
        os.close(self._lock)


def write_commits(commits: int) -> bytes:
    """A number that shows when it is damaged."""
    return b"commits %d %08x\n" % (commits, zlib.crc32(b"%d" % commits))


def read_commits(data: bytes) -> int | None:
    """Undo ``write_commits``; None: there is none, or it is damaged."""
    found = COMMITS.search(data)
    return int(found[1]) if found and zlib.crc32(found[1]) == int(found[2], 16) else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _make(path: Path) -> None:
    path.mkdir(0o700, parents=True, exist_ok=True)


def check_folder(path: Path, warn: Warn) -> None:
    """``SettingsError``: others can change what is in it, or it is not ours. ``OSError`` as it comes."""
    if path.is_symlink():
        if path.lstat().st_uid not in (0, os.geteuid()):
            raise SettingsError(f"the state directory {path} is a link that belongs to another user")
        warn(f"the state directory {path} is a link to {path.resolve()}")
    found = path.stat()
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if found.st_uid != os.geteuid():
        raise SettingsError(f"the state directory {path} belongs to another user (uid {found.st_uid})")
    if found.st_mode & FOREIGN_WRITE:
        mode = stat.S_IMODE(found.st_mode)
        raise SettingsError(f"others can write to the state directory {path} (mode {mode:o}): chmod go-w {path}")
    above = path.resolve().parent.stat().st_mode
    if above & stat.S_IWOTH and not above & stat.S_ISVTX:
        warn(f"others can put another directory in the place of {path}: {path.resolve().parent} is open to everybody")


def check_own(path: Path) -> os.stat_result:
    """What ``path`` itself is. ``SettingsError``: a link, or somebody else's."""
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        raise SettingsError(f"{path} is a link, and is not followed")
    if found.st_uid != os.geteuid():
        raise SettingsError(f"{path} belongs to another user (uid {found.st_uid})")
    return found


def _unusable(path: Path, error: OSError) -> SettingsError:
    at = error.filename or path
    why = "it is a link, and is not followed" if error.errno == errno.ELOOP else error.strerror or error
    return SettingsError(f"the state directory {path} cannot be used: {at}: {why}")


def owner(name: str) -> int:
    """The number of the machine whose memory a file is."""
    return int(name.partition("-")[0])


class LostError(Exception):
    """A file of host memory is not there any more, or is another one."""


class Arenas:
    """The files behind one machine's host memory, in the order of its arenas."""

    def __init__(self, directory: Path, uid: int, names: Iterable[str] = ()) -> None:
        self.directory = directory
        self.uid = uid
        self.names = list(names)

    def __call__(self, _name: str, size: int) -> mmap.mmap:
        """Make a file of ``size`` zeroed bytes and map it. ``OSError`` ENOSPC: the disk has not so many.

        The blocks are taken now: a guest that wrote to a hole of the file on a full disk would end the server.
        """
        name = f"{self.uid}-{len(self.names)}"
        path = self.directory / name
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
            buffer = of_file(descriptor, size)
        except BaseException:
            path.unlink()
            raise
        finally:
            os.close(descriptor)
        self.names.append(name)
        return buffer

    def map(self, name: str, size: int) -> mmap.mmap:
        """Map a file that exists. ``LostError``: it is not there, or not what it was; ``OSError``: not now."""
        path = self.directory / name
        if not ARENA.fullmatch(name):
            raise LostError(f"{name!r} is no file of host memory")
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno in GONE:
                raise LostError(f"host memory {path}: {error.strerror}") from error
            raise
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_size != size:
                raise LostError(f"host memory {path} has {found.st_size} bytes, and the journal knows {size}")
            return of_file(descriptor, size)
        finally:
            os.close(descriptor)

    def remove(self) -> None:
        """The machine is gone."""
        for name in self.names:
            (self.directory / name).unlink(missing_ok=True)


def free_bytes(path: Path) -> int:
    """What this user may still write there. ``OSError`` EROFS: nothing at all."""
    found = os.statvfs(path)
    if found.f_flag & os.ST_RDONLY or not os.access(path, os.W_OK):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    return found.f_bavail * found.f_frsize


def warn(message: str) -> None:
    """Tell the person who started the server."""
    sys.stderr.write(f"kickstand: {message}\n")


def default_directory() -> Path:
    """The user's own: ``$XDG_STATE_HOME/kickstand``, or ``~/.local/state/kickstand``."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "kickstand"
