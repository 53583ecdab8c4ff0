"""Ends a run of the engine after a while."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kickstand.guests.x86.translated.unicorn_engine import Engine

_TRIES, _BETWEEN_S = 5, 0.001  # a stop is lost if it comes before the engine has begun


class Alarm:
    """Due ``seconds`` after it was made, and stops the engine then; ``cancel`` takes that back."""

    def __init__(self, engine: Engine, seconds: float) -> None:
        self.due = False
        self._engine = engine
        self._cancelled = threading.Event()
        threading.Thread(target=self._wait, args=(seconds,), name="alarm", daemon=True).start()

    def cancel(self) -> None:
        """The engine need not stop any more."""
        self._cancelled.set()

    def _wait(self, seconds: float) -> None:
        if self._cancelled.wait(seconds):
            return
        self.due = True
        for _ in range(_TRIES):
            self._engine.stop()
            if self._cancelled.wait(_BETWEEN_S):
                return
