"""Host memory as a machine's VMM uses it: what it allocates, reads and writes is in the machine's history."""

from __future__ import annotations

from collections.abc import Callable
from mmap import mmap
from typing import TypeVar

from kickstand.core.errors import KvmError
from kickstand.guests.host_memory import Arena, Budget, HostMemory, blocks
from kickstand.runtime.calls.history import READ, Call, History

T = TypeVar("T")


class RecordedMemory(HostMemory):
    """Host memory whose use by the VMM is kept in ``history``."""

    def __init__(self, budget: Budget | None, history: History) -> None:
        super().__init__(budget)
        self._history = history

    def hand_out(self, name: str, buffer: mmap, unit: bytes) -> Arena:
        call = self._history.begin("allocate", (), {"size": len(buffer), "name": name})
        arena = self._finish(call, lambda: super(RecordedMemory, self).hand_out(name, buffer, unit))
        if not unit.strip(b"\0"):
            return arena
        if _alike(unit):
            self._finish(self._begin_fill(arena.base, unit[0], arena.size), _nothing)
            return arena
        for offset, block in blocks(unit, arena.size):
            self._finish(self._begin_bytes(arena.base + offset, block), _nothing)
        return arena

    def read(self, hva: int, length: int) -> bytes:
        call = self._history.begin("read", (), {"hva": hva, "length": length}, alone=True) if length <= READ else None
        return self._finish(call, lambda: super(RecordedMemory, self).read(hva, length))

    def write(self, hva: int, data: bytes) -> None:
        self._finish(self._begin_write(hva, data), lambda: super(RecordedMemory, self).write(hva, data))

    def _begin_write(self, hva: int, data: bytes) -> Call | None:
        if len(data) > READ and _alike(data):
            return self._begin_fill(hva, data[0], len(data))
        return self._begin_bytes(hva, data)

    def _begin_fill(self, hva: int, byte: int, length: int) -> Call | None:
        """One byte many times is kept as such."""
        return self._history.begin("fill", (), {"hva": hva, "byte": byte, "length": length})

    def _begin_bytes(self, hva: int, data: bytes) -> Call | None:
        return self._history.begin("write", (), {"hva": hva, "data": bytes(data)}, size=len(data))

    def _finish(self, call: Call | None, work: Callable[[], T]) -> T:
        if call is None:
            return work()
        try:
            result = work()
        except KvmError as error:
            self._history.end(call, error=error)
            raise
        self._history.end(call, result)
        return result


def _alike(data: bytes) -> bool:
    """All bytes are the same. To compare takes a fiftieth of the time that counting them does."""
    return bytes(data) == data[:1] * len(data)


def _nothing() -> None:
    """It is done already."""
