"""Guest-physical memory as an x86 CPU sees it: segments of host memory, and holes.

Nothing here reads or writes a byte outside a segment: every access is cut at pages and looked up first.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from kickstand.core.run.exits import FaultExit, RetryExit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PAGE = 4096
PAGE_MASK = ~(PAGE - 1)
PER_EXIT = 8  # kvm_run.mmio.data
_MAX_FOUND = 1 << 16


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of guest-physical pages backed by contiguous host memory.

    ``address`` is where the backing bytes are in this process, page-aligned; None means that the slot exists but
    its host memory does not (KVM_RUN answers EFAULT). ``invalid``: a slot update in progress, try again.
    """

    gpa: int
    size: int
    address: int | None
    readonly: bool
    log_dirty: bool
    invalid: bool = False


class GuestMemory(Protocol):
    """What the CPU asks of the owner of the memory slots."""

    @property
    def generation(self) -> int:
        """Changes whenever ``find`` may give another answer, or a page that was marked must be marked again."""
        ...

    def find(self, gpa: int) -> Segment | None:
        """The segment that holds ``gpa``; any thread."""
        ...

    def mark_dirty(self, gpa: int) -> None:
        """Note a guest write to a page of a logged segment, at least once per page and generation."""
        ...


class AccessStoppedError(Exception):
    """The access can neither be done nor become an MMIO exit."""

    def __init__(self, exit: FaultExit | RetryExit) -> None:
        super().__init__(exit)
        self.exit = exit


@dataclass(frozen=True, slots=True)
class Fragment:
    """A part of one access that is not in memory: ``offset`` is where it lies within the access."""

    gpa: int
    offset: int
    length: int


class PhysicalMemory:
    """The current segments, with lookup and access by guest-physical address.

    A change costs what is looked at afterwards, not what there is: segments are found when a page needs one.
    """

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._generation: int | None = None
        self._found: dict[int, Segment | None] = {}  # by page
        self._last: Segment | None = None
        self.version = 0
        """Counts the changes that ``refresh`` took over."""
        self.on_write: Callable[[int], None] = lambda _host: None
        """Called with the host address of every page written from here rather than by the engine."""

    def refresh(self) -> None:
        """Take over changed segments."""
        if self._memory.generation == self._generation:
            return
        self._generation = self._memory.generation
        self.version += 1
        self._found.clear()
        self._last = None

    def find(self, gpa: int) -> Segment | None:
        """Return the segment that holds this address."""
        last = self._last
        if last is not None and last.gpa <= gpa < last.gpa + last.size:
            return last
        self._last = self._find(gpa)
        return self._last

    def _find(self, gpa: int) -> Segment | None:
        page = gpa // PAGE
        if page not in self._found:
            if len(self._found) == _MAX_FOUND:
                self._found.clear()
            self._found[page] = self._memory.find(gpa)
        return self._found[page]

    def resolve(self, gpa: int, *, write: bool) -> int | None:
        """Return the host address, or None where the access belongs to a device.

        A write to a readonly slot is a device access (``__gfn_to_hva_memslot``: KVM_HVA_ERR_RO_BAD).
        """
        segment = self.find(gpa)
        if segment is None:
            return None
        if segment.invalid:
            raise AccessStoppedError(RetryExit(gpa))
        if write and segment.readonly:
            return None
        if segment.address is None:
            raise AccessStoppedError(FaultExit(gpa))
        return segment.address + gpa - segment.gpa

    def read(self, gpa: int, length: int) -> bytes | None:
        """Read within one page; None in a hole."""
        host = self.resolve(gpa, write=False)
        return None if host is None else ctypes.string_at(host, length)

    def write(self, gpa: int, data: bytes) -> bool:
        """Write within one page, with dirty logging; false where memory cannot be written."""
        host = self.resolve(gpa, write=True)
        if host is None:
            return False
        ctypes.memmove(host, data, len(data))
        self.note_dirty(gpa)
        self.on_write(host & PAGE_MASK)
        return True

    def note_dirty(self, gpa: int) -> None:
        """``mark_page_dirty``: tell the owner if the slot is logged."""
        segment = self.find(gpa)
        if segment is not None and segment.log_dirty:
            self._memory.mark_dirty(gpa & PAGE_MASK)


def page_pieces(address: int, length: int) -> Iterator[tuple[int, int, int]]:
    """Cut an access at pages: (address, offset within the access, length) of each piece."""
    done = 0
    while done < length:
        piece = min(length - done, PAGE - (address + done) % PAGE)
        yield address + done, done, piece
        done += piece


def in_fragments(gpa: int, offset: int, length: int) -> list[Fragment]:
    """Cut a read from a device to what one exit carries."""
    return [
        Fragment(gpa + start, offset + start, min(PER_EXIT, length - start)) for start in range(0, length, PER_EXIT)
    ]
