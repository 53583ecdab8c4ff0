"""The journal of one server: machines and events, kept as they change and brought back at the start.

Everything here runs on the event loop but the commits, which are the store's. A call waits for the commit that
holds its outcome; events and the progress of running guests are kept in the background, a tick at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import sqlite3
import time
from collections.abc import Callable, Mapping
from typing import Any

from app.core.errors import KvmError, errno_name
from app.journal import history
from app.journal.directory import Arenas, Directory, free_bytes
from app.journal.records import Recorder
from app.journal.restore import Saved, UnreadableError, restore
from app.journal.store import Failure, Store, Work, checkpoint, read_meta, read_state, trim
from app.runtime.events import EventLog, new_epoch
from app.runtime.machine import Machine
from app.runtime.registry import Registry
from app.settings import JournalSettings, SettingsError

RESERVE = 1 << 17  # event numbers that a next process will not use again, ahead of those that are kept
WITH_A_CALL = 256  # events that are written along with a call's record
BATCH = 1_024
READ_ONLY = errno.EROFS
ENOUGH_S = 0.001  # for how long a disk that has room needs no second look: calls come in bursts
logger = logging.getLogger("kickstand.journal")


class Kept:
    """One machine's place in the journal."""

    def __init__(self, uid: int, machine: Machine, arenas: Arenas) -> None:
        self.uid = uid
        self.arenas = arenas
        self.recorder = Recorder(machine, lambda: arenas.names)
        self.ticket = 0  # of its last record; 0: nobody was told of the machine yet
        self._due = False  # calls wait for the next record
        self._asked: set[int] = set()
        self._others = False

    def ask(self, vcpu_id: int | None) -> None:
        """A call was about this vCPU, or about all: the next record is to say what became of it."""
        self._due = True
        if vcpu_id is None:
            self._others = True
        else:
            self._asked.add(vcpu_id)

    def record(self, *, counters: bool = False) -> dict[str, bytes]:
        """What calls have changed since the last record; nothing if none has asked."""
        if not self._due:
            return {}
        asked, others = self._asked, self._others
        self._due, self._asked, self._others = False, set(), False
        return self.recorder.changed(asked, others=others, counters=counters)


class StateJournal:
    """Implements the runtime's ``Journal`` on a state directory; ``start`` before use, ``stop`` at the end."""

    def __init__(self, directory: Directory, registry: Registry, settings: JournalSettings) -> None:
        self.directory = directory
        self.registry = registry
        self.settings = settings
        self.lag_s = 0.0  # how late the last tick was
        self.meta: dict[str, Any] = {}
        self.free: Callable[[], int] = lambda: free_bytes(directory.path)
        self._enough_until = 0.0
        self._kept: dict[Machine, Kept] = {}
        self._next_uid = 1
        self._flushed = 0  # the last event that was submitted
        self._reserved = 0
        self._store: Store | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def log(self) -> EventLog:
        """The events."""
        return self.registry.log

    @property
    def running(self) -> bool:
        """Between ``start`` and ``stop``."""
        return self._store is not None

    @property
    def store(self) -> Store:
        """The store, from ``start`` on."""
        assert self._store is not None
        return self._store

    # -- the runtime's protocol --------------------------------------------------------------------------

    def trouble(self) -> Failure | None:
        """Why nothing can be kept now."""
        if self._store is None:
            return Failure(errno.EAGAIN, "the server is shutting down")
        now = time.monotonic()
        if now >= self._enough_until:
            try:
                if self.free() < self.settings.reserve:
                    return Failure(errno.ENOSPC, "the disk of the state directory is full")
            except OSError as error:
                return Failure(error.errno or READ_ONLY, f"the state directory cannot be written: {error.strerror}")
            self._enough_until = now + ENOUGH_S
        return self._store.failure

    def check(self, ioctl: str) -> None:
        """Refuse a call while nothing could be kept. ENOSPC, EROFS."""
        trouble = self.trouble()
        if trouble is not None:
            raise KvmError(trouble.errno, ioctl, f"{trouble.detail}; nothing has changed")

    def note(self, machine: Machine, vcpu_id: int | None = None) -> int:
        """Submit what has changed of a machine."""
        kept = self._kept.get(machine)
        if kept is None or machine.vm.lifetime.dead:
            return 0
        kept.ask(vcpu_id)
        return self._submit(kept, kept.record())

    def _submit(self, kept: Kept, parts: Mapping[str, bytes]) -> int:
        if parts:
            work = Work({(kept.uid, part): value for part, value in parts.items()})
            self._add_events(work, WITH_A_CALL)
            kept.ticket = self.store.submit(work)
        return kept.ticket

    async def committed(self, machine: Machine, vcpu_id: int | None = None) -> None:
        """Return once the machine as it is now is on disk; calls that end in the same turn share a record."""
        kept = self._kept.get(machine)
        if kept is None:
            return
        kept.ask(vcpu_id)
        await asyncio.sleep(0)
        if self._kept.get(machine) is not kept or machine.vm.lifetime.dead:
            return
        try:
            await self.store.wait(self._submit(kept, kept.record()))
        except Failure as failure:
            detail = f"the call took effect, but could not be kept: {failure.detail}"
            raise KvmError(failure.errno, "journal", detail) from failure

    def attach(self, machine: Machine) -> None:
        """Keep this machine from its first record on."""
        arenas = Arenas(self.directory.memory, self._next_uid)
        machine.memory.back = arenas
        self._join(machine, Kept(self._next_uid, machine, arenas))
        self._next_uid += 1

    def _join(self, machine: Machine, kept: Kept) -> None:
        machine.journal = self
        self._kept[machine] = kept

    async def forget(self, machine: Machine) -> None:
        """Return once the machine will not come back; then its memory goes."""
        kept = self._kept.pop(machine, None)
        if kept is None or self._store is None:
            return
        with contextlib.suppress(Failure):  # tried again with everything else
            await self.store.wait(self.store.submit(Work({(kept.uid, None): None})))
        kept.arenas.remove()

    def gauges(self) -> list[tuple[str, str, float]]:
        """What an operator watches: name, meaning, value."""
        files = [self.directory.journal.with_name(self.directory.journal.name + suffix) for suffix in ("", "-wal")]
        sizes = [path.stat().st_size if path.exists() else 0 for path in files]
        return [
            ("size_bytes", "Size of the journal's file", sizes[0]),
            ("wal_bytes", "Size of its write-ahead log", sizes[1]),
            ("waiting_records", "Records submitted and not committed yet", self.store.submitted - self.store.done),
            ("unkept_events", "Events recorded and not kept yet", self.log.seq - self._flushed),
            ("writable", "Calls are not refused for want of a disk", self.trouble() is None),
            ("loop_lag_seconds", "How late the event loop was last", self.lag_s),
        ]

    # -- start and stop ----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Bring back what was kept. ``SettingsError``: it cannot be, and stays as it is."""
        self._store = Store(self.directory.journal)
        connection = sqlite3.connect(self.directory.journal, isolation_level=None)
        try:
            self.meta = read_meta(connection)
            state = read_state(connection)
        finally:
            connection.close()
        self._next_uid = max([0, *state]) + 1
        self._flushed = self._reserved = int(self.meta.get("reserved", 0))
        self.log.go_on(self.meta.get("epoch") or new_epoch(), self._reserved, int(self.meta.get("elapsed_ns", 0)))
        try:
            for uid, parts in state.items():
                await self._restore(uid, parts)
        except (UnreadableError, KvmError) as error:
            raise SettingsError(
                f"{self.directory.path}: {error}; nothing was changed (start with another --state)"
            ) from error
        self.directory.sweep(name for kept in self._kept.values() for name in kept.arenas.names)
        self.registry.journal = self
        await self.store.wait(self._keep_all())
        self._tasks = {asyncio.create_task(self._tick()), asyncio.create_task(self._look_after())}

    async def _restore(self, uid: int, parts: Mapping[str, bytes]) -> None:
        saved = Saved(parts)
        arenas = Arenas(self.directory.memory, uid, saved.files)

        async def fill(machine: Machine) -> None:
            for (base, size, name), file in zip(saved.memory, saved.files, strict=True):
                machine.memory.adopt(base, name, arenas.map(file, size))
            machine.memory.back = arenas

        machine = await restore(self.registry, saved, fill)
        self._join(machine, Kept(uid, machine, arenas))

    async def remember(self, key: str, value: int | str) -> None:
        """Keep a fact about the directory itself."""
        await self.store.wait(self.store.submit(Work(meta={key: value})))

    async def stop(self) -> None:
        """Keep everything as it is now, and forget no number: a clean end leaves no hole."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._store is None:
            return
        self._keep_all()
        while self._flushed < self.log.seq and self.trouble() is None:
            self._flush()
        self.store.submit(Work(meta={"reserved": self.log.seq} if self._flushed >= self.log.seq else {}))
        self._kept.clear()
        await self.store.close()
        self._store = None
        self.directory.close()

    def _keep_all(self) -> int:
        """Submit every machine as it is now, counters too; those that nobody knows of yet wait."""
        for machine, kept in self._kept.items():
            if not machine.vm.lifetime.dead and (kept.ticket or machine.id in self.registry.machines):
                kept.ask(None)
                self._submit(kept, kept.record(counters=True))
        return self._flush()

    # -- events ------------------------------------------------------------------------------------------

    def _add_events(self, work: Work, limit: int) -> None:
        """Let ``work`` carry the next events, and keep the reserve of numbers ahead of them."""
        log = self.log
        records, _ = log.since(self._flushed, limit)
        if records:
            lines = history.encode(records)
            work.events = (records[0].seq, records[-1].seq, time.time(), lines)
            self._flushed = records[-1].seq
        if self._reserved - log.seq < RESERVE // 2:
            self._reserved = log.seq + RESERVE
            work.meta["reserved"] = self._reserved
            work.meta["epoch"] = log.epoch
        work.meta["elapsed_ns"] = log.elapsed_ns

    def _flush(self, limit: int = BATCH) -> int:
        work = Work()
        self._add_events(work, limit)
        return self.store.submit(work)

    async def read(self, after: int) -> history.Batch | None:
        """The next kept events after number ``after``, and how many before them are lost."""
        return await asyncio.to_thread(history.read, self.directory.journal, after)

    # -- in the background -------------------------------------------------------------------------------

    async def _tick(self) -> None:
        """Keep events as they come, and once in a while what running guests have done."""
        loop, settings = asyncio.get_running_loop(), self.settings
        next_state = loop.time() + settings.progress_s
        while True:
            due = loop.time() + settings.tick_s
            await asyncio.sleep(settings.tick_s)
            self.lag_s = loop.time() - due
            try:
                await self._keep_up()
                if loop.time() >= next_state and self.trouble() is None:
                    next_state = loop.time() + settings.progress_s
                    await self.store.wait(self._keep_all())
            except Failure as failure:
                logger.warning("the journal cannot be written: %s: %s", errno_name(failure.errno), failure.detail)

    async def _keep_up(self) -> None:
        if self.store.failure is not None:
            await self._recover()
        if self.log.seq > self._reserved - RESERVE // 4 and self.trouble() is not None:
            # Numbers beyond the reserve may be given again after a restart: their epoch must not be.
            self._reserved = self.log.seq + RESERVE
            self.log.epoch = new_epoch()
        while self._flushed < self.log.seq and self.trouble() is None:
            await self.store.wait(self._flush())

    async def _recover(self) -> None:
        """Write everything again, once there is room: what failed is not known to be there."""
        if self.free() < self.settings.reserve:
            return
        self._flushed = min(self._flushed, await asyncio.to_thread(self._last_event))
        for kept in self._kept.values():
            kept.recorder = Recorder(kept.recorder.machine, kept.recorder.files)
        self.store.submit(Work(meta={"epoch": self.log.epoch}))
        await self.store.wait(self.store.submit(self._without_the_gone))
        await self.store.wait(self._keep_all())

    def _without_the_gone(self, connection: sqlite3.Connection) -> None:
        uids = {kept.uid for kept in tuple(self._kept.values())}
        for (uid,) in connection.execute("SELECT DISTINCT vm FROM state").fetchall():
            if uid not in uids:
                connection.execute("DELETE FROM state WHERE vm = ?", (uid,))

    def _last_event(self) -> int:
        connection = sqlite3.connect(self.directory.journal, isolation_level=None)
        try:
            return int(connection.execute("SELECT coalesce(max(last), 0) FROM events").fetchone()[0])
        finally:
            connection.close()

    async def _look_after(self) -> None:
        """Forget what is too old or too much, and keep the log short."""
        while True:
            await asyncio.sleep(self.settings.upkeep_s)
            if self.trouble() is not None:
                continue
            with contextlib.suppress(Failure, sqlite3.Error):
                await self.store.wait(self.store.submit(self._trim))
                await asyncio.to_thread(checkpoint, self.directory.journal)

    def _trim(self, connection: sqlite3.Connection) -> None:
        trim(connection, time.time() - self.settings.event_age_s, self.settings.event_bytes)
