"""Whether the disk of the state directory has room for more."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from pathlib import Path

from kickstand.journal.disk.directory import free_bytes
from kickstand.journal.disk.store import Failure

ENOUGH_S = 0.001  # for how long a disk that has room needs no second look: calls come in bursts


class Room:
    """``reserve`` bytes have to stay free; ``free`` says how many are."""

    def __init__(self, path: Path, reserve: int) -> None:
        self.free: Callable[[], int] = lambda: free_bytes(path)
        self._reserve = reserve
        self._enough_until = 0.0

    def trouble(self) -> Failure | None:
        """ENOSPC: there is too little; EROFS or what the system says: nothing can be written there."""
        now = time.monotonic()
        if now >= self._enough_until:
            try:
                if self.free() < self._reserve:
                    return Failure(errno.ENOSPC, "the disk of the state directory is full")
            except OSError as error:
                return Failure(error.errno or errno.EROFS, f"the state directory cannot be written: {error.strerror}")
            self._enough_until = now + ENOUGH_S
        return None
