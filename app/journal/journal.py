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
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import ValidationError

from kickstand.core.errors import KvmError, errno_name
from kickstand.journal import form
from kickstand.journal.comeback import Comeback
from kickstand.journal.disk import history
from kickstand.journal.disk.directory import Arenas, Directory, owner
from kickstand.journal.disk.room import Room
from kickstand.journal.disk.schema import reading
from kickstand.journal.disk.store import LAST_NUMBER, Failure, Store, Work, keep_only, last_event, read_meta, read_state
from kickstand.journal.disk.upkeep import look_after
from kickstand.journal.kept import Kept
from kickstand.journal.records import Recorder
from kickstand.runtime.events import EventLog, new_epoch
from kickstand.runtime.machine import Machine
from kickstand.runtime.registry import Registry
from kickstand.settings import JournalSettings, SettingsError

RESERVE = 1 << 17  # event numbers that a next process will not use again, ahead of those that are kept
WITH_A_CALL = 256  # events that are written along with a call's record
BATCH = 1_024
NUMBERING = {"epoch", "reserved", "elapsed_ns"}
logger = logging.getLogger("kickstand.journal")


class StateJournal:
    """Implements the runtime's ``Journal`` on a state directory; ``start`` before use, ``stop`` at the end."""

    def __init__(self, directory: Directory, registry: Registry, settings: JournalSettings) -> None:
        self.directory = directory
        self.registry = registry
        self.settings = settings
        self.lag_s = 0.0  # how late the last tick was
        self.meta: dict[str, Any] = {}
        self.room = Room(directory.path, settings.reserve)
        self._kept: dict[Machine, Kept] = {}
        self._next_uid = 1
        self._flushed = 0  # the last event that was submitted
        self._reserved = 0
        self._store: Store | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._removals: set[asyncio.Task[None]] = set()
        self.refused: dict[int, str] = {}  # machines that stay in the journal and are not served: number, reason

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
        return self.room.trouble() or self._store.failure

    def check(self, ioctl: str) -> None:
        """Refuse a call while nothing could be kept. ENOSPC, EROFS."""
        trouble = self.trouble()
        if trouble is not None:
            raise KvmError(trouble.errno, ioctl, f"{trouble.detail}; nothing has changed")

    def note(self, machine: Machine, vcpu_id: int | None = None) -> int:
        """Submit what has changed of a machine."""
        kept = self._kept.get(machine)
        if kept is None or kept.leaving or machine.vm.lifetime.dead:
            return 0
        kept.ask(vcpu_id)
        return self._submit(kept, kept.record())

    def _submit(self, kept: Kept, parts: Mapping[str, form.Encoded | None]) -> int:
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
        try:
            while kept.leaving and self._kept.get(machine) is kept:
                await self._gone_or_not(kept)
            if self._kept.get(machine) is kept and not machine.vm.lifetime.dead:
                await self.store.wait(self._submit(kept, kept.record()))
        except Failure as failure:
            detail = f"the call took effect, but could not be kept: {failure.detail}"
            raise KvmError(failure.errno, "journal", detail) from failure

    async def _gone_or_not(self, kept: Kept) -> None:
        """Its records are being removed: what became of that decides whether there is anything to keep."""
        with contextlib.suppress(Failure):
            await self.store.wait(kept.leaving)
        await asyncio.sleep(0)

    def attach(self, machine: Machine) -> None:
        """Keep this machine from its first record on."""
        arenas = Arenas(self.directory.memory, self._next_uid)
        machine.memory.back = arenas
        self._join(Kept(self._next_uid, machine, arenas))
        self._next_uid += 1

    def _join(self, kept: Kept) -> None:
        kept.machine.journal = self
        self._kept[kept.machine] = kept

    async def forget(self, machine: Machine) -> None:
        """Return once the machine will not come back; then its memory's files go.

        ENOSPC, EROFS: that cannot be written, and the machine is kept as before.
        """
        kept = self._kept.get(machine)
        if kept is None or self._store is None:
            return
        if kept.ticket:
            kept.leaving = self.store.submit(Work({(kept.uid, None): None}))
            try:
                await self.store.wait(kept.leaving)
            except Failure as failure:
                kept.stay()
                raise KvmError(failure.errno, "destroy", f"{failure.detail}; nothing has changed") from failure
        self._kept.pop(machine, None)
        kept.arenas.remove()

    def drop(self, machine: Machine) -> None:
        """Nobody was told of the machine: if it was kept all the same, its record goes, and then its memory."""
        kept = self._kept.pop(machine, None)
        if kept is None or self._store is None:
            return
        if not kept.ticket:
            kept.arenas.remove()
            return
        removal = asyncio.create_task(self._remove(kept))
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)

    async def _remove(self, kept: Kept) -> None:
        with contextlib.suppress(Failure):  # tried again with everything else
            await self.store.wait(self.store.submit(Work({(kept.uid, None): None})))
            kept.arenas.remove()

    def gauges(self) -> list[tuple[str, str, float]]:
        """What an operator watches: name, meaning, value."""
        return [
            *self.directory.gauges(),
            ("waiting_records", "Records submitted and not committed yet", self.store.submitted - self.store.done),
            ("unkept_events", "Events recorded and not kept yet", self.log.seq - self._flushed),
            ("refused_vms", "Machines in the journal that could not be served", len(self.refused)),
            ("writable", "Calls are not refused for want of a disk", self.trouble() is None),
            ("loop_lag_seconds", "How late the event loop was last", self.lag_s),
        ]

    # -- start and stop ----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Bring back what was kept; what cannot be is told, and nothing of it is lost.

        ``SettingsError``: the directory or this process is of no use now, and everything stays as it is.
        """
        try:
            await self._start()
        except BaseException:
            if self._store is not None:
                await self._store.close()
            self._store = None
            self.directory.close()
            raise

    async def _start(self) -> None:
        try:
            with reading(self.directory.journal) as connection:
                self.meta, damaged = read_meta(connection)
                state = read_state(connection)
            self._store = Store(self.directory.journal, self.directory.committed)
        except sqlite3.Error as error:
            raise SettingsError(f"the journal {self.directory.journal} cannot be read: {error}") from error
        arenas = [uid for uid in map(owner, self.directory.arenas()) if uid < LAST_NUMBER]
        self._next_uid = max([0, *state, *arenas]) + 1
        self._go_on(damaged)
        comeback = Comeback(self.directory, self.registry, self.store, self._join)
        self.refused = comeback.refused
        for uid, rows in state.items():
            await comeback.bring_back(uid, rows)
        used = [name for kept in self._kept.values() for name in kept.arenas.names]
        self.directory.sweep([*used, *comeback.arenas_of_refused()])
        self.registry.journal = self
        await self._first_record()
        self._tasks = {
            asyncio.create_task(self._tick()),
            asyncio.create_task(look_after(self.store, self.settings, self.trouble)),
        }

    def _go_on(self, damaged: Collection[str]) -> None:
        """Number the events from where they were; anew, if that is not known."""
        meta = self.meta
        unknown = set(damaged) | (NUMBERING - set(meta) if meta else set())
        if unknown:
            self.directory.warn(f"the journal's {', '.join(sorted(unknown))} cannot be read: events are numbered anew")
            meta = {"reserved": self._last_event() + RESERVE}
        self._flushed = self._reserved = int(meta.get("reserved", 0))
        self.log.go_on(str(meta.get("epoch") or new_epoch()), self._reserved, int(meta.get("elapsed_ns", 0)))

    async def _first_record(self) -> None:
        try:
            await self.store.wait(self._keep_all())
        except Failure as failure:
            raise SettingsError(f"the state directory {self.directory.path}: {failure.detail}") from failure

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
        await asyncio.gather(*self._removals)
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
        known, coming = self.registry.machines, self.registry.coming
        for machine, kept in self._kept.items():
            new = not kept.ticket and (machine.id not in known or machine in coming)
            if not (machine.vm.lifetime.dead or kept.leaving or new):
                self._keep(machine, kept)
        return self._flush()

    def _keep(self, machine: Machine, kept: Kept) -> None:
        kept.ask(None)
        try:
            self._submit(kept, kept.record(counters=True))
        except ValidationError as error:  # a fault of this program: what the API took must not be more than is kept
            logger.error("virtual machine %s cannot be kept: %s", machine.id, form.sentence("", error))  # noqa: TRY400

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
        if self.room.trouble() is not None:
            return
        self._flushed = min(self._flushed, await asyncio.to_thread(self._last_event))
        for kept in self._kept.values():
            kept.recorder = Recorder(kept.recorder.machine, kept.recorder.files)
        self.store.submit(Work(meta={"epoch": self.log.epoch}))
        known = {*self.refused, *(kept.uid for kept in self._kept.values())}
        await self.store.wait(self.store.submit(keep_only(known)))
        await self.store.wait(self._keep_all())

    def _last_event(self) -> int:
        with reading(self.directory.journal) as connection:
            return last_event(connection)
