"""Start a program under the filter: a child that waits for the word, sets itself up, and becomes the program.

It is forked before this process has threads or an event loop. What goes wrong in it comes back as a sentence.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from kickstand.exec.host import linux
from kickstand.exec.host.notify import FILTER_FLAGS, SET_MODE_FILTER, filter_program

_ELF_64, _X86_64 = 2, 62
_HEADER = struct.Struct("=4sB13xH")  # e_ident's magic and class, e_machine


class LaunchError(Exception):
    """The program was not started; the text says why."""


@dataclass(slots=True)
class Child:
    """A child that waits to become the program: it does so when ``start`` is called."""

    pid: int
    channel: socket.socket

    def start(self) -> int:
        """Let the child set up its filter and go on to the program; returns the filter's listener.

        From now on the program's calls wait for answers, those that load it included: ``failure`` must be asked for
        beside answering them.
        """
        self.channel.send(b"go")
        message, descriptors, _flags, _address = socket.recv_fds(self.channel, 4096, 1)
        if not descriptors:
            self.give_up()
            raise LaunchError(message.decode(errors="replace") or "the child ended before it was set up")
        self.channel.setblocking(False)
        return descriptors[0]

    def failure(self) -> str | None:
        """Why the program was not loaded; an empty text once it was, None while that is not known."""
        try:
            return self.channel.recv(4096).decode(errors="replace")
        except BlockingIOError:
            return None
        except OSError:
            return ""

    def give_up(self) -> None:
        """End a child that shall not become the program."""
        self.channel.close()
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def prepare(command: Sequence[str]) -> Child:
    """Fork the child for ``command``. ``LaunchError``: it is no program that can run here."""
    why_not = unusable() or refusal(command[0])
    if why_not:
        raise LaunchError(why_not)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        ours.close()
        _become(command, theirs, parent)
    theirs.close()
    return Child(pid, ours)


def _become(command: Sequence[str], channel: socket.socket, parent: int) -> NoReturn:
    try:
        if channel.recv(2) == b"go":
            _set_up(channel, parent)
            os.execvp(command[0], list(command))  # noqa: S606  the very thing that was asked for
    except OSError as error:
        channel.send(f"{command[0]}: {_sentence(error)}".encode())
    except BaseException as error:  # noqa: BLE001  nothing of this process may run in the child
        channel.send(repr(error).encode())
    finally:
        os._exit(125)
    os._exit(125)


def _set_up(channel: socket.socket, parent: int) -> None:
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores them, and a program inherits that
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)  # it could not go on without us
    if os.getppid() != parent:
        raise OSError(errno.ESRCH, "its supervisor has gone")
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    listener = install_filter(filter_program())
    socket.send_fds(channel, [b"listener"], [listener])
    os.close(listener)


def install_filter(program: bytes) -> int:
    """Put this thread under a filter, for good; returns the listener. EINVAL: the kernel is too old; EBUSY: has one."""
    code = ctypes.create_string_buffer(program)
    header = ctypes.create_string_buffer(struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(code)))
    return linux.seccomp(SET_MODE_FILTER, FILTER_FLAGS, ctypes.addressof(header))


def _sentence(error: OSError) -> str:
    if error.errno == errno.EBUSY:
        return "this process is under a seccomp listener already, and there can be one only"
    return error.strerror or str(error)


def refusal(program: str) -> str:
    """Why a program cannot run under the emulator; empty if nothing is known against it."""
    found = _found(program)
    if found is None:
        return f"{program}: no such program, or it cannot be executed"
    path = Path(found)
    status = path.stat()
    if status.st_mode & 0o6000 and os.geteuid() != 0:
        return f"{found} is set-user-id or set-group-id: the kernel gives no rights to a program under a filter"
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER.size)
    except OSError:
        return ""  # may be executed, not read
    if len(head) < _HEADER.size:
        return ""
    magic, kind, machine = _HEADER.unpack(head)
    if magic != b"\x7fELF":
        return ""
    if kind != _ELF_64:
        return f"{found} is a 32-bit program: its system calls have other numbers, and KVM's structures another layout"
    if machine != _X86_64:
        return f"{found} is a program for another architecture (ELF machine {machine}); this is x86-64"
    return ""


def _found(program: str) -> str | None:
    """``shutil.which``, whose module takes longer to load than many a program runs."""
    paths = [program] if os.path.dirname(program) else [f"{folder}/{program}" for folder in os.get_exec_path()]
    return next((path for path in paths if os.access(path, os.X_OK) and not os.path.isdir(path)), None)


def unusable() -> str:
    """Why no program can run under the emulator on this machine; empty if one can."""
    machine = os.uname()
    if (sys.platform, machine.machine) != ("linux", "x86_64"):
        return f"kickstand exec needs Linux on x86-64; this is {machine.sysname} on {machine.machine}"
    try:
        linux.seccomp(SET_MODE_FILTER, FILTER_FLAGS, 0)
    except OSError as error:
        # EFAULT finds fault with the address only: the flags are known.
        if error.errno == errno.EFAULT:
            return ""
        release = machine.release
        if error.errno == errno.EINVAL:
            return f"seccomp user notification that waits killably needs Linux 5.19; this is {release}"
        return f"seccomp is not allowed here: {error.strerror}"
    return ""
