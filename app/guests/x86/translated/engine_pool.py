"""Engines of CPUs that are gone, for others."""

from __future__ import annotations

from kickstand.guests.x86.translated.unicorn_engine import Engine


class EnginePool:
    """Engines that were used before: making one takes more than ten milliseconds."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._free: list[Engine] = []

    def take(self) -> Engine:
        """Return a free engine or make one."""
        try:
            return self._free.pop()
        except IndexError:
            return Engine()

    def give_back(self, engine: Engine) -> None:
        """Keep the engine for the next guest, without anything of the last."""
        engine.recycle()
        if len(self._free) < self._limit:
            self._free.append(engine)


ENGINES = EnginePool(limit=16)
