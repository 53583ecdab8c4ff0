"""Where a whole trace is played: on a fresh machine in this process, or on a server's."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Any, Protocol, Self

from kickstand.runtime.events import EventLog
from kickstand.runtime.registry import Registry
from kickstand.scripts.language.script import Trace
from kickstand.scripts.play.forms import Result
from kickstand.scripts.play.player import Player
from kickstand.settings import Limits

DEFAULT_VARIANT = "sticky"
EVENTS = 256  # nobody reads them


class Backend(Protocol):
    """Plays traces one after the other, each on a VM of its own."""

    name: str

    def play(self, trace: Trace) -> AsyncGenerator[Result, None]:
        """Yield the answers of one trace in order. The VM is gone when the iterator is closed or exhausted."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def vm_options(trace: Trace, engine: str | None, variant: str | None) -> dict[str, Any]:
    """What to create a trace's VM with: what was asked for, else what the trace says."""
    header = trace.vm
    options: dict[str, Any] = {
        "engine": engine or header.engine or "x86",
        "variant": variant or header.variant or DEFAULT_VARIANT,
        "irqchip": header.irqchip,
        "seed": header.seed,
        "switches": header.switches,
    }
    if header.mode is not None:
        options["mode"] = header.mode
    return options


class InProcess:
    """Machines of this process. ``engine`` and ``variant`` go before what a trace says of itself."""

    def __init__(self, engine: str | None = None, variant: str | None = None, *, memory_limit: int = 8 << 30) -> None:
        self.name = engine or "emulator"
        self._engine = engine
        self._variant = variant
        self._registry = Registry(Limits(memory_per_vm=memory_limit), EventLog(EVENTS))

    async def play(self, trace: Trace) -> AsyncGenerator[Result, None]:
        machine = await self._registry.create(**vm_options(trace, self._engine, self._variant))
        try:
            player = Player(machine, trace.presets)
            for operation in trace.operations:
                yield await player.play(operation)
        finally:
            await self._registry.destroy(machine.id)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        await self._registry.reset()
