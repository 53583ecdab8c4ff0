"""Coalesced MMIO and port writes: noted in a ring instead of leaving KVM_RUN, as long as there is room.

A program has the ring mapped behind its run pages (one ring of the VM, in every vCPU's mapping); where there is no
mapping, userspace takes the entries by a call of Kickstand's own.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct

from kickstand.core.errors import KvmError

REGISTER, UNREGISTER = "KVM_REGISTER_COALESCED_MMIO", "KVM_UNREGISTER_COALESCED_MMIO"
_INDICES, _ENTRY = Struct("<2I"), Struct("<Q2I8s")
PAGE_SIZE = 4096
ENTRIES = (PAGE_SIZE - _INDICES.size) // _ENTRY.size  # one of them stays free


@dataclass(frozen=True, slots=True)
class Zone:
    """``kvm_coalesced_mmio_zone``: ``size`` bytes from ``addr``, of memory or (``pio`` 1) of ports."""

    addr: int
    size: int
    pio: int

    def holds(self, addr: int, size: int, pio: int) -> bool:
        """The whole access lies in it."""
        return self.pio == pio and self.addr <= addr and addr + size <= self.addr + self.size


@dataclass(frozen=True, slots=True)
class Entry:
    """``kvm_coalesced_mmio``: one write."""

    phys_addr: int
    pio: int
    data: bytes


class CoalescedIo:
    """The zones of one VM, and its ring."""

    def __init__(self) -> None:
        self.zones: tuple[Zone, ...] = ()
        self.entries: list[Entry] = []
        """The ring, where no program has it mapped."""
        self._pages: list[memoryview] = []
        self._shown = 0, 0

    def register(self, zone: Zone) -> None:
        """KVM_REGISTER_COALESCED_MMIO. EINVAL: ``pio`` is not 0 or 1."""
        _check(REGISTER, zone)
        self.zones += (zone,)

    def unregister(self, zone: Zone) -> None:
        """KVM_UNREGISTER_COALESCED_MMIO: every zone that this one lies in goes. EINVAL: ``pio`` is not 0 or 1."""
        _check(UNREGISTER, zone)
        self.zones = tuple(known for known in self.zones if not known.holds(zone.addr, zone.size, zone.pio))

    def map(self, page: memoryview) -> None:
        """A program has the ring here too."""
        self._pages.append(page)
        _INDICES.pack_into(page, 0, *self._shown)

    def unmap(self, page: memoryview) -> None:
        """It has it there no more."""
        self._pages = [known for known in self._pages if known is not page]

    def take(self, addr: int, data: bytes, pio: int) -> bool:
        """Note a write; false if it is in no zone, or the ring is full."""
        if not any(zone.holds(addr, len(data), pio) for zone in self.zones):
            return False
        if self._pages:
            return self._push(addr, data, pio)
        if len(self.entries) >= ENTRIES - 1:
            return False
        self.entries.append(Entry(addr, pio, data))
        return True

    def _push(self, addr: int, data: bytes, pio: int) -> bool:
        first, last = next(self._moved(), self._shown)
        if last >= ENTRIES or (last + 1) % ENTRIES == first:
            self._shown = first, last
            return False
        entry = _ENTRY.pack(addr, len(data), pio, data.ljust(8, b"\0"))
        self._shown = first, (last + 1) % ENTRIES
        at = _INDICES.size + last * _ENTRY.size
        for page in self._pages:
            page[at : at + _ENTRY.size] = entry
            _INDICES.pack_into(page, 0, *self._shown)
        return True

    def _moved(self) -> Iterator[tuple[int, int]]:
        """The program reads from whichever mapping it likes, and moves the indices there."""
        for page in self._pages:
            first, last = _INDICES.unpack_from(page)
            if (first, last) != self._shown:
                yield first, last

    def emptied(self, since: int) -> tuple[int, list[Entry]]:
        """What a program that empties the ring has taken from place ``since`` on, and the place where it goes on."""
        first, last = next(self._moved(), self._shown)
        if not self._pages or first != last or last >= ENTRIES:
            return since, []
        return last, noted(self._pages[0], since, last)

    def drain(self) -> list[Entry]:
        """All that was noted, and forget it."""
        taken, self.entries = self.entries, []
        return taken


def noted(ring: bytes | memoryview, first: int, last: int) -> list[Entry]:
    """The entries of a ring from one place to another."""
    places = ((first + at) % ENTRIES for at in range((last - first) % ENTRIES))
    found = (_ENTRY.unpack_from(ring, _INDICES.size + place * _ENTRY.size) for place in places)
    return [Entry(addr, pio, data[:length]) for addr, length, pio, data in found]


def _check(ioctl: str, zone: Zone) -> None:
    if zone.pio not in (0, 1):
        raise KvmError(errno.EINVAL, ioctl, f"pio is 0 or 1, not {zone.pio}", field="pio")
