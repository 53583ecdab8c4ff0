"""A process of the program, as far as an ioctl needs it: its memory, and what it is."""

from __future__ import annotations

import errno
import os

from kickstand.core.errors import KvmError
from kickstand.exec.host.maps import Maps


class Process:
    """One address space of the program. ``tgid`` is the process that was seen to use it first."""

    def __init__(self, tgid: int) -> None:
        self.tgid = tgid
        self.maps = Maps(tgid)
        self._memory = os.open(f"/proc/{tgid}/mem", os.O_RDWR | os.O_CLOEXEC)

    def read(self, address: int, length: int) -> bytes:
        """``copy_from_user``. EFAULT: not all of it is there."""
        try:
            data = os.pread(self._memory, length, address)
        except (OSError, OverflowError):
            raise _fault(address, length) from None
        if len(data) != length:
            raise _fault(address, length)
        return data

    def write(self, address: int, data: bytes) -> None:
        """``copy_to_user``. EFAULT: not all of it is there; what comes before that is written."""
        try:
            written = os.pwrite(self._memory, data, address)
        except (OSError, OverflowError):
            raise _fault(address, len(data)) from None
        if written != len(data):
            raise _fault(address, len(data))

    def read_into(self, address: int, target: memoryview) -> int:
        """Copy as many bytes as are there, from ``address`` on; returns how many."""
        done = 0
        while done < len(target):
            try:
                count = os.preadv(self._memory, [target[done:]], address + done)
            except OSError:
                return done
            if not count:
                return done
            done += count
        return done

    @property
    def alive(self) -> bool:
        """The address space still exists: it ends with its processes, and with ``execve``."""
        return self.maps.find(0) is not None

    def close(self) -> None:
        """Let go of the process."""
        self.maps.close()
        os.close(self._memory)


def tgid_of(tid: int) -> int:
    """The process of a thread. ``ProcessLookupError``: it has ended."""
    try:
        with open(f"/proc/{tid}/status", "rb") as file:
            text = file.read(512)
    except OSError:
        raise ProcessLookupError(errno.ESRCH, f"thread {tid} has ended") from None
    return int(text.partition(b"\nTgid:")[2].split(None, 1)[0])


def run_delay_ns(tid: int) -> int:
    """How long a thread has waited for a CPU; 0 where the kernel does not count, or the thread has ended."""
    try:
        with open(f"/proc/{tid}/schedstat", "rb") as file:
            return int(file.read(128).split()[1])
    except (OSError, IndexError):
        return 0


class RunDelay:
    """How long the thread that was last in KVM_RUN has waited for a CPU, in nanoseconds.

    It is looked at once in a KVM_RUN: in there the thread waits for its answer, not for a CPU.
    """

    def __init__(self) -> None:
        self._tid = 0
        self._seen_ns: int | None = None

    def begin(self, tid: int) -> None:
        """A thread comes to KVM_RUN."""
        self._tid, self._seen_ns = tid, None

    def __call__(self) -> int:
        """What has been seen, now at the latest."""
        if self._seen_ns is None:
            self._seen_ns = run_delay_ns(self._tid)
        return self._seen_ns


def _fault(address: int, length: int) -> KvmError:
    return KvmError(errno.EFAULT, "ioctl", f"{length} bytes at {address:#x} are not all in the program's memory")
