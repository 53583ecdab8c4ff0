"""Explorations as jobs: each in a process of its own, so that the server's loop never waits for one.

A job's process sends what it finds through a pipe: progress now and then, each cell when it is decided. It can be
ended at any moment, and one that dies is a failed job, no more.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import count
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from kickstand.core.errors import KvmError
from kickstand.core.trace import Tracepoint
from kickstand.explore.matrix import Matrix, Tick
from kickstand.explore.question import Question
from kickstand.explore.world.scenarios import SCENARIOS, ScenarioError
from kickstand.runtime.driver.tasks import to_the_end

REPORT_SECONDS = 0.2
KEPT = 64  # jobs
Emit = Callable[[str, Mapping[str, object]], object]


@dataclass(slots=True)
class Job:
    """One exploration: what was asked, how far it is, what was found.

    ``state`` is running, done, failed or cancelled.
    """

    id: str
    asked: dict[str, Any]
    cells_total: int
    state: str = "running"
    cells_done: int = 0
    search: dict[str, Any] | None = None  # of the cell under way: states, frontier, depth, rate
    cells: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None

    def describe(self, *, cells: bool = True) -> dict[str, Any]:
        """The job's shape; ``cells`` False leaves the verdicts out, for a list of jobs."""
        shape: dict[str, Any] = {
            "id": self.id,
            "state": self.state,
            "asked": self.asked,
            "progress": {"cells_done": self.cells_done, "cells": self.cells_total, "search": self.search},
            "error": self.error,
        }
        return shape | ({"cells": self.cells} if cells else {})


class Jobs:
    """All explorations of one server. ``limit`` bounds how many run at once, ``emit`` receives their events."""

    def __init__(self, emit: Emit, *, limit: int = 2, max_states: int = 20_000_000) -> None:
        self.jobs: dict[str, Job] = {}
        self._emit = emit
        self._limit = limit
        self._max_states = max_states
        self._numbers = count(1)
        self._starting = 0
        self._processes: dict[str, BaseProcess] = {}
        self._watchers: dict[str, asyncio.Task[None]] = {}

    async def start(self, asked: Mapping[str, Any]) -> Job:
        """Start a job. EINVAL: a name or number is wrong; EAGAIN: too many run already; E2BIG: over ``max_states``.

        Cells are made and the process is started in a thread, to the end even if the caller is cancelled.
        """
        return await to_the_end(self._start(asked))

    async def _start(self, asked: Mapping[str, Any]) -> Job:
        if self._starting + sum(job.state == "running" for job in self.jobs.values()) >= self._limit:
            raise KvmError(errno.EAGAIN, "explore", f"{self._limit} explorations run already")
        self._starting += 1
        try:
            cells = (await asyncio.to_thread(self._cells, asked)).cells
            job = Job(f"x{next(self._numbers)}", dict(asked), len(cells))
            process, receiver = await asyncio.to_thread(_started, job.id, cells)
        finally:
            self._starting -= 1
        self._forget_old()
        self.jobs[job.id] = job
        self._processes[job.id] = process
        self._watchers[job.id] = asyncio.create_task(self._watch(job, process, receiver))
        self._emit(Tracepoint.EXPLORATION, {"id": job.id, "state": job.state, "cells": job.cells_total})
        return job

    def _forget_old(self) -> None:
        """What was found long ago goes: the verdicts of every matrix since the server's start have no end."""
        over = [job.id for job in self.jobs.values() if job.state != "running"]
        for job_id in over[: len(self.jobs) + 1 - KEPT]:
            del self.jobs[job_id]

    def _cells(self, asked: Mapping[str, Any]) -> Matrix:
        if asked.get("scenario", "merge") not in SCENARIOS:  # a name, never a file of the server's
            raise _wrong("scenario", f"no scenario {asked['scenario']!r}; there are {', '.join(SCENARIOS)}")
        if asked.get("max_states", 0) > self._max_states:
            raise KvmError(errno.E2BIG, "explore", f"max_states is at most {self._max_states} here", field="max_states")
        try:
            return Matrix(_question(asked))
        except ScenarioError as error:
            raise _wrong(None, str(error)) from error

    async def remove(self, job: Job) -> None:
        """End a job if it runs, and forget it."""
        await self._end(job)
        self.jobs.pop(job.id, None)

    async def clear(self) -> None:
        """End and forget every job."""
        for job in tuple(self.jobs.values()):
            await self.remove(job)

    async def close(self) -> None:
        """End every job."""
        for job in tuple(self.jobs.values()):
            await self._end(job)

    async def _end(self, job: Job) -> None:
        process, watcher = self._processes.get(job.id), self._watchers.get(job.id)
        if job.state == "running":
            job.state = "cancelled"
        if process is not None and process.is_alive():
            process.kill()
        if watcher is not None:
            await asyncio.wait({watcher})

    async def _watch(self, job: Job, process: BaseProcess, receiver: Connection) -> None:
        """Take messages off the pipe until the process has ended."""
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(receiver.fileno(), readable.set)
        try:
            while self._take(job, receiver):
                readable.clear()
                await readable.wait()
        finally:
            loop.remove_reader(receiver.fileno())
            receiver.close()
            await loop.run_in_executor(None, process.join)
            self._processes.pop(job.id, None)
            self._watchers.pop(job.id, None)
            self._finish(job, process)

    def _take(self, job: Job, receiver: Connection) -> bool:
        """Handle the messages that are there; false once the process closed its end."""
        try:
            while receiver.poll():
                kind, body = receiver.recv()
                self._handle(job, kind, body)
        except (EOFError, OSError):
            return False
        return True

    def _handle(self, job: Job, kind: str, body: Any) -> None:
        if kind == "progress":
            job.search = body
            self._emit(Tracepoint.EXPLORATION, {"id": job.id, "state": job.state, "cells_done": job.cells_done,
                                       "cells": job.cells_total, "search": body})  # fmt: skip
        elif kind == "cells":
            job.cells_done += 1
            job.cells.extend(body)
            for cell in body:
                short = {name: value for name, value in cell.items() if name != "counterexample"}
                self._emit(Tracepoint.EXPLORATION_CELL, {"id": job.id, "cell": short})
        elif kind == "done":
            job.state, job.search = "done", None
        else:
            job.state, job.error = "failed", body

    def _finish(self, job: Job, process: BaseProcess) -> None:
        if job.state == "running":
            job.state, job.error = "failed", f"the process ended with status {process.exitcode}"
        self._emit(Tracepoint.EXPLORATION, {"id": job.id, "state": job.state, "cells_done": job.cells_done,
                                   "cells": job.cells_total, "error": job.error})  # fmt: skip


def _question(asked: Mapping[str, Any]) -> Question:
    named: dict[str, Any] = {**asked, "vcpus": [asked.get("vcpus", 1)]}
    return Question(**{name: _once(value) for name, value in named.items()})


def _once(value: Any) -> Any:
    """A list without what stands in it twice; anything else as it is."""
    return tuple(dict.fromkeys(value)) if isinstance(value, list) else value


def _wrong(field_name: str | None, detail: str) -> KvmError:
    return KvmError(errno.EINVAL, "explore", detail, field=field_name)


def _started(job_id: str, cells: list[Question]) -> tuple[BaseProcess, Connection]:
    """A process that works on ``cells``, and where it tells what it finds."""
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, cells), daemon=True, name=f"exploration-{job_id}")
    try:
        process.start()
    except BaseException:
        receiver.close()
        raise
    finally:
        sender.close()
    return process, receiver


def _work(sender: Connection, cells: list[Question]) -> None:
    """What a job's process does."""
    last = 0.0

    def report(tick: Tick) -> None:
        nonlocal last
        now = time.monotonic()
        if tick.search is not None and now - last >= REPORT_SECONDS:
            last = now
            cell = tick.cell
            sender.send(
                ("progress", {"variant": cell.variants[0], "behaviour": cell.behaviours[0], **asdict(tick.search)})
            )

    try:
        for verdicts in Matrix(*cells).stream(report=report):
            sender.send(("cells", [verdict.json() for verdict in verdicts]))
        sender.send(("done", None))
    except BrokenPipeError:
        pass  # nobody waits for it any more
    except Exception as error:  # noqa: BLE001  whatever it was, the job failed with it
        sender.send(("failed", f"{type(error).__name__}: {error}"))
