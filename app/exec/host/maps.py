"""What a process has mapped where: one area at a time, by PROCMAP_QUERY where the kernel has it (Linux 6.11)."""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntFlag
from functools import cache

PAGE = 4096
_QUERY, _COVERING_OR_NEXT = 0xC0686611, 0x10
_QUERY_ARGUMENT = struct.Struct("=9Q4I2Q")
_NAME_SIZE = 256
_NO_NAME = (0,) * 12
_OUTPUTS = slice(24, 80)  # of the argument: bounds, flags, offset, inode and device
_SCAN = 0xC0606610
_SCAN_ARGUMENT = struct.Struct("=12Q")
_ZERO_PAGE, _PRESENT, _SWAPPED = 1 << 5, 1 << 3, 1 << 4
_REGIONS = 1024
_PAGEMAP_PRESENT, _PAGEMAP_SWAPPED = 1 << 63, 1 << 62
_PAGEMAP_PIECE = 1 << 16  # entries


class Access(IntFlag):
    """What an area allows, and whether stores reach what it maps."""

    READ = 1
    WRITE = 2
    EXECUTE = 4
    SHARED = 8


@dataclass(frozen=True, slots=True)
class Area:
    """One VMA: ``key`` is the device and inode of the file behind it, (0, 0) for anonymous memory."""

    start: int
    end: int
    access: Access
    offset: int
    key: tuple[int, int]
    name: str

    @property
    def shared(self) -> bool:
        """Stores reach the file."""
        return bool(self.access & Access.SHARED)

    @property
    def anonymous(self) -> bool:
        """No file is behind it: a page that is not there yet is zero."""
        return self.key == (0, 0)


class Maps:
    """The areas of one process, through its ``maps`` file."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.descriptor = os.open(f"/proc/{pid}/maps", os.O_RDONLY | os.O_CLOEXEC)
        self._buffer = bytearray(_QUERY_ARGUMENT.size)

    def close(self) -> None:
        """Let go of the process."""
        os.close(self.descriptor)

    def find(self, address: int) -> Area | None:
        """The area that holds ``address``, or else the next one above it."""
        if can_query():
            return self._query(address)
        return next((area for area in self.all() if area.end > address), None)

    def fingerprint(self, address: int) -> bytes:
        """What is mapped at ``address``, as bytes that are equal as long as it is the same. Cheaper than ``find``."""
        if not can_query():
            return repr(self.find(address)).encode()
        buffer = self._buffer
        buffer[:] = _QUERY_ARGUMENT.pack(_QUERY_ARGUMENT.size, _COVERING_OR_NEXT, address, *_NO_NAME)
        try:
            fcntl.ioctl(self.descriptor, _QUERY, buffer)
        except OSError:
            return b""
        return bytes(buffer[_OUTPUTS])

    def between(self, start: int, end: int) -> Iterator[Area]:
        """The areas that touch a range, in order."""
        while start < end:
            area = self.find(start)
            if area is None or area.start >= end:
                return
            yield area
            start = area.end

    def all(self) -> Iterator[Area]:
        """Every area, from the text."""
        os.lseek(self.descriptor, 0, os.SEEK_SET)
        text = b"".join(iter(lambda: os.read(self.descriptor, 1 << 16), b""))
        for line in text.decode(errors="replace").splitlines():
            yield _parsed(line)

    def _query(self, address: int) -> Area | None:
        name = ctypes.create_string_buffer(_NAME_SIZE)
        fields = (_QUERY_ARGUMENT.size, _COVERING_OR_NEXT, address, 0, 0, 0, 0, 0, 0, 0, 0, _NAME_SIZE, 0)
        argument = bytearray(_QUERY_ARGUMENT.pack(*fields, ctypes.addressof(name), 0))
        try:
            fcntl.ioctl(self.descriptor, _QUERY, argument)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESRCH):
                return None
            raise
        _, _, _, start, end, flags, _, offset, inode, major, minor, length, *_ = _QUERY_ARGUMENT.unpack(argument)
        text = name.value.decode(errors="replace") if length else ""
        return Area(start, end, Access(flags & 15), offset, (os.makedev(major, minor), inode), text)


@cache
def can_query() -> bool:
    """The kernel answers PROCMAP_QUERY."""
    return _answers("maps", _QUERY)


@cache
def can_scan() -> bool:
    """The kernel answers PAGEMAP_SCAN (Linux 6.7)."""
    return _answers("pagemap", _SCAN)


def _answers(file: str, request: int) -> bool:
    """A file of /proc knows a request: it finds fault with the argument instead of the number."""
    descriptor = os.open(f"/proc/self/{file}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, request, bytes(_QUERY_ARGUMENT.size))
    except OSError as error:
        return error.errno != errno.ENOTTY
    finally:
        os.close(descriptor)
    return True


def _parsed(line: str) -> Area:
    bounds, access, offset, device, inode, *name = line.split(maxsplit=5)
    start, end = (int(bound, 16) for bound in bounds.split("-"))
    major, minor = (int(part, 16) for part in device.split(":"))
    flags = sum(bit for letter, bit in zip("rwxs", Access, strict=True) if letter in access)
    return Area(
        start, end, Access(flags), int(offset, 16), (os.makedev(major, minor), int(inode)), name[0] if name else ""
    )


# -- which pages of private memory hold something ------------------------------------------------------------------


def touched(pid: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The stretches of a range whose pages are in memory or swapped out; all others were never written."""
    descriptor = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield from _scanned(descriptor, start, end) if can_scan() else _read(descriptor, start, end)
    finally:
        os.close(descriptor)


def _scanned(descriptor: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    regions = (ctypes.c_uint64 * (3 * _REGIONS))()
    wanted = _PRESENT | _SWAPPED
    while start < end:
        fields = (_SCAN_ARGUMENT.size, 0, start, end, 0, ctypes.addressof(regions), _REGIONS, 0)
        argument = bytearray(_SCAN_ARGUMENT.pack(*fields, _ZERO_PAGE, _ZERO_PAGE, wanted, wanted))
        found = fcntl.ioctl(descriptor, _SCAN, argument, True)
        for at in range(0, 3 * found, 3):
            yield regions[at], regions[at + 1]
        reached = _SCAN_ARGUMENT.unpack(argument)[4]
        if reached <= start:
            return
        start = reached


def _read(descriptor: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The same from eight bytes a page. A sparse area is mostly zeros, which one comparison skips."""
    while start < end:
        count = min((end - start) // PAGE, _PAGEMAP_PIECE)
        data = os.pread(descriptor, 8 * count, start // PAGE * 8)
        if data != bytes(len(data)):
            yield from _runs(array.array("Q", data), start)
        start += count * PAGE


def _runs(entries: array.array[int], start: int) -> Iterator[tuple[int, int]]:
    begun: int | None = None
    for at, entry in enumerate(entries):
        if entry & (_PAGEMAP_PRESENT | _PAGEMAP_SWAPPED):
            begun = at if begun is None else begun
        elif begun is not None:
            yield start + begun * PAGE, start + at * PAGE
            begun = None
    if begun is not None:
        yield start + begun * PAGE, start + len(entries) * PAGE
