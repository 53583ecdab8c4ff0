"""ioeventfd: a guest's write that becomes an event.

The program's eventfds are copied out of it (``pidfd_getfd``). A write that matches does not leave KVM_RUN.
"""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass
from typing import Any

from kickstand.core.errors import KvmError
from kickstand.core.run.exits import IoExit, MmioExit, UserExit
from kickstand.core.uapi.layout import PADDING, U32, U64, Bytes, Struct, struct
from kickstand.exec.host import linux

IOEVENTFD: Struct = struct(
    "kvm_ioeventfd", ("datamatch addr", U64), ("len fd flags", U32), (PADDING, Bytes(36))
)  # fmt: skip
_DATAMATCH, _PIO, _IO_DEASSIGN = 1, 2, 4
Key = tuple[int, int]  # what tells an eventfd from others
_WIDTHS = (0, 1, 2, 4, 8)
ONE = (1).to_bytes(8, "little")


@dataclass(frozen=True, slots=True)
class IoEvent:
    """Writes of ``length`` bytes (0: any) to an address; of ``data`` only, unless that is None."""

    pio: bool
    address: int
    length: int
    data: int | None

    def matches(self, exit: UserExit) -> bool:
        """A guest's exit is such a write."""
        if isinstance(exit, IoExit):
            if not self.pio or exit.direction != "out" or exit.count != 1 or exit.port != self.address:
                return False
            length = exit.size
        elif isinstance(exit, MmioExit):
            if self.pio or not exit.is_write or exit.phys_addr != self.address:
                return False
            length = exit.len
        else:
            return False
        value = int.from_bytes(exit.data[:length], "little")
        return self.length in (0, length) and self.data in (None, value)

    def collides(self, other: IoEvent) -> bool:
        """Both would take the same write."""
        same = (self.pio, self.address) == (other.pio, other.address)
        lengths = 0 in (self.length, other.length) or self.length == other.length
        return same and lengths and (None in (self.data, other.data) or self.data == other.data)


class EventFds:
    """Those of one VM."""

    def __init__(self) -> None:
        self._writes: list[tuple[IoEvent, Key, int]] = []  # what, which eventfd, our copy of it

    def io_event(self, tgid: int, fields: dict[str, Any]) -> None:
        """KVM_IOEVENTFD. EINVAL: flags, length, or no eventfd; EEXIST: taken; ENOENT: none to take away."""
        flags, length, address = fields["flags"], fields["len"], fields["addr"]
        if flags & ~(_DATAMATCH | _PIO | _IO_DEASSIGN) or length not in _WIDTHS or (flags & _DATAMATCH and not length):
            raise KvmError(errno.EINVAL, "KVM_IOEVENTFD", f"flags {flags:#x} and length {length} are none of KVM's")
        if address + length > 1 << 64:
            raise KvmError(errno.EINVAL, "KVM_IOEVENTFD", "addr + len wraps around")
        event = IoEvent(bool(flags & _PIO), address, length, fields["datamatch"] if flags & _DATAMATCH else None)
        copy, key = copied(tgid, fields["fd"])
        if flags & _IO_DEASSIGN:
            os.close(copy)
            self._take_away(event, key)
        elif any(event.collides(other) for other, _, _ in self._writes):
            os.close(copy)
            raise KvmError(errno.EEXIST, "KVM_IOEVENTFD", "another eventfd takes these writes")
        else:
            self._writes.append((event, key, copy))

    def _take_away(self, event: IoEvent, key: Key) -> None:
        for at, (other, its_key, copy) in enumerate(self._writes):
            if (other, its_key) == (event, key):
                del self._writes[at]
                os.close(copy)
                return
        raise KvmError(errno.ENOENT, "KVM_IOEVENTFD", "no such eventfd is assigned")

    def taken(self, exit: UserExit | None) -> bool:
        """Signal the eventfd that takes a guest's write; true if there is one."""
        for event, _, copy in self._writes if exit is not None else ():
            if exit is not None and event.matches(exit):
                with contextlib.suppress(BlockingIOError):
                    os.write(copy, ONE)
                return True
        return False

    def close(self) -> None:
        """The VM has ended."""
        for _, _, copy in self._writes:
            os.close(copy)
        self._writes.clear()


def copied(tgid: int, number: int) -> tuple[int, Key]:
    """Our own descriptor of the program's eventfd, and what tells it from others. EBADF, EINVAL: it is none."""
    try:
        link = os.readlink(f"/proc/{tgid}/fd/{number}")
        if link != "anon_inode:[eventfd]":
            raise KvmError(errno.EINVAL, "eventfd", f"descriptor {number} is no eventfd", field="fd")
        pidfd = os.pidfd_open(tgid)
    except OSError:
        raise KvmError(errno.EBADF, "eventfd", f"there is no descriptor {number}", field="fd") from None
    try:
        return linux.copy_descriptor(pidfd, number), _identity(tgid, number)
    except OSError as error:
        raise KvmError(error.errno or errno.EBADF, "eventfd", f"descriptor {number}: {error.strerror}") from error
    finally:
        os.close(pidfd)


def _identity(tgid: int, number: int) -> Key:
    """All eventfds have one inode; the kernel numbers them in ``fdinfo``."""
    with open(f"/proc/{tgid}/fdinfo/{number}", "rb") as file:
        text = file.read()
    eventfd_id = text.partition(b"eventfd-id:")[2].split(None, 1)
    return (0, int(eventfd_id[0])) if eventfd_id else (tgid, number)
