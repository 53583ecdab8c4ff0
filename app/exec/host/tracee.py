"""A thread of the program, stopped for a moment to make system calls of ours (``ptrace``).

Only the caller of an ioctl is made to do so: it stops on its way out, right after a ``syscall`` instruction, and goes
on as if nothing had been. The other threads of its process stand still meanwhile, so that no store is lost.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Callable, Container, Generator
from contextlib import contextmanager
from typing import Any

from kickstand.exec.host import linux

_GETREGS, _SETREGS, _SINGLESTEP, _DETACH = 12, 13, 9, 17
_SEIZE, _INTERRUPT, _GETSIGMASK, _SETSIGMASK = 0x4206, 0x4207, 0x420A, 0x420B
_ALL_CHILDREN = 0x40000000  # __WALL
_SIGNALS = 8  # bytes of a signal set
_SYSCALL_LENGTH = 2  # bytes of the instruction
_GONE = frozenset("XZ")
_BUSY = "D"  # in the kernel for a moment (a page fault), or until its child has become a program (vfork)
_STOPS = 8  # rounds of looking for threads that were born meanwhile
_MOMENT_S, _MOMENTS = 0.0002, 10
_SOON_S = 0.00002

MMAP, CLOSE, IOCTL = 9, 3, 16


_REGISTERS = (
    "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss "
    "fs_base gs_base ds es fs gs"
)


class Registers(ctypes.Structure):
    """``struct user_regs_struct``."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in _REGISTERS.split())


class TraceeError(Exception):
    """The thread cannot be made to do something: another tracer has it, or it has ended."""


class Caller:
    """The stopped thread that issued the ioctl."""

    def __init__(self, tid: int) -> None:
        self.tid = tid
        self._before = self._registers()
        self._mask = ctypes.create_string_buffer(_SIGNALS)
        linux.ptrace(_GETSIGMASK, tid, _SIGNALS, ctypes.addressof(self._mask))
        everything = ctypes.create_string_buffer(b"\xff" * _SIGNALS, _SIGNALS)
        linux.ptrace(_SETSIGMASK, tid, _SIGNALS, ctypes.addressof(everything))

    def _registers(self) -> Any:
        registers = Registers()
        linux.ptrace(_GETREGS, self.tid, 0, ctypes.addressof(registers))
        return registers

    def call(self, number: int, *args: int) -> int:
        """Make one system call in the thread and return its result, negative for an error."""
        registers: Any = Registers.from_buffer_copy(self._before)
        registers.rax, registers.orig_rax = number, -1 & (1 << 64) - 1
        for name, value in zip(("rdi", "rsi", "rdx", "r10", "r8", "r9"), args, strict=False):
            setattr(registers, name, value & (1 << 64) - 1)
        registers.rip = self._before.rip - _SYSCALL_LENGTH
        linux.ptrace(_SETREGS, self.tid, 0, ctypes.addressof(registers))
        linux.ptrace(_SINGLESTEP, self.tid)
        _wait_for_stop(self.tid)
        result = int(self._registers().rax)
        return result - (1 << 64) if result >> 63 else result

    def call_again(self) -> None:
        """Make the thread issue its ioctl once more when it goes on."""
        self._before.rip -= _SYSCALL_LENGTH
        self._before.rax, self._before.orig_rax = IOCTL, -1 & (1 << 64) - 1

    def restore(self) -> None:
        """Put everything back as it was."""
        linux.ptrace(_SETREGS, self.tid, 0, ctypes.addressof(self._before))
        linux.ptrace(_SETSIGMASK, self.tid, _SIGNALS, ctypes.addressof(self._mask))


@contextmanager
def standing_still(tgid: int, tid: int, held: Container[int], leave_kernel: Callable[[], object]) -> Generator[Caller]:
    """Stop a process; yields its thread ``tid``, which ``leave_kernel`` lets out of the system call it waits in.

    ``held``: the threads whose calls were received and are not answered. They make no store, and no stop reaches them,
    whatever the kernel says of their state: one that has just been received is on its way to sleep.

    ``TraceeError``: it cannot be stopped, or has ended; if it has not, ``leave_kernel`` was not called.
    """
    stopped: list[int] = []
    try:
        _seize(tid)
        stopped.append(tid)
        stopped += _stop_others(tgid, held)
        leave_kernel()
        _wait_for_stop(tid)
        caller = Caller(tid)
        try:
            yield caller
        finally:
            caller.restore()
    except OSError as error:
        raise TraceeError(f"thread {tid}: {error.strerror}") from error
    finally:
        for thread in stopped:
            _let_go(tgid, thread)


def _seize(tid: int) -> None:
    linux.ptrace(_SEIZE, tid)
    linux.ptrace(_INTERRUPT, tid)


def _stop_others(tgid: int, held: Container[int]) -> list[int]:
    stopped: list[int] = []
    for _ in range(_STOPS):
        others = (thread for thread in threads(tgid) if thread not in held and thread not in stopped)
        running = [thread for thread in others if _awake(thread)]
        if not running:
            break
        for thread in running:
            with contextlib.suppress(OSError, TraceeError):  # it has ended
                _seize(thread)
                stopped.append(thread)
                _wait_for_stop(thread)
    return stopped


def threads(tgid: int) -> list[int]:
    """The threads of a process; none if it has ended."""
    try:
        return [int(name) for name in os.listdir(f"/proc/{tgid}/task")]
    except OSError:
        return []


def _awake(tid: int) -> bool:
    """It may make a store. One that is busy in the kernel could not be let go again before it is through with it."""
    for _ in range(_MOMENTS):
        state = _state(tid)
        if state != _BUSY:
            return state not in _GONE
        time.sleep(_MOMENT_S)
    return False


def is_running(tid: int) -> bool:
    """The thread runs or waits for a CPU."""
    return _state(tid) == "R"


def _state(tid: int) -> str:
    return _stat(tid)[0]


def _is_our_child(tid: int) -> bool:
    return _stat(tid)[1] == str(os.getpid())


def _stat(tid: int) -> tuple[str, str]:
    """The state of a thread and its process's parent."""
    try:
        with open(f"/proc/{tid}/stat", "rb") as file:
            state, parent = file.read().rpartition(b")")[2].split()[:2]
    except OSError:
        return "X", ""
    return state.decode(), parent.decode()


def _wait_for_stop(tid: int) -> None:
    """Return once a thread stands still. ``TraceeError``: it has ended; whoever is its parent hears of it later."""
    options = os.WSTOPPED | os.WEXITED | os.WNOWAIT | os.WNOHANG | _ALL_CHILDREN
    while (seen := os.waitid(os.P_PID, tid, options)) is None:
        if _state(tid) in _GONE:  # the first of several threads: its end is told after theirs
            raise TraceeError(f"thread {tid} has ended")
        time.sleep(_SOON_S)
    if seen.si_code in (os.CLD_EXITED, os.CLD_KILLED, os.CLD_DUMPED):
        raise TraceeError(f"thread {tid} has ended")
    os.waitpid(tid, _ALL_CHILDREN)


def _let_go(tgid: int, tid: int) -> None:
    """Let a thread go on; one that has ended meanwhile would keep its process from ending."""
    try:
        linux.ptrace(_DETACH, tid)
    except OSError:
        with contextlib.suppress(OSError):
            if tid != tgid or not _is_our_child(tid):  # how that one has ended is asked for elsewhere
                os.waitpid(tid, os.WNOHANG | _ALL_CHILDREN)


def may_trace(pid: int) -> bool:
    """A child can be stopped and let go."""
    try:
        _seize(pid)
        _wait_for_stop(pid)
        linux.ptrace(_DETACH, pid)
    except (OSError, TraceeError):
        return False
    return True
