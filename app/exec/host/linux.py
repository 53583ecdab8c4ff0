"""Calls of Linux that Python's library lacks. Each raises ``OSError`` as the library's own would."""

from __future__ import annotations

import ctypes
import mmap
import os
from functools import cache

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 36, 38
SECCOMP = 317  # __NR_seccomp on x86-64
KCMP, KCMP_VM = 312, 1
PIDFD_GETFD = 438
MAP_NORESERVE = 0x4000
MADV_REMOVE = 9
IN_CLOSE_WRITE = 8
F_ADD_SEALS, F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW = 1033, 1, 2, 4
_FAILED = ctypes.c_void_p(-1).value


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    word, number = ctypes.c_size_t, ctypes.c_int
    libc.mmap.argtypes = [ctypes.c_void_p, word, number, number, number, ctypes.c_int64]
    libc.mmap.restype = ctypes.c_void_p
    libc.munmap.argtypes = [ctypes.c_void_p, word]
    libc.madvise.argtypes = [ctypes.c_void_p, word, number]
    libc.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, word]
    libc.prctl.argtypes = [number, *[ctypes.c_ulong] * 4]
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    libc.syscall.argtypes = [ctypes.c_long, *[ctypes.c_void_p] * 5]
    libc.syscall.restype = ctypes.c_long
    return libc


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _mapped(address: int | None) -> int:
    if address is None or address == _FAILED:
        raise OSError(ctypes.get_errno(), f"mmap: {os.strerror(ctypes.get_errno())}")
    return address


def map_shared(descriptor: int, size: int, *, private: bool = False) -> int:
    """Map ``size`` bytes of a file to read and write, without reserving them; returns the address."""
    kind = mmap.MAP_PRIVATE if private else mmap.MAP_SHARED
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    address = _libc().mmap(None, size, protection, kind | MAP_NORESERVE, descriptor, 0)
    return _mapped(address)


def map_private(size: int) -> int:
    """Map ``size`` bytes of zeros of our own, without reserving them."""
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    address = _libc().mmap(None, size, protection, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    return _mapped(address)


def unmap(address: int, size: int) -> None:
    """``munmap`` what ``map_shared`` mapped."""
    _checked(_libc().munmap(address, size), "munmap")


def discard(address: int, size: int) -> None:
    """Make shared pages zero again, for everybody who has them mapped, and give their memory back."""
    _checked(_libc().madvise(address, size, MADV_REMOVE), "madvise")


def view_of(address: int, size: int) -> memoryview:
    """The bytes at an address of this process."""
    return memoryview((ctypes.c_char * size).from_address(address)).cast("B")


def address_of(buffer: bytearray) -> int:
    """Where a buffer lies."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def same(one: int, other: int, size: int) -> bool:
    """``memcmp`` of bytes of this process."""
    return bool(_libc().memcmp(one, other, size) == 0)


def copy(to: int, source: int, size: int) -> None:
    """``memmove`` within this process."""
    ctypes.memmove(to, source, size)


def prctl(option: int, value: int) -> None:
    """``prctl`` with one argument."""
    _checked(_libc().prctl(option, value, 0, 0, 0), "prctl")


def seccomp(operation: int, flags: int, argument: int) -> int:
    """``seccomp``; ``argument`` is an address."""
    return _checked(_libc().syscall(SECCOMP, operation, flags, argument, None, None), "seccomp")


def copy_descriptor(pidfd: int, number: int) -> int:
    """``pidfd_getfd``: our own copy of a process's descriptor."""
    copy = _checked(_libc().syscall(PIDFD_GETFD, pidfd, number, 0, None, None), "pidfd_getfd")
    os.set_inheritable(copy, False)
    return copy


def same_memory(one: int, other: int) -> bool:
    """Two processes share their address space. False also if nobody may say."""
    return bool(_libc().syscall(KCMP, one, other, KCMP_VM, None, None) == 0)


def ptrace(request: int, tid: int, address: int = 0, data: int = 0) -> int:
    """``ptrace``; addresses are addresses of this process."""
    return _checked(_libc().ptrace(request, tid, address, data), f"ptrace of {tid}")


def inotify() -> int:
    """A new, non-blocking inotify descriptor."""
    return _checked(_libc().inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK), "inotify_init1")


def watch(descriptor: int, path: str, mask: int) -> int:
    """Watch a file; returns the watch's number."""
    return _checked(_libc().inotify_add_watch(descriptor, path.encode(), mask), "inotify_add_watch")


def unwatch(descriptor: int, number: int) -> None:
    """End a watch."""
    _checked(_libc().inotify_rm_watch(descriptor, number), "inotify_rm_watch")
