"""Where the program's calls arrive: one reader on the event loop, which knows /dev/kvm by its path.

What KVM is takes a while to load; it is loaded when a program opens it (``kvm``). Everything that is not about it goes
on to the kernel at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Protocol

from kickstand.exec.device import paths
from kickstand.exec.host.notify import LOOKS, OPENS, SIGNALS, Listener, Notification, Syscall

BATCH_S = 0.002  # how long calls are received before guests and clients get a turn
PATIENCE_MS = 1  # the next call of a program that does nothing else comes within this
REST_S = 0.05  # how often it is looked whether somebody still holds a VM
PATH_MAX, PIECE = 4096, 256


class Kvm(Protocol):
    """What answers for /dev/kvm."""

    @property
    def in_use(self) -> bool:
        """Somebody holds a VM."""
        ...

    @property
    def waited_for(self) -> bool:
        """A call waits for something else than its answer: a guest, or another call."""
        ...

    def opened(self, call: Notification, *, cloexec: bool) -> None:
        """Answer an ``open``."""
        ...

    def ioctl(self, call: Notification) -> None:
        """Answer an ioctl with KVM's type byte, or let it go on."""
        ...

    def discards(self, call: Notification) -> None:
        """A thread is about to discard pages."""
        ...

    def refuses_mapping(self, call: Notification) -> bool:
        """A mapping of a dirty ring that KVM does not give."""
        ...

    def signals(self) -> None:
        """A thread is about to send a signal."""
        ...

    async def close(self) -> None:
        """End all VMs."""
        ...


class Supervisor:
    """Answers the calls of one program and of everything that it starts."""

    def __init__(self, listener: int, make_kvm: Callable[[Listener], Kvm]) -> None:
        self._listener = Listener(listener)
        self._make_kvm = make_kvm
        self._kvm: Kvm | None = None
        self._poll = select.poll()
        self._poll.register(listener, select.POLLIN)
        self._paths: deque[Notification] = deque()  # calls about paths that wait until nobody asks for anything else
        self._over = asyncio.get_running_loop().create_future()  # no process is under the filter any more

    def begin(self) -> None:
        """Answer from now on."""
        asyncio.get_running_loop().add_reader(self._listener.descriptor, self._readable)

    async def rest(self) -> None:
        """The program has ended: return once no process that it left behind holds a VM any more."""
        while self._kvm is not None and self._kvm.in_use and not self._over.done():
            await asyncio.wait({self._over}, timeout=REST_S)

    async def close(self) -> None:
        """Stop answering, and end what the program has left."""
        asyncio.get_running_loop().remove_reader(self._listener.descriptor)
        if self._kvm is not None:
            await self._kvm.close()
        os.close(self._listener.descriptor)

    # -- receiving -----------------------------------------------------------------------------------------

    def _readable(self) -> None:
        patience = 0
        until = time.monotonic() + BATCH_S
        while time.monotonic() < until:
            events = self._poll.poll(0 if self._paths else patience)
            if not events:
                if not self._paths:
                    return
                self._handle(self._paths.popleft())
            elif not events[0][1] & select.POLLIN:
                self._end()
                return
            else:
                self._receive()
            # The next call of a program that does nothing else is not worth a turn of the loop.
            patience = PATIENCE_MS if self._kvm is not None and not self._kvm.waited_for else 0
        if self._paths:  # what has been received makes nothing readable
            self._handle(self._paths.popleft())
            asyncio.get_running_loop().call_soon(self._readable)

    def _receive(self) -> None:
        call = self._listener.receive()
        if call is None:
            return
        if call.nr in OPENS or call.nr in LOOKS:  # sixty threads that do nothing else must not hold up an ioctl
            self._paths.append(call)
        else:
            self._handle(call)

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._listener.descriptor)
        if not self._over.done():
            self._over.set_result(None)

    def _handle(self, call: Notification) -> None:
        try:
            if self._kvm is not None and call.nr == Syscall.IOCTL:
                self._kvm.ioctl(call)
            elif call.nr in OPENS or call.nr in LOOKS:
                self._path(call)
            elif self._kvm is None:
                self._listener.go_on(call)
            elif call.nr == Syscall.MMAP and self._kvm.refuses_mapping(call):
                self._listener.answer(call, -1, errno.EINVAL)
            else:
                if call.nr == Syscall.MADVISE:
                    self._kvm.discards(call)
                elif call.nr in SIGNALS:
                    self._kvm.signals()
                self._listener.go_on(call)
        except Exception:  # noqa: BLE001  a fault of ours must not leave the program waiting
            traceback.print_exc()
            self._listener.answer(call, -1, errno.EIO)

    # -- paths ---------------------------------------------------------------------------------------------

    def _path(self, call: Notification) -> None:
        named = _text(call.tid, paths.path_argument(call))
        path = paths.absolute(call, named) if b"kvm" in named else b""
        value = paths.module_parameter(path) if call.nr in OPENS else None
        if path == paths.DEVICE:
            self._device(call)
        elif value is not None:
            self._parameter(call, value)
        else:
            self._listener.go_on(call)

    def _device(self, call: Notification) -> None:
        if call.nr in OPENS:
            if self._kvm is None:
                self._kvm = self._make_kvm(self._listener)
            self._kvm.opened(call, cloexec=_cloexec(call))
            return
        place, data = paths.looked_at(call)
        try:
            if place:
                _write(call.tid, place, data)
        except OSError:
            self._listener.answer(call, -1, errno.EFAULT)
        else:
            self._listener.answer(call)

    def _parameter(self, call: Notification, value: bytes) -> None:
        descriptor = os.memfd_create("parameter", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, value)
            os.lseek(descriptor, 0, os.SEEK_SET)
            self._listener.give(call, descriptor, cloexec=_cloexec(call), answer=True)
        except OSError as error:
            self._listener.answer(call, -1, error.errno or errno.EMFILE)
        finally:
            os.close(descriptor)


def _cloexec(call: Notification) -> bool:
    flags = call.args[1] if call.nr == Syscall.OPEN else call.args[2]
    if call.nr == Syscall.OPENAT2:  # struct open_how begins with them
        flags = int.from_bytes(_read(call.tid, call.args[2], 8), "little")
    return bool(flags & os.O_CLOEXEC)


def _text(tid: int, address: int) -> bytes:
    """A path of the program, as far as it lies in one piece."""
    data = b""
    while b"\0" not in data and len(data) < PATH_MAX:
        here = address + len(data)
        piece = _read(tid, here, PIECE - here % PIECE)  # what comes after its end may not be there
        if not piece:
            break
        data += piece
    return data.partition(b"\0")[0]


def _read(tid: int, address: int, length: int) -> bytes:
    with contextlib.suppress(OSError, OverflowError):
        memory = os.open(f"/proc/{tid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(memory, length, address)
        finally:
            os.close(memory)
    return b""


def _write(tid: int, address: int, data: bytes) -> None:
    with open(f"/proc/{tid}/mem", "r+b", 0) as memory:
        os.pwrite(memory.fileno(), data, address)
