"""Which address of this process stands for a host address that users see.

Users name synthetic addresses. Memory of an arena is where it is; for anything else a stretch is reserved that
nobody can read or write, so that no slot can ever show the rest of this process to a guest. A range that is
partly backed gets such a stretch with the backed parts mapped into it once more.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterable

from kickstand.core.errors import KvmError
from kickstand.core.memslots import SET_MEMORY, USER_SPACE_END, Region, Slot
from kickstand.core.uapi import MAX_SLOT_PAGES, PAGE_SHIFT, PAGE_SIZE
from kickstand.guests.host_memory import HostMemory
from kickstand.guests.kvm.device import libc

PROT_NONE = 0
MAP_NORESERVE = 0x4000
MREMAP_MAYMOVE_FIXED = 3
FAILED = ctypes.c_void_p(-1).value

libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
libc.mremap.restype = ctypes.c_void_p
libc.mremap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)


class Addresses:
    """The translation for one VM."""

    def __init__(self, memory: HostMemory) -> None:
        self._memory = memory
        self._reserved: dict[tuple[int, int], int] = {}  # (host address, size): address in this process

    def of_slot(self, region: Region) -> int:
        """The ``userspace_addr`` that the kernel is told for ``region``."""
        hva, size = region.userspace_addr, region.memory_size
        if refused(region):
            arena = self._memory.find(hva)
            return hva if arena is None else arena.address + hva - arena.base
        runs = list(self._memory.runs(hva, size))
        if len(runs) == 1 and runs[0].address is not None:
            return runs[0].address
        if (hva, size) not in self._reserved:
            self._reserved[hva, size] = self._reserve(hva, size)
        return self._reserved[hva, size]

    def _reserve(self, hva: int, size: int) -> int:
        address = libc.mmap(None, size, PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        if address in (None, FAILED):
            raise KvmError(errno.ENOMEM, SET_MEMORY, f"no room for {size} bytes of addresses", field="memory_size")
        for run in self._memory.runs(hva, size):
            if run.address is None:
                continue
            # An old size of 0 maps shared memory a second time.
            there = libc.mremap(run.address, 0, run.size, MREMAP_MAYMOVE_FIXED, address + run.hva - hva)
            if there in (None, FAILED):
                libc.munmap(address, size)
                raise KvmError(errno.ENOMEM, SET_MEMORY, os.strerror(ctypes.get_errno()), field="memory_size")
        return int(address)

    def keep_only(self, slots: Iterable[Slot]) -> None:
        """Give back what no slot uses any more."""
        used = {(slot.userspace_addr, slot.npages << PAGE_SHIFT) for slot in slots}
        for key in [key for key in self._reserved if key not in used]:
            libc.munmap(self._reserved.pop(key), key[1])


def refused(region: Region) -> bool:
    """The kernel makes no slot of this, whatever else is true; so any address can be shown to it."""
    hva, size = region.userspace_addr, region.memory_size
    return (
        not size
        or bool((hva | size) % PAGE_SIZE)
        or hva + size > USER_SPACE_END
        or size >> PAGE_SHIFT > MAX_SLOT_PAGES
    )  # fmt: skip
