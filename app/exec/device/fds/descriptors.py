"""The program's KVM descriptors: memfds, told apart by inode, so that ``dup``, ``fork`` and passing on are right.

The program gets a description of its own, opened anew: when its last descriptor and its last mapping have gone, inotify
says so, which is KVM's own rule for the end of an object.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass

from kickstand.core.uapi import Fd
from kickstand.exec.host import linux
from kickstand.exec.memory.backing import seal

Key = tuple[int, int]
_EVENT = struct.Struct("=iIII")


def _nothing() -> None:
    """Nobody has to know."""


@dataclass(slots=True, eq=False)
class Descriptor:
    """One object that takes ioctls. ``descriptor`` is ours, until it was given to the program."""

    kind: Fd
    key: Key
    descriptor: int
    watch: int
    on_close: Callable[[], None] = _nothing

    def opened(self) -> int:
        """A new description of it, to be given to the program and closed here."""
        return os.open(f"/proc/self/fd/{self.descriptor}", os.O_RDWR | os.O_CLOEXEC)


class Descriptors:
    """All of them; ``closed`` must be called when ``inotify`` is readable."""

    def __init__(self) -> None:
        self.inotify = linux.inotify()
        self._by_key: dict[Key, Descriptor] = {}
        self._by_watch: dict[int, Descriptor] = {}

    def make(self, kind: Fd, name: str, size: int = 0) -> Descriptor:
        """Make an object of a kind; a vCPU's is as large as what can be mapped of it. ``OSError``: none is left."""
        descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            if size:
                os.ftruncate(descriptor, size)
            seal(descriptor)
            status = os.fstat(descriptor)
            watch = linux.watch(self.inotify, f"/proc/self/fd/{descriptor}", linux.IN_CLOSE_WRITE)
        except OSError:
            os.close(descriptor)
            raise
        made = Descriptor(kind, (status.st_dev, status.st_ino), descriptor, watch)
        self._by_key[made.key] = self._by_watch[watch] = made
        return made

    def find(self, tid: int, number: int) -> Descriptor | None:
        """What a thread's descriptor is; None if it is not ours."""
        try:
            status = os.stat(f"/proc/{tid}/fd/{number}")
        except OSError:
            return None
        return self._by_key.get((status.st_dev, status.st_ino))

    def closed(self) -> None:
        """Tell the objects whose last user has gone."""
        try:
            data = os.read(self.inotify, 1 << 16)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            watch, mask, _cookie, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size + length
            found = self._by_watch.get(watch)
            # /dev/kvm itself stays: the program may open it again, and again.
            if found is not None and found.kind is not Fd.SYSTEM and mask & linux.IN_CLOSE_WRITE:
                self.forget(found)
                found.on_close()

    def forget(self, descriptor: Descriptor) -> None:
        """The object has ended."""
        if self._by_key.pop(descriptor.key, None) is not None:
            del self._by_watch[descriptor.watch]
            linux.unwatch(self.inotify, descriptor.watch)
            os.close(descriptor.descriptor)

    def __len__(self) -> int:
        return len(self._by_key)

    def close(self) -> None:
        """Forget all of them."""
        for descriptor in tuple(self._by_key.values()):
            self.forget(descriptor)
        os.close(self.inotify)
