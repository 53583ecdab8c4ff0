"""Memory that a mapping gives and takes back at once, without a descriptor for each.

``mmap.mmap`` keeps a copy of a file's descriptor for as long as the mapping lives. Here an anonymous mapping has the
file's pages, or none at all, put over it: what Python knows is the address range alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os

MAP_FIXED = 0x10
NORESERVE = 0x4000  # MAP_NORESERVE: pages that nobody will write cost nothing
FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)  # its calls leave the interpreter to others, which mmap's own do not
_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)


def address_of(buffer: mmap.mmap) -> int:
    """Where ``buffer`` is in this process."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def anonymous(_name: str, size: int) -> mmap.mmap:
    """Map ``size`` zeroed bytes, which other mappings of this process can share. ``OSError``: there are no more."""
    return mmap.mmap(-1, size)


def of_file(descriptor: int, size: int) -> mmap.mmap:
    """Map the first ``size`` bytes of a file; the descriptor may be closed then. ``OSError``: it cannot be mapped."""
    buffer = mmap.mmap(-1, size)
    try:
        _put_over(buffer, mmap.MAP_SHARED, descriptor)
    except OSError:
        buffer.close()
        raise
    return buffer


def give_back(buffer: mmap.mmap) -> None:
    """Return the pages of a mapping now. Takes a while for much memory, during which other threads run.

    Whoever still has a view of it sees zeros from now on; the addresses are given back after the last of them.
    """
    _put_over(buffer, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE, -1)
    with contextlib.suppress(BufferError):
        buffer.close()


def _put_over(buffer: mmap.mmap, flags: int, descriptor: int) -> None:
    address, access = address_of(buffer), mmap.PROT_READ | mmap.PROT_WRITE
    if _mmap(address, len(buffer), access, flags | MAP_FIXED, descriptor, 0) in (None, FAILED):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
