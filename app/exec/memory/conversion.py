"""Private pages become shared ones in place, while their process stands still.

The pages are copied part by part; large parts on a thread of their own, so that guests, clients and other processes go
on meanwhile.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kickstand.exec.host import linux
from kickstand.exec.host.maps import touched
from kickstand.exec.host.tracee import CLOSE, MMAP, Caller, TraceeError
from kickstand.exec.memory.backing import Backing
from kickstand.exec.memory.sharing import Private, SharedMemory

_SHARED_FIXED = 0x11 | linux.MAP_NORESERVE
_PROTECTION = 7
_CHUNK = 1 << 18
_ZEROS = bytearray(_CHUNK)
PART = 1 << 24  # bytes that are copied, and then mapped in the program, at once
AT_ONCE = 1 << 21  # bytes that are copied sooner than a thread could be told to


@dataclass(frozen=True, slots=True)
class Part:
    """Pages from ``start`` to ``end``, of which those of ``stretches`` hold something."""

    start: int
    end: int
    stretches: list[tuple[int, int]]

    @property
    def large(self) -> bool:
        """Copying it takes a while."""
        return sum(high - low for low, high in self.stretches) > AT_ONCE


class Conversion:
    """One conversion: the ``pieces``, and the files that they will lie in."""

    def __init__(self, memory: SharedMemory, pieces: list[Private]) -> None:
        self._memory = memory
        self._pieces = pieces
        self._given: dict[Backing, int] = {}
        self._scratch = bytearray(_CHUNK)

    def give(self, give: Callable[[int], int]) -> None:
        """Make the files, and give each to the program by ``give``, which returns its number there. ``OSError``."""
        for backing in self._memory.prepare(self._pieces):
            self._given[backing] = give(backing.descriptor)

    async def perform(self, caller: Caller) -> None:
        """Turn the pages into shared ones in the stopped thread ``caller``. ``TraceeError``, ``OSError``."""
        for piece in self._pieces:
            await self._convert(piece, caller)
        for number in self._given.values():
            caller.call(CLOSE, number)

    async def _convert(self, piece: Private, caller: Caller) -> None:
        backing = next(backing for backing in self._given if backing.free_for(piece.start, piece.end))
        backing.used.append((piece.start, piece.end))
        for part in self._parts(piece):
            if part.large:
                await asyncio.to_thread(self._fill, backing, part)
            else:
                self._fill(backing, part)
            self._map(piece, backing, part, caller)
        self._memory.converted(piece, backing)

    def _parts(self, piece: Private) -> Iterator[Part]:
        """A page of a file that was never touched comes from the file, one of anonymous memory is zero."""
        tgid, start, end = self._memory.process.tgid, piece.start, piece.end
        held: list[tuple[int, int]] = []
        size = 0
        for stretch in touched(tgid, start, end) if piece.area.anonymous else [(start, end)]:
            low, high = stretch
            while low < high:
                cut = min(high, low + PART - size)
                held.append((low, cut))
                size, low = size + cut - low, cut
                if size == PART:
                    yield Part(start, low, held)
                    start, held, size = low, [], 0
        if start < end:
            yield Part(start, end, held)

    def _fill(self, backing: Backing, part: Part) -> None:
        """Copy what a part holds into its file; zeros stay holes, which costs a fraction of pages that hold them."""
        assert backing.start is not None
        scratch, address, zeros = memoryview(self._scratch), linux.address_of(self._scratch), linux.address_of(_ZEROS)
        for low, high in part.stretches:
            for at in range(low, high, _CHUNK):
                size = self._memory.process.read_into(at, scratch[: min(_CHUNK, high - at)])
                if not linux.same(address, zeros, size):
                    linux.copy(backing.address + at - backing.start, address, size)

    def _map(self, piece: Private, backing: Backing, part: Part, caller: Caller) -> None:
        assert backing.start is not None
        size, access, number = part.end - part.start, piece.area.access & _PROTECTION, self._given[backing]
        there = caller.call(MMAP, part.start, size, access, _SHARED_FIXED, number, part.start - backing.start)
        if there != part.start:
            raise TraceeError(f"the program may not map its memory again: {os.strerror(-there)}")
