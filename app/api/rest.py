"""VMM threads that run only while somebody watches: an example must not keep a core busy for nobody.

A thread that was started with ``while_watched`` is stopped when no event stream has been open for some seconds, and a
careless one that has been kept out by a kick for a minute, too. It goes on when somebody looks again, or with the
resume. Each rest and its end is an event, ``vmm_rest``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field

from kickstand.api.hub import Hub
from kickstand.core.errors import KvmError
from kickstand.core.trace import Tracepoint
from kickstand.runtime.machine import Machine
from kickstand.runtime.registry import Registry

LOOK_S = 1.0
QUIET_S = 8.0  # without a stream; a reload takes less
KICKED_S = 60.0
logger = logging.getLogger("kickstand.api")


@dataclass(slots=True)
class _Watched:
    """The threads of one machine, by vCPU: behaviour, and whether exits are handled."""

    machine: Machine
    threads: dict[int, tuple[str, bool]] = field(default_factory=dict)
    kicked_at: float | None = None
    why: str = ""  # it rests; empty: it runs


class WhileWatched:
    """Looks once a second, as long as there are such threads."""

    def __init__(self, registry: Registry, hub: Hub) -> None:
        self._registry = registry
        self._hub = hub
        self._watched: dict[str, _Watched] = {}
        self._seen_at = 0.0
        self._task: asyncio.Task[None] | None = None

    def add(self, machine: Machine, vcpu: int, behaviour: str, *, handle_exits: bool) -> None:
        """A thread has been started that may rest."""
        watched = self._watched.get(machine.id)
        if watched is None or watched.machine is not machine:
            watched = self._watched[machine.id] = _Watched(machine)
        watched.threads[vcpu] = behaviour, handle_exits
        self._seen_at = time.monotonic()
        if self._task is None:
            self._task = asyncio.create_task(self._look(), name="while_watched")

    def forget(self, machine: Machine, vcpu: int) -> None:
        """Somebody has stopped it, or started it for good."""
        watched = self._watched.get(machine.id)
        if watched is not None:
            watched.threads.pop(vcpu, None)

    async def close(self) -> None:
        """The server stops."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _look(self) -> None:
        while self._watched:
            await asyncio.sleep(LOOK_S)
            now = time.monotonic()
            if self._hub.streams:
                self._seen_at = now
            for name, watched in tuple(self._watched.items()):
                if not watched.threads or self._registry.machines.get(name) is not watched.machine:
                    del self._watched[name]
                    continue
                try:
                    await self._settle(watched, now)
                except KvmError as error:  # it dies, or the disk is full: the next look is another try
                    logger.warning("threads of %s cannot rest or go on: %s", name, error)
        self._task = None

    async def _settle(self, watched: _Watched, now: float) -> None:
        why = self._reason(watched, now)
        if bool(why) == bool(watched.why):
            return
        watched.why = why
        machine = watched.machine
        for vcpu, (behaviour, handle_exits) in tuple(watched.threads.items()):
            running = machine.threads.get(vcpu)
            if why:
                await machine.stop_thread(vcpu)
            elif running is None or not running.running:
                await machine.start_thread(vcpu, behaviour, handle_exits=handle_exits)
        machine.log.emit(machine.id, Tracepoint.VMM_REST, None, {"phase": "begin" if why else "end", "why": why})

    def _reason(self, watched: _Watched, now: float) -> str:
        """Why the threads should rest now."""
        kicked = bool(watched.machine.vm.variant.open_windows)
        careless = any(behaviour == "careless" for behaviour, _ in watched.threads.values())
        watched.kicked_at = (watched.kicked_at or now) if kicked and careless else None
        if now - self._seen_at > QUIET_S:
            return "nobody watches"
        if watched.kicked_at is not None and now - watched.kicked_at > KICKED_S:
            return "kicked for a minute"
        return ""
