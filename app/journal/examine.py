"""What is in a state directory, and what of it is damaged: read, never written.

The journal is looked at in a copy of its own, so that a server may use the directory meanwhile; every machine is put
together as a start would do it, but for its memory.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kickstand.core.errors import KvmError
from kickstand.journal.disk.aside import FOLDER, REASON
from kickstand.journal.disk.directory import ARENA, LOCK_SIZE, check_folder, owner, read_commits
from kickstand.journal.disk.schema import BESIDE, VERSION, DamagedError, check, reading
from kickstand.journal.disk.store import Rows, read_meta, read_rows_of_events, read_state
from kickstand.journal.restore import Saved, UnreadableError, restore
from kickstand.runtime.machine import Machine
from kickstand.runtime.registry import Registry
from kickstand.settings import Limits, SettingsError

MIB = 1 << 20
State = Literal["ok", "note", "damaged"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is there. ``advice``: what to do about it."""

    name: str
    state: State
    detail: str
    advice: str = ""


def examine(path: Path) -> list[Finding]:
    """Everything in a state directory. ``SettingsError``: it is none. ``OSError``: it cannot be read."""
    if not path.is_dir():
        raise SettingsError(f"there is no directory {path}")
    return [*_folder(path), *_use(path), *_journal(path), *_aside(path)]


def _folder(path: Path) -> Iterator[Finding]:
    said: list[str] = []
    try:
        check_folder(path, said.append)
    except SettingsError as error:
        yield Finding("directory", "damaged", str(error), "a server does not start on it")
        return
    yield Finding("directory", "note" if said else "ok", "; ".join(said) or str(path))


def _use(path: Path) -> Iterator[Finding]:
    lock = path / "lock"
    if not lock.is_file():
        yield Finding("lock", "note", "no server has used this directory yet")
        return
    with lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            process = file.read(LOCK_SIZE).split(b"\n")[0].decode(errors="replace")
            yield Finding("lock", "note", f"process {process} serves it now: what follows is a moment of that")
            return
    yield Finding("lock", "ok", "nobody uses it")


def _journal(path: Path) -> Iterator[Finding]:
    journal = path / "journal.sqlite3"
    arenas = _arenas(path)
    if not journal.is_file() or not journal.stat().st_size:
        lost = bool(arenas)
        advice = "the next start keeps the memory aside and begins empty" if lost else ""
        yield Finding("journal", "damaged" if lost else "note", "there is none", advice)
        return
    with tempfile.TemporaryDirectory() as folder:
        for suffix in BESIDE[:2]:
            beside = journal.with_name(journal.name + suffix)
            if beside.is_file():
                shutil.copyfile(beside, Path(folder) / beside.name)
        yield from _read(Path(folder) / journal.name, path, arenas)


def _read(copy: Path, path: Path, arenas: dict[str, int]) -> Iterator[Finding]:
    try:
        with reading(copy) as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version < VERSION:
                yield Finding("journal", "note", f"version {version}: the next start brings it to {VERSION}")
                return
            check(connection, path / copy.name)
            meta, damaged = read_meta(connection)
            state = read_state(connection)
            events = list(read_rows_of_events(connection))
    except SettingsError as error:
        yield Finding("journal", "damaged", str(error), "a server does not start on it")
        return
    except (DamagedError, sqlite3.Error) as error:
        advice = "the next start keeps it aside and goes on with what is whole"
        yield Finding("journal", "damaged", str(error), advice)
        return
    yield _whole(path, meta.get("commits"), damaged)
    for uid, rows in state.items():
        yield _machine(path, uid, rows, arenas)
    unknown = sorted(name for name in arenas if owner(name) not in state)
    if unknown:
        yield Finding("memory", "note", f"no machine has {', '.join(unknown)}", "the next start looks after it")
    broken = sum(not whole for _, whole in events)
    yield Finding(
        "events",
        "damaged" if broken else "ok",
        f"{sum(count for count, _ in events)} in {len(events)} batches"
        + (f", {broken} of them damaged" * bool(broken)),
        "streams have a gap there" if broken else "",
    )


def _whole(path: Path, commits: object, damaged: list[str]) -> Finding:
    size = (path / "journal.sqlite3").stat().st_size / MIB
    lock = path / "lock"
    known = read_commits(lock.read_bytes()[:LOCK_SIZE]) if lock.is_file() else None
    if damaged:
        return Finding("journal", "damaged", f"it does not know its {', '.join(damaged)}", "events are numbered anew")
    if isinstance(commits, int) and known is not None and commits < known:
        detail = f"{known - commits} commits are missing: its write-ahead log is gone or damaged"
        return Finding("journal", "damaged", detail, "put the file journal.sqlite3-wal back before the next start")
    return Finding("journal", "ok", f"version {VERSION}, {size:.1f} MiB, {commits or 0} commits")


def _machine(path: Path, uid: int, rows: Rows, arenas: dict[str, int]) -> Finding:
    name = rows.name or f"number {uid}"
    try:
        rows.check()
        saved = Saved(rows)
        _check_memory(path, saved, arenas)
        asyncio.run(_put_together(saved))
    except (UnreadableError, DamagedError) as error:
        return Finding(f"vm {name}", "damaged", str(error), f"the next start keeps it aside in {path / FOLDER}")
    except KvmError as error:
        return Finding(f"vm {name}", "note", f"cannot be served here: {error.detail}", "it stays as it is")
    vm = saved.vm
    memory = sum(size for _, size, _ in vm.memory) / MIB
    told = f"{vm.engine}, {vm.variant}, {len(vm.vcpus)} vcpus, {len(saved.slots.rows)} slots, {memory:.1f} MiB"
    return Finding(f"vm {name}", "ok", told)


def _check_memory(path: Path, saved: Saved, arenas: dict[str, int]) -> None:
    for (_, size, _), name in zip(saved.vm.memory, saved.vm.files, strict=False):
        if arenas.get(name) != size:
            found = f"has {arenas[name]} bytes instead of {size}" if name in arenas else "is not there"
            raise UnreadableError(f"its memory {path / 'memory' / name} {found}")


async def _put_together(saved: Saved) -> None:
    async def nothing(_machine: Machine) -> None:
        pass

    registry = Registry(Limits(memory_per_vm=1 << 47))
    await restore(registry, saved, nothing)
    await registry.reset()


def _arenas(path: Path) -> dict[str, int]:
    """The files of host memory, each with its size."""
    folder = path / "memory"
    if not folder.is_dir():
        return {}
    found = [(file.name, file.lstat()) for file in folder.iterdir() if ARENA.fullmatch(file.name)]
    return {name: status.st_size for name, status in found if stat.S_ISREG(status.st_mode)}


def _aside(path: Path) -> Iterator[Finding]:
    """What earlier starts have kept aside."""
    folder = path / FOLDER
    for kept in sorted(folder.iterdir()) if folder.is_dir() else ():
        reason = kept / REASON
        why = reason.read_text(errors="replace").split("\n")[0] if reason.is_file() else "no reason is given"
        yield Finding("kept aside", "note", f"{kept}: {why}", "yours to look at, or to remove")


def free_of(path: Path) -> int:
    """Bytes that this user may still write where ``path`` is, or would be."""
    while not path.exists():
        path = path.parent
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize
