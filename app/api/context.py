"""What the routers share: the machines, the settings, the streams' hub, and the limits at the door."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Coroutine, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import Depends, Request
from starlette.requests import ClientDisconnect

from kickstand.api.edge.sessions import Sessions
from kickstand.api.hub import Hub
from kickstand.api.rest import WhileWatched
from kickstand.core.errors import KvmError, errno_name
from kickstand.core.run.run_page import Cause
from kickstand.journal.disk.directory import Directory, default_directory, warn
from kickstand.journal.disk.store import Failure
from kickstand.journal.journal import StateJournal
from kickstand.runtime.machine import Machine
from kickstand.runtime.registry import Registry
from kickstand.settings import Settings, SettingsError

if TYPE_CHECKING:
    from kickstand.explore.jobs import Job, Jobs

T = TypeVar("T")
logger = logging.getLogger("kickstand.api")
DEFAULT_VM = "default"
SLOW_S = 5.0  # a control call that waits longer is reported, with who holds what
LATE_S = 1.0  # a loop that is late by more does not take new work in time
LEAVE_S = 0.2  # how long parked runs may take to leave when the server stops


class Context:
    """One server's state, as ``app.state.context``."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.registry = Registry(settings.limits)
        self.hub = Hub(self.registry.log, settings.streams)
        self.while_watched = WhileWatched(self.registry, self.hub)
        self.sessions = Sessions(settings.token())
        self.stopping = False
        self.restored: tuple[str, ...] = ()  # the VMs that the state directory had at the start
        self._jobs: Jobs | None = None
        self.journal: StateJournal | None = None
        self.refused: SettingsError | None = None  # why this server could not start
        self._started = False

    async def jobs(self) -> Jobs:
        """The explorations. The explorer is loaded with the first one, beside the loop: it takes a while."""
        if self._jobs is None:
            module = await asyncio.to_thread(import_module, "kickstand.explore.jobs")
            self._jobs = self._made_jobs(module)
        return self._jobs

    def _made_jobs(self, module: ModuleType) -> Jobs:
        """The jobs that another request made meanwhile, else new ones."""
        if self._jobs is not None:
            return self._jobs
        limits = self.settings.limits
        jobs: Jobs = module.Jobs(
            self._emit_exploration, limit=limits.explorations, max_states=limits.exploration_states
        )
        return jobs

    @property
    def explorations(self) -> Mapping[str, Job]:
        """The jobs that there are, by id."""
        return {} if self._jobs is None else self._jobs.jobs

    def exploration(self, job_id: str) -> Job:
        """Return one job. ENOENT if there is none of that id."""
        found = self.explorations.get(job_id)
        if found is None:
            raise KvmError(errno.ENOENT, "explore", f"there is no exploration {job_id!r}", field="exploration")
        return found

    def _emit_exploration(self, name: str, fields: Mapping[str, object]) -> None:
        self.registry.log.emit(None, name, None, fields)

    def open(self) -> None:
        """Take the state directory. ``SettingsError``: another server has it, or it cannot be used."""
        if self.journal is None and not self.settings.ephemeral:
            directory = Directory(self.settings.state_dir or default_directory(), warn)
            self.journal = StateJournal(directory, self.registry, self.settings.journal)
            self.hub.archive = self.journal

    async def start(self) -> None:
        """Bring back what was kept; on a directory that is new, or without one, create the default VM. Once.

        ``SettingsError``: this server cannot start, and why.
        """
        if self._started:
            return
        self._started = True
        try:
            self.open()
            await self._start()
        except SettingsError as error:
            self.refused = error
            raise
        except (OSError, KvmError, Failure) as error:
            detail = error.detail if isinstance(error, KvmError | Failure) else error.strerror or error
            self.refused = SettingsError(f"the server cannot start: {detail}")
            raise self.refused from error

    async def _start(self) -> None:
        if self.journal is not None:
            await self.journal.start()
            self.restored = tuple(self.registry.machines)
            if self.journal.meta.get("default_vm"):
                return
        await self._create_default()
        if self.journal is not None:
            await self.journal.remember("default_vm", int(self.settings.default_vm))

    async def _create_default(self) -> None:
        options = self.settings
        if options.default_vm:
            await self.registry.create(DEFAULT_VM, vcpus=options.vcpus, variant=options.variant, engine=options.engine)

    async def reset(self) -> None:
        """Drop everything and be as at the start. EPERM unless the settings allow it."""
        if not self.settings.allow_reset:
            raise KvmError(errno.EPERM, "reset", "this server was started without --allow-reset")
        if self._jobs is not None:
            await self._jobs.clear()
        await self.registry.reset()
        await self._create_default()

    async def stop(self) -> None:
        """End what clients wait for: parked runs leave by a signal, streams say ``bye``, other ioctls get EIO."""
        self.stopping = True
        await self.while_watched.close()
        runs = [run for machine in self.registry.machines.values() for run in machine.runs]
        for run in runs:
            run.signal(Cause.SIGNAL)
        if runs:
            await asyncio.wait([run.task for run in runs], timeout=LEAVE_S)
        if self._jobs is not None:
            await self._jobs.close()
        if self.journal is not None:
            await self._rest()
            await self.journal.stop()
        self.hub.close()
        for machine in tuple(self.registry.machines.values()):
            await machine.destroy()

    async def _rest(self) -> None:
        """Get the server's own VMM threads out of KVM_RUN, so that registers and memory are of one moment."""
        threads = [thread for machine in self.registry.machines.values() for thread in machine.threads.values()]
        stopping = [asyncio.create_task(thread.stop()) for thread in threads]
        if stopping:
            _, late = await asyncio.wait(stopping, timeout=LEAVE_S)
            for task in late:
                task.cancel()

    @property
    def state_dir(self) -> Path | None:
        """Where large things go; None: where the system puts them."""
        return None if self.journal is None else self.journal.directory.path

    def not_ready(self) -> str:
        """Why new work should go elsewhere; empty if it should not."""
        if self.stopping:
            return "the server is shutting down"
        if self.journal is not None:
            if trouble := self.journal.trouble():
                return f"{errno_name(trouble.errno)}: {trouble.detail}"
            if self.journal.lag_s > LATE_S:
                return f"the event loop is {self.journal.lag_s:.1f} s late"
        return ""

    # -- limits ------------------------------------------------------------------------------------------

    def admit_run(self, ioctl: str = "KVM_RUN") -> None:
        """EAGAIN if as many runs are parked as the limit allows, or the server stops."""
        if self.stopping:
            raise KvmError(errno.EAGAIN, ioctl, "the server is shutting down")


def context_of(request: Request) -> Context:
    """The server's state."""
    context: Context = request.app.state.context
    return context


def machine_of(request: Request) -> Machine:
    """The machine that a path is about: ``default``, or the one it names. ENODEV if there is none."""
    return context_of(request).registry.get(request.path_params.get("vm", DEFAULT_VM))


async def _context(request: Request) -> Context:
    return context_of(request)


async def _machine(request: Request) -> Machine:
    return machine_of(request)


TheContext = Annotated[Context, Depends(_context)]
TheMachine = Annotated[Machine, Depends(_machine)]


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Perform an ioctl that may wait; a client that goes away kills the thread that waits for it.

    The body must have been read. Raises ``ClientDisconnect`` then, as reading a body does.
    """
    watch = _Watch(request)
    try:
        return await work
    except asyncio.CancelledError:
        if watch.gone():
            raise ClientDisconnect from None
        raise
    finally:
        watch.close()


class _Watch:
    """Looks after a call from the next turn of the loop on: most calls are over by then."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._task = asyncio.current_task()
        self._listener: asyncio.Task[None] | None = None
        self._handle: asyncio.Handle = asyncio.get_running_loop().call_soon(self._begin)

    def _begin(self) -> None:
        self._handle = asyncio.get_running_loop().call_later(SLOW_S, _tell_who_holds_what, self._request)
        self._listener = asyncio.create_task(disconnected(self._request))
        self._listener.add_done_callback(self._heard)

    def _heard(self, listener: asyncio.Task[None]) -> None:
        if self._task is not None and not listener.cancelled():
            self._task.cancel()

    def gone(self) -> bool:
        """The call was cancelled because its client has gone, and for no other reason."""
        heard = self._listener is not None and self._listener.done()
        return heard and self._task is not None and self._task.uncancel() == 0

    def close(self) -> None:
        """The call is over."""
        self._task = None
        self._handle.cancel()
        if self._listener is not None:
            self._listener.cancel()


def _tell_who_holds_what(request: Request) -> None:
    """The watchdog: a control call that waits for long is named, with whoever it may be waiting for."""
    machine = context_of(request).registry.machines.get(request.path_params.get("vm", DEFAULT_VM))
    if machine is None:
        return
    vcpus = machine.vm.vcpus.values()
    fields = {
        "vm": machine.id,
        "locks": machine.locks(),
        "slots_lock": machine.vm.slots_lock.owner,
        "mutexes": {vcpu.id: vcpu.mutex.owner for vcpu in vcpus if vcpu.mutex.owner is not None},
        "states": {vcpu.id: vcpu.watched.state.value for vcpu in vcpus if vcpu.mutex.owner is not None},
    }
    message = f"{request.method} {request.url.path} has waited for {SLOW_S:.0f} s"
    logger.warning("%s", message, extra={"fields": fields})


async def disconnected(request: Request) -> None:
    """Return when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
