"""Seccomp user notification: which system calls come here, and how they are answered.

The filter must not need the program's memory, so it looks at numbers only: every ``open`` comes, and of ``ioctl`` what
has KVM's type byte. The low 32 bits of a request count: some programs pass it as an ``int``, sign and all.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import struct
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from enum import IntEnum

SET_MODE_FILTER = 1
NEW_LISTENER, WAIT_KILLABLE_RECV = 1 << 3, 1 << 5
FILTER_FLAGS = NEW_LISTENER | WAIT_KILLABLE_RECV
AUDIT_ARCH_X86_64 = 0xC000003E
KVM_TYPE = 0xAE00

_RECV, _SEND, _ADDFD, _SET_FLAGS = 0xC0502100, 0xC0182101, 0x40182103, 0x40082104
_SYNC_WAKE_UP = 1
_CONTINUE = 1
_ADDFD_SEND = 2
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
_RESPONSE = struct.Struct("=QqiI")
_ADD = struct.Struct("=QIIII")


class Syscall(IntEnum):
    """The system calls that may come here, by their numbers on x86-64."""

    OPEN = 2
    STAT = 4
    LSTAT = 6
    MMAP = 9
    IOCTL = 16
    ACCESS = 21
    MADVISE = 28
    KILL = 62
    RT_SIGQUEUEINFO = 129
    TKILL = 200
    TGKILL = 234
    OPENAT = 257
    NEWFSTATAT = 262
    FACCESSAT = 269
    RT_TGSIGQUEUEINFO = 297
    SECCOMP = 317
    STATX = 332
    OPENAT2 = 437
    FACCESSAT2 = 439


OPENS = frozenset({Syscall.OPEN, Syscall.OPENAT, Syscall.OPENAT2})
SIGNALS = frozenset({Syscall.KILL, Syscall.TKILL, Syscall.TGKILL, Syscall.RT_SIGQUEUEINFO, Syscall.RT_TGSIGQUEUEINFO})
_PLAIN_LOOKS = {Syscall.ACCESS, Syscall.FACCESSAT, Syscall.FACCESSAT2, Syscall.STAT, Syscall.LSTAT}
LOOKS = frozenset({*_PLAIN_LOOKS, Syscall.NEWFSTATAT, Syscall.STATX})
MADV_DONTNEED = 4
AT_EMPTY_PATH = 0x1000
RING_OFFSET = 0x40000  # where a vCPU's dirty ring is mapped (KVM_DIRTY_LOG_PAGE_OFFSET): not like any file

# -- the filter ----------------------------------------------------------------------------------------------------

_LOAD, _EQUAL, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x45, 0x54, 0x06
_NR, _ARCH, _ARGUMENTS = 0, 4, 16
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
_ALWAYS = sorted(OPENS | SIGNALS | _PLAIN_LOOKS)


def _low_word(argument: int) -> tuple[int, int, str, str]:
    return _LOAD, _ARGUMENTS + 8 * argument, "", ""


def _program() -> list[tuple[int, int, str, str]]:
    """Instructions as (code, operand, where to if true, where to if false); an empty name is the next one."""
    return [
        (_LOAD, _ARCH, "", ""),
        (_EQUAL, AUDIT_ARCH_X86_64, "", "allow"),
        (_LOAD, _NR, "", ""),
        (_EQUAL, Syscall.IOCTL, "ioctl", ""),
        (_EQUAL, Syscall.MADVISE, "madvise", ""),
        (_EQUAL, Syscall.MMAP, "mmap", ""),
        (_EQUAL, Syscall.NEWFSTATAT, "fstat", ""),
        (_EQUAL, Syscall.STATX, "statx", ""),
        (_EQUAL, Syscall.SECCOMP, "seccomp", ""),
        *[(_EQUAL, int(number), "notify", "") for number in _ALWAYS[:-1]],
        (_EQUAL, int(_ALWAYS[-1]), "notify", "allow"),  # jumps go forward only
        (*_low_word(1)[:2], "ioctl", ""),
        (_AND, 0xFF00, "", ""),
        (_EQUAL, KVM_TYPE, "notify", "allow"),
        (*_low_word(2)[:2], "madvise", ""),
        (_EQUAL, MADV_DONTNEED, "notify", "allow"),
        (*_low_word(5)[:2], "mmap", ""),
        (_EQUAL, RING_OFFSET, "notify", "allow"),
        (*_low_word(3)[:2], "fstat", ""),
        (_ANY_BIT, AT_EMPTY_PATH, "allow", "notify"),
        (*_low_word(2)[:2], "statx", ""),
        (_ANY_BIT, AT_EMPTY_PATH, "allow", "notify"),
        (*_low_word(1)[:2], "seccomp", ""),
        (_ANY_BIT, NEW_LISTENER, "notify", "allow"),
        (_RETURN, _ALLOW, "allow", ""),
        (_RETURN, _NOTIFY, "notify", ""),
    ]


def filter_program() -> bytes:
    """The classic BPF program: ``struct sock_filter`` by ``struct sock_filter``."""
    program = _program()
    labels = {true: at for at, (code, _, true, _) in enumerate(program) if code in (_LOAD, _RETURN) and true}
    code = bytearray()
    for at, (operation, operand, true, false) in enumerate(program):
        jumps = operation in (_EQUAL, _ANY_BIT)
        jump_true = labels[true] - at - 1 if jumps and true else 0
        jump_false = labels[false] - at - 1 if jumps and false else 0
        code += struct.pack("=HBBI", operation, jump_true, jump_false, operand)
    return bytes(code)


# -- the listener --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Notification:
    """A system call that waits for its answer. ``tid`` is the thread, ``args`` are six unsigned words."""

    id: int
    tid: int
    nr: int
    args: tuple[int, ...]


class Listener:
    """Receives and answers the system calls of all programs under one filter.

    A thread whose call was received waits until it is answered or killed: no signal takes the answer away.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.held: set[int] = set()
        """Threads whose calls were received and are not answered."""
        self._kept: dict[int, bytes | None] = {}  # answers to threads that may not have them yet
        self._buffer = bytearray(_NOTIFICATION.size)
        self._zeros = bytes(_NOTIFICATION.size)
        with contextlib.suppress(OSError):
            fcntl.ioctl(descriptor, _SET_FLAGS, _SYNC_WAKE_UP)  # Linux 6.6: halves a round trip

    def receive(self) -> Notification | None:
        """Take the next call; None if its thread was killed meanwhile. Blocks if there is none."""
        buffer = self._buffer
        buffer[:] = self._zeros
        try:
            fcntl.ioctl(self.descriptor, _RECV, buffer)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                return None
            raise
        number, tid, _flags, nr, _arch, _ip, *args = _NOTIFICATION.unpack(buffer)
        self.held.add(tid)
        return Notification(number, tid, nr, tuple(args))

    def answer(self, notification: Notification, result: int = 0, error: int = 0) -> bool:
        """Let the call return ``result``, or -1 with errno ``error``. False: its thread is gone."""
        return self._send(notification.tid, _RESPONSE.pack(notification.id, result, -error, 0))

    def go_on(self, notification: Notification) -> bool:
        """Let the kernel perform the call."""
        return self._send(notification.tid, _RESPONSE.pack(notification.id, 0, 0, _CONTINUE))

    def _send(self, tid: int, response: bytes) -> bool:
        if tid in self._kept:
            self._kept[tid] = response
            return True
        self.held.discard(tid)
        try:
            fcntl.ioctl(self.descriptor, _SEND, response)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINPROGRESS):
                return False
            raise
        return True

    def give(self, notification: Notification, descriptor: int, *, cloexec: bool, answer: bool) -> int:
        """Put a copy of our descriptor into the program and return its number there.

        ``answer``: the call returns that number, in the same step. Errors: ENOENT, the thread is gone; EMFILE, the
        program has no number left.
        """
        flags = 0o2000000 if cloexec else 0
        at_once = answer and notification.tid not in self._kept
        request = bytearray(_ADD.pack(notification.id, _ADDFD_SEND if at_once else 0, descriptor, 0, flags))
        given = int(fcntl.ioctl(self.descriptor, _ADDFD, request, True))
        if answer and not at_once:
            self.answer(notification, given)
        elif answer:
            self.held.discard(notification.tid)
        return given

    @contextlib.contextmanager
    def keeping(self, tids: Iterable[int]) -> Generator[None]:
        """Keep the answers to these threads, whose calls have been received, until the end of the block."""
        kept = dict.fromkeys(tids)
        self._kept.update(kept)
        try:
            yield
        finally:
            for tid in kept:
                response = self._kept.pop(tid)
                if response is not None:
                    self._send(tid, response)
