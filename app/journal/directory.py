"""The state directory: one server at a time, everything in it for this user only.

lock               held while a server uses the directory; says which one
journal.sqlite3    state and events
memory/N-M         host memory: arena M of machine N, mapped by the server and written by its guests
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from app.journal.schema import DamagedError, prepare, set_aside
from app.settings import SettingsError


class Directory:
    """A state directory that belongs to this process until ``close``.

    ``SettingsError``: another server has it, or it cannot be used. ``warn`` is told what a person should know.
    """

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self.path = path
        self.memory = path / "memory"
        self.journal = path / "journal.sqlite3"
        try:
            path.mkdir(0o700, parents=True, exist_ok=True)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SettingsError(f"the state directory {path} cannot be used: {error.strerror or error}") from error
        try:
            self._take()
            self._check(warn)
            self.memory.mkdir(0o700, exist_ok=True)
        except OSError as error:
            self.close()
            raise SettingsError(f"the state directory {path} cannot be used: {error.strerror or error}") from error
        except BaseException:
            self.close()
            raise

    def _take(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._lock, 32, 0).decode(errors="replace").strip() or "unknown"
            raise SettingsError(
                f"the state directory {self.path} is in use by another server (process {owner}); "
                "choose another one (--state DIR), or none (--ephemeral)"
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def _check(self, warn: Callable[[str], None]) -> None:
        try:
            prepare(self.journal)
        except DamagedError as error:
            beside = [self.journal.with_name(self.journal.name + suffix) for suffix in ("", "-wal", "-shm")]
            kept = set_aside([*beside, self.memory])
            names = ", ".join(str(path) for path in kept)
            warn(f"the journal is damaged ({error}); it was kept aside as {names}, and this server starts empty")
            prepare(self.journal)

    def sweep(self, used: Iterable[str]) -> None:
        """Remove the memory of machines that are not there any more."""
        keep = set(used)
        for path in self.memory.iterdir():
            if path.name not in keep:
                path.unlink()

    def close(self) -> None:
        """Let another server have it."""
        os.close(self._lock)


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
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
            buffer = mmap.mmap(descriptor, size)
        except BaseException:
            path.unlink()
            raise
        finally:
            os.close(descriptor)
        self.names.append(name)
        return buffer

    def map(self, name: str, size: int) -> mmap.mmap:
        """Map a file that exists. ``SettingsError``: it is not there, or not of that size."""
        try:
            descriptor = os.open(self.directory / name, os.O_RDWR | os.O_CLOEXEC)
            try:
                if os.fstat(descriptor).st_size == size:
                    return mmap.mmap(descriptor, size)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise SettingsError(f"host memory {self.directory / name}: {error.strerror or error}") from error
        raise SettingsError(f"host memory {self.directory / name} has not the size that the journal knows")

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
