"""The program's memory as guest memory: the same pages, mapped here too.

Private memory is turned into a file in place: a memfd as large as the area it lies in, of which only the pages of
slots are mapped over the program's own, so that neighbours keep their meaning after a ``fork`` and slots side by side
stay one area. Memory that is a shared file already is mapped from that file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from kickstand.exec.host import linux
from kickstand.exec.host.maps import Area
from kickstand.exec.host.process import Process
from kickstand.exec.memory.backing import Backing, length, reopened, seal
from kickstand.exec.memory.copying import Copies, merged
from kickstand.guests.host_memory import Arena, ForeignMemory, Run

_EXACT_CHECKS = 64  # arenas that every KVM_RUN looks after; of more, so many in turn


@dataclass(frozen=True, slots=True)
class Private:
    """Pages of a slot that are not shared yet."""

    start: int
    end: int
    area: Area


class SharedMemory:
    """All guest memory of one process."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.memory = ForeignMemory()
        self.copies = Copies(process)
        self._backings: dict[tuple[int, int], Backing] = {}
        self._retired: list[Backing] = []
        self._new: list[tuple[int, int]] = []  # ranges of slots that nobody has looked at yet
        self._next_check = 0
        self._files = 0
        self._seen: dict[int, tuple[Arena, bytes]] = {}

    # -- looking -------------------------------------------------------------------------------------------

    def note(self, start: int, size: int) -> None:
        """A slot was made over these addresses."""
        self._new.append((start, start + size))

    def look_again(self, ranges: Callable[[], Iterable[tuple[int, int]]]) -> tuple[list[Private], bool]:
        """A guest found nothing behind a slot: ``look`` at all of them; says also whether anything has changed."""
        version = self.memory.version
        self._new = list(ranges())
        private = self.look(ranges)
        return private, bool(private) or version != self.memory.version

    def look(self, ranges: Callable[[], Iterable[tuple[int, int]]]) -> list[Private]:
        """Bring the arenas up to date with what the program has mapped; returns what has to be converted first.

        ``ranges`` are those of all slots; they are asked for when something that was known has changed.
        """
        if self._stale():
            self._new = list(ranges())
            for arena in tuple(self.memory.arenas):
                if not self._true(arena.base, arena.size, arena.address):
                    self.memory.remove(arena.base, arena.size)
        new, self._new = merged(self._new), []
        return [piece for start, end in new for piece in self._cover(start, end)]

    def _stale(self) -> bool:
        arenas = self.memory.arenas
        if len(arenas) > _EXACT_CHECKS:
            self._next_check = (self._next_check + _EXACT_CHECKS) % len(arenas)
            arenas = arenas[self._next_check : self._next_check + _EXACT_CHECKS]
        return not all(map(self._unchanged, arenas))

    def _unchanged(self, arena: Arena) -> bool:
        """What lies there is what lay there when it was last looked at closely, or is still true."""
        seen = self.process.maps.fingerprint(arena.base)
        if self._seen.get(arena.address) == (arena, seen) and not self._foreign:
            return True
        if not self._true(arena.base, arena.size, arena.address):
            return False
        self._seen[arena.address] = arena, seen
        return True

    @property
    def _foreign(self) -> bool:
        """A file of the program's own is mapped, which may become shorter."""
        return self._files > 0

    def _true(self, base: int, size: int, address: int) -> bool:
        """The program still has these bytes there."""
        area = self.process.maps.find(base)
        if area is None or area.start > base or area.end < base + size:
            return False
        if self.copies and self.copies.at(address) is not None:
            return not area.shared
        if not area.shared:
            return False
        backing = self._backings.get(area.key)
        if backing is None or backing.address + area.offset + base - area.start != address:
            return False
        return backing.start is not None or area.offset + base - area.start + size <= length(backing.descriptor)

    def _cover(self, start: int, end: int) -> Iterable[Private]:
        at = start
        for area in self.process.maps.between(start, end):
            low, high = max(area.start, start), min(area.end, end)
            if low > at:
                self.memory.remove(at, low - at)
            backing = self._backing_of(area) if area.shared else None
            if backing is not None:
                self._place(area, backing)
            else:
                yield from (Private(start, end, area) for start, end in self._not_copied(low, high))
            at = high
        if at < end:
            self.memory.remove(at, end - at)

    def _not_copied(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        if not self.copies:
            yield start, end
            return
        for run in self.memory.runs(start, end - start):
            if run.address is None or self.copies.at(run.address) is None:
                yield run.hva, run.hva + run.size

    def copy(self, pieces: Iterable[Private]) -> int:
        """Copy these pages to and fro from now on, because they cannot be shared; returns how many bytes they are."""
        size = 0
        for piece in pieces:
            of_file = not piece.area.anonymous
            copy = self.copies.add(piece.start, piece.end - piece.start, of_file=of_file)
            self.memory.place(copy.start, copy.view, copy.address)
            size += copy.size
        return size

    def _place(self, area: Area, backing: Backing) -> None:
        size = min(area.end - area.start, max(backing.size - area.offset, 0))
        if size:
            address = backing.address + area.offset
            there = self.memory.find(area.start)
            if there is None or (there.base, there.size, there.address) != (area.start, size, address):
                self.memory.place(area.start, backing.view[area.offset : area.offset + size], address)

    # -- files of the program ------------------------------------------------------------------------------

    def _backing_of(self, area: Area) -> Backing | None:
        """The file behind a shared area; None if it cannot be reached."""
        known = self._backings.get(area.key)
        if known is not None and (known.start is not None or known.size == length(known.descriptor)):
            return known
        opened = reopened(self.process.tgid, area)
        if opened is None:
            return None
        descriptor, writable = opened
        size = length(descriptor)
        try:
            address = linux.map_shared(descriptor, size, private=not writable)
        except OSError:  # EINVAL: it is empty
            os.close(descriptor)
            return None
        self._forget(area.key)
        self._files += 1
        self._backings[area.key] = made = Backing(descriptor, address, size)
        return made

    def _forget(self, key: tuple[int, int]) -> None:
        old = self._backings.pop(key, None)
        if old is not None:
            self._files -= old.start is None
            self._retired.append(old)

    # -- converting ----------------------------------------------------------------------------------------

    def prepare(self, pieces: Iterable[Private]) -> list[Backing]:
        """Make or find the files that ``pieces`` will lie in. ``OSError``: the host has no more of something."""
        return list(dict.fromkeys(self._backing_for(piece) for piece in pieces))

    def _backing_for(self, piece: Private) -> Backing:
        for backing in self._backings.values():
            if backing.free_for(piece.start, piece.end):
                return backing
        # The rest of an anonymous area may follow, and shall lie beside this piece then.
        whole = piece.area.anonymous and not piece.area.name
        start, end = (piece.area.start, piece.area.end) if whole else (piece.start, piece.end)
        if any(backing.start is not None and backing.start < end and start < backing.start + backing.size
               for backing in self._backings.values()):  # fmt: skip
            start, end = piece.start, piece.end
        descriptor = os.memfd_create("kvm-ram", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, end - start)
        seal(descriptor)
        status = os.fstat(descriptor)
        backing = Backing(
            descriptor, linux.map_shared(descriptor, end - start), end - start, start, piece.area.anonymous
        )
        self._backings[status.st_dev, status.st_ino] = backing
        return backing

    def converted(self, piece: Private, backing: Backing) -> None:
        """The pages of ``piece`` are those of its file from now on, in the program and for guests."""
        assert backing.start is not None
        offset, size = piece.start - backing.start, piece.end - piece.start
        self.memory.place(piece.start, backing.view[offset : offset + size], backing.address + offset)

    def discard(self, start: int, end: int) -> None:
        """``MADV_DONTNEED``: what was private memory reads as zeros from now on."""
        for arena in self.memory.arenas:
            low, high = max(start, arena.base), min(end, arena.base + arena.size)
            if low < high and self._zeroes(arena.address):
                linux.discard(arena.address + low - arena.base, high - low)

    def _zeroes(self, address: int) -> bool:
        return any(
            backing.start is not None and backing.anonymous and backing.holds(address)
            for backing in self._backings.values()
        )

    def stored(self, start: int, end: int) -> Iterator[Run]:
        """The stretches of a range that are backed and were ever written; the rest reads as zeros."""
        for run in self.memory.runs(start, end - start):
            if run.address is not None:
                yield from self._stored(run, run.address)

    def _stored(self, run: Run, address: int) -> Iterator[Run]:
        backing = next((found for found in self._backings.values() if found.holds(address)), None)
        if backing is None:
            yield run
            return
        at, end = address - backing.address, address - backing.address + run.size
        while at < end:
            try:
                data = os.lseek(backing.descriptor, at, os.SEEK_DATA)
            except OSError:  # ENXIO: nothing but a hole follows
                return
            at = min(os.lseek(backing.descriptor, data, os.SEEK_HOLE), end)
            if data < at:
                moved = data - (address - backing.address)
                yield Run(run.hva + moved, at - data, address + moved)

    # -- giving back ---------------------------------------------------------------------------------------

    def collect(self) -> None:
        """Unmap files that nothing uses any more. No guest may be in guest mode."""
        used = [arena.address for arena in self.memory.arenas]
        for key, backing in tuple(self._backings.items()):
            if not any(backing.holds(address) for address in used):
                self._forget(key)
        if self._retired:
            self._seen.clear()
        for backing in self._retired:
            backing.close()
        self._retired.clear()
        for copy in self.copies:
            if not any(copy.address <= address < copy.address + copy.size for address in used):
                self.copies.remove(copy)

    def close(self) -> None:
        """Give everything back. No guest may use it any more."""
        for arena in tuple(self.memory.arenas):
            self.memory.remove(arena.base, arena.size)
        self.collect()
