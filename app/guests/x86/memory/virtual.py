"""Access to guest memory by linear address from outside the translator.

A read or write is cut at pages as in ``emulator_read_write``: parts in memory are done at once, the others are
returned as fragments for userspace.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from kickstand.guests.x86.memory.page_walk import FETCH, READ, WRITE
from kickstand.guests.x86.memory.physical import (
    PAGE,
    PAGE_MASK,
    AccessStoppedError,
    Fragment,
    in_fragments,
    page_pieces,
)
from kickstand.guests.x86.state.faults import GP, DeviceAccessError, GuestFaultError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kickstand.guests.x86.memory.paging import Mmu
    from kickstand.guests.x86.memory.physical import PhysicalMemory
    from kickstand.guests.x86.state.registers import CpuState


MAX_INSTRUCTION = 15


class VirtualMemory:
    """Linear memory of one CPU."""

    def __init__(self, memory: PhysicalMemory, mmu: Mmu, state: CpuState) -> None:
        self._memory = memory
        self._mmu = mmu
        self._state = state

    def gpa(self, address: int, access: int, *, user: bool) -> int:
        """Translate one address; raises the guest's fault."""
        if not self._state.long_mode:
            address &= 0xFFFFFFFF
        return self._mmu.translate(address, access, user=user).gpa | address & (PAGE - 1)

    def check(self, gpa: int, access: int) -> bool:
        """False if the access is a device's; raises ``AccessStoppedError`` if it can be neither done nor emulated."""
        return self._memory.resolve(gpa, write=access == WRITE) is not None

    def read_parts(self, address: int, length: int, *, user: bool) -> tuple[bytearray, list[Fragment]]:
        """Read what is in memory; the fragments are still missing."""
        pages = {
            piece & PAGE_MASK: self.gpa(piece & PAGE_MASK, READ, user=user)
            for piece, _, _ in page_pieces(address, length)
        }
        return self.read_at(pages, address, length)

    def read_at(self, pages: Mapping[int, int], address: int, length: int) -> tuple[bytearray, list[Fragment]]:
        """Read with pages that are already translated (virtual page to guest-physical page)."""
        data, missing = bytearray(length), []
        for piece, offset, size in page_pieces(address, length):
            gpa = pages[piece & PAGE_MASK] | piece & ~PAGE_MASK
            part = self._memory.read(gpa, size)
            if part is None:
                missing += in_fragments(gpa, offset, size)
            else:
                data[offset : offset + size] = part
        return data, missing

    def write_parts(self, address: int, data: bytes, *, user: bool) -> list[tuple[int, bytes]]:
        """Write what lies in memory; return the device part as (gpa, bytes).

        The memory part is done first even when the hole comes first, as ``emulator_read_write`` does it.
        """
        pieces = [
            (self.gpa(piece, WRITE, user=user), data[offset : offset + size])
            for piece, offset, size in page_pieces(address, len(data))
        ]
        return self.write_physical(pieces)

    def write_physical(self, pieces: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
        """Write pieces that lie in one page each; return those that belong to a device."""
        return [(gpa, part) for gpa, part in pieces if not self._memory.write(gpa, part)]

    def exchange(self, address: int, expected: bytes, new: bytes, *, user: bool) -> bytes | None:
        """Write ``new`` within one page if there is what is expected; what was there, or None for a device.

        Raises what keeps it from being written, even if it is not.
        """
        gpa = self.gpa(address, WRITE, user=user)
        if not self.check(gpa, WRITE):
            return None
        old = self._memory.read(gpa, len(new))
        if old == expected:
            self._memory.write(gpa, new)
        else:
            self._memory.note_dirty(gpa)
        return old

    def read_system(self, address: int, length: int) -> bytes:
        """Read a descriptor table or a task state segment."""
        data, missing = self.read_parts(address, length, user=False)
        if missing:
            raise DeviceAccessError(missing[0].gpa)
        return bytes(data)

    def write_system(self, address: int, data: bytes, *, user: bool = False) -> None:
        """Write all or nothing: every page is translated before the first byte is stored."""
        for piece, _, _ in page_pieces(address, len(data)):
            gpa = self.gpa(piece, WRITE, user=user)
            if self._memory.resolve(gpa, write=True) is None:
                raise DeviceAccessError(gpa)
        self.write_parts(address, data, user=user)

    def fetch(self) -> bytes:
        """Read the bytes of the instruction at RIP: at most 15, fewer if the next page cannot be fetched.

        Raises the guest's fault, or ``DeviceAccessError``, if its first byte cannot be fetched.
        """
        first = min(MAX_INSTRUCTION, PAGE - self._state.linear_rip % PAGE)
        code = self.fetch_part(0, first)
        if first < MAX_INSTRUCTION:
            with suppress(GuestFaultError, AccessStoppedError, DeviceAccessError):
                code += self.fetch_part(first, MAX_INSTRUCTION - first)
        return code

    def fetch_part(self, offset: int, length: int) -> bytes:
        """Read what lies so far behind RIP, within one page; it ends at the limit of CS."""
        state = self._state
        if state.beyond_code(state.rip + offset):
            raise GuestFaultError(GP)
        while state.beyond_code(state.rip + offset + length - 1):
            length -= 1
        address = state.linear_rip + offset
        gpa = self.gpa(address, FETCH, user=state.cpl == 3)  # noqa: PLR2004 - ring 3
        data = self._memory.read(gpa, length)
        if data is None:
            raise DeviceAccessError(gpa)
        return data
