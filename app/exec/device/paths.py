"""Paths that the program opens or asks about: /dev/kvm, and what a loaded kvm module shows of itself."""

from __future__ import annotations

import os
import stat
import struct
import time

from kickstand.exec.host.notify import Notification, Syscall

DEVICE = b"/dev/kvm"
RDEV = os.makedev(10, 232)
MODE = stat.S_IFCHR | 0o666
_MODULES = b"/sys/module/"
# The emulated CPU is one of AMD's; what its module cannot do is off.
_PARAMETERS = {
    b"kvm/parameters/force_emulation_prefix": b"0\n",
    b"kvm/parameters/enable_vmware_backdoor": b"N\n",
    b"kvm/parameters/nx_huge_pages": b"N\n",
    b"kvm_amd/parameters/avic": b"N\n",
    b"kvm_amd/parameters/nested": b"0\n",
    b"kvm_amd/parameters/vgif": b"0\n",
    b"kvm_amd/parameters/vls": b"0\n",
    b"kvm_amd/parameters/sev": b"N\n",
    b"kvm_amd/parameters/sev_es": b"N\n",
}
AT_FDCWD = -100
_STAT = struct.Struct("=QQQIIIIQqqqqqqqqq24x")
_STATX = struct.Struct("=IIQIIIHHQQQQqIiqIiqIiqIiIIII112x")
_STATX_BASIC = 0x7FF

# Which arguments hold the path, the directory it is relative to, and the flags.
_PATH = {Syscall.OPEN: 0, Syscall.ACCESS: 0, Syscall.STAT: 0, Syscall.LSTAT: 0}


def path_argument(notification: Notification) -> int:
    """Where the path is that the call is about."""
    return notification.args[_PATH.get(Syscall(notification.nr), 1)]


def absolute(notification: Notification, path: bytes) -> bytes:
    """The path from the root, as the thread means it; not a word about links. Empty if that cannot be found out."""
    if path.startswith(b"/"):
        return os.path.normpath(path)
    nr = Syscall(notification.nr)
    number = AT_FDCWD if nr in _PATH else _signed(notification.args[0])
    link = f"/proc/{notification.tid}/cwd" if number == AT_FDCWD else f"/proc/{notification.tid}/fd/{number}"
    try:
        return os.path.normpath(os.path.join(os.readlink(link).encode(), path))
    except OSError:
        return b""


def _signed(word: int) -> int:
    low = word & 0xFFFFFFFF
    return low - (1 << 32) if low >> 31 else low


def module_parameter(path: bytes) -> bytes | None:
    """The text of a parameter of the emulated kvm modules, whatever is loaded here; None if they have none like it."""
    return _PARAMETERS.get(path.removeprefix(_MODULES)) if path.startswith(_MODULES) else None


def device_stat() -> bytes:
    """``struct stat`` of /dev/kvm."""
    now = int(time.time())
    return _STAT.pack(0x5, 1, 1, MODE, 0, 0, 0, RDEV, 0, 4096, 0, now, 0, now, 0, now, 0)


def device_statx() -> bytes:
    """``struct statx`` of /dev/kvm."""
    now = int(time.time())
    times = (now, 0, 0) * 4
    return _STATX.pack(
        _STATX_BASIC, 4096, 0, 1, 0, 0, MODE, 0, 1, 0, 0, 0, *times, os.major(RDEV), os.minor(RDEV), 0, 5
    )


def looked_at(call: Notification) -> tuple[int, bytes]:
    """Where a call that asks about /dev/kvm wants to know what; 0 if it only asks whether it is there."""
    nr = Syscall(call.nr)
    if nr in (Syscall.STAT, Syscall.LSTAT):
        return call.args[1], device_stat()
    if nr is Syscall.NEWFSTATAT:
        return call.args[2], device_stat()
    return (call.args[4], device_statx()) if nr is Syscall.STATX else (0, b"")
