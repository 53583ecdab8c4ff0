"""The dirty pages of one slot: KVM's bitmap, as sets of a few thousand pages each.

Sparse, because a slot may be far larger than what is written of it; in chunks, so that whoever reads many pages can
let others run between two chunks, and can tell which of them have changed. Guests may add pages from another thread
at any time: what is taken away is taken from a chunk that is out of their reach, and whoever has just added to such a
chunk adds again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from collections.abc import Set as AbstractSet
from functools import partial

CHUNK_SHIFT = 12
CHUNK = 1 << CHUNK_SHIFT
Chunk = set[int] | range
"""A range is a chunk whose every page is dirty."""


class DirtyPages(AbstractSet[int]):
    """Page numbers within a slot; iteration goes up."""

    __slots__ = ("chunks",)

    def __init__(self, pages: Iterable[int] = ()) -> None:
        self.chunks: dict[int, Chunk] = {}
        self.update(pages)

    def add(self, page: int) -> None:
        """``set_bit``, from any thread."""
        key = page >> CHUNK_SHIFT
        while True:
            chunk = self.chunks.get(key)
            if chunk is None:
                chunk = self.chunks.setdefault(key, set())
            if isinstance(chunk, set):
                chunk.add(page)
            if self.chunks.get(key) is chunk:
                return

    def update(self, pages: Iterable[int]) -> None:
        """Add many. What a range or another log takes has no relation to the number of its pages."""
        if isinstance(pages, DirtyPages):
            for key, chunk in tuple(pages.chunks.items()):
                self._add_to(key, chunk)
        elif isinstance(pages, range) and pages.step == 1:
            for key in _chunks_of(pages):
                self._add_to(key, _part_of(pages, key))
        else:
            for page in pages:
                self.add(page)

    def _add_to(self, key: int, pages: Collection[int]) -> None:
        if isinstance(pages, range) and len(pages) == CHUNK:
            self.chunks[key] = pages
            return
        chunk = self.chunks.setdefault(key, set())
        if isinstance(chunk, set):
            chunk.update(pages)

    def difference_update(self, pages: range | frozenset[int]) -> None:
        """Take pages away. What it takes depends on how many are dirty, or named, whatever is less."""
        if isinstance(pages, range) and pages.step == 1:
            self._take(_chunks_of(pages), partial(_part_of, pages))
        else:
            named = _by_chunk(pages)
            self._take(named, named.__getitem__)

    def _take(self, keys: Collection[int], named: Callable[[int], Collection[int]]) -> None:
        for key in [key for key in tuple(self.chunks) if key in keys] if len(self.chunks) < len(keys) else keys:
            old = self.chunks.get(key)
            if old is None:
                continue
            gone = named(key)
            left = self.chunks[key] = set()
            if len(gone) < CHUNK:
                left.update(set(old).difference(gone))  # somebody may still add to the old one

    def copy(self) -> DirtyPages:
        """A log that nobody adds to."""
        return DirtyPages(self)

    def portions(self) -> Iterator[list[int]]:
        """The pages of one chunk after the other, each sorted."""
        for key in sorted(self.chunks):
            yield sorted(self.chunks[key])

    def __contains__(self, page: object) -> bool:
        return isinstance(page, int) and page in self.chunks.get(page >> CHUNK_SHIFT, ())

    def __iter__(self) -> Iterator[int]:
        for portion in self.portions():
            yield from portion

    def __len__(self) -> int:
        return sum(map(len, tuple(self.chunks.values())))

    def __bool__(self) -> bool:
        return any(tuple(self.chunks.values()))

    def __repr__(self) -> str:
        return f"DirtyPages({list(self)!r:.60})"


def _chunks_of(pages: range) -> range:
    return range(pages.start >> CHUNK_SHIFT, (pages.stop + CHUNK - 1) >> CHUNK_SHIFT)


def _part_of(pages: range, key: int) -> range:
    """Those of a chunk."""
    first = key << CHUNK_SHIFT
    return range(max(pages.start, first), min(pages.stop, first + CHUNK))


def _by_chunk(pages: Iterable[int]) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {}
    for page in pages:
        found.setdefault(page >> CHUNK_SHIFT, set()).add(page)
    return found
