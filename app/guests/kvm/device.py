"""/dev/kvm: opening it, and issuing ioctls with the structures of ``core.uapi``.

``ctypes`` rather than ``fcntl``: it lets go of the interpreter during every call, keeps errno per thread, and
never calls again after EINTR, which is an answer here.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Mapping
from typing import Any, Protocol

from kickstand.core.errors import KvmError
from kickstand.core.uapi import API_VERSION, ioctl_by_name
from kickstand.core.uapi.layout import Struct

PATH = "/dev/kvm"
CREATE = "KVM_CREATE_VM"
CPUID_ENTRIES = 256
CPUID_HEADER = 8
CPUID_ENTRY = 40

libc = ctypes.CDLL(None, use_errno=True)
libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
libc.ioctl.restype = ctypes.c_int


def request(name: str) -> int:
    """The request code of an ioctl by its KVM name."""
    return ioctl_by_name(name).request


def try_ioctl(fd: int, code: int, argument: int | ctypes.Array[ctypes.c_char] = 0) -> tuple[int, int]:
    """Issue one ioctl; return its value and errno (0 unless the value is negative)."""
    value: int = libc.ioctl(fd, code, argument)
    return value, ctypes.get_errno() if value < 0 else 0


def ioctl(fd: int, name: str, argument: int | ctypes.Array[ctypes.c_char] = 0) -> int:
    """Issue one ioctl by its KVM name. ``KvmError`` with the kernel's errno if it fails."""
    value, error = try_ioctl(fd, request(name), argument)
    if value < 0:
        raise KvmError(error, f"KVM_{name.removeprefix('KVM_')}", f"/dev/kvm answered: {os.strerror(error)}")
    return value


def write(fd: int, name: str, payload: Struct, value: Mapping[str, Any]) -> int:
    """Issue an ioctl whose argument points to a structure. EINVAL: a value does not fit its field."""
    try:
        data = payload.pack(value)
    except ValueError as error:
        raise KvmError(errno.EINVAL, f"KVM_{name}", str(error)) from None
    return ioctl(fd, name, ctypes.create_string_buffer(data, payload.size))


def read(fd: int, name: str, payload: Struct) -> dict[str, Any]:
    """Issue an ioctl that fills in a structure, and return its fields."""
    buffer = ctypes.create_string_buffer(payload.size)
    ioctl(fd, name, buffer)
    return payload.unpack(buffer.raw)


def issue(fd: int, code: int) -> int:
    """Issue an ioctl by its number, with argument 0. ``KvmError`` with the kernel's errno if it fails."""
    value, error = try_ioctl(fd, code)
    if value < 0:
        raise KvmError(error, hex(code), f"/dev/kvm answered: {os.strerror(error)}", field="request")
    return value


class _Pages(Protocol):
    def read(self, address: int, length: int) -> bytes: ...

    def write(self, address: int, data: bytes) -> None: ...


PAGES = (0x1_0000_0000, 0x1_0001_0000)
"""Where structures for ``issue_at`` lie, in this process too; nothing else is ever there."""
ROOM = 0x4000


def _room() -> None:
    """Map the pages, once. ``OSError``: something is there."""
    if not _mapped:
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
        for base in PAGES:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _FIXED_NOREPLACE
            if libc.mmap(base, ROOM, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0) != base:
                raise OSError(ctypes.get_errno(), "the pages for structures are taken")
        _mapped.append(True)


_FIXED_NOREPLACE = 0x100000
_mapped: list[bool] = []


def issue_at(fd: int, code: int, number: int, memory: _Pages) -> int:
    """Issue an ioctl with a number or with the address of a structure in ``memory``, which is filled in.

    ``KvmError`` with the kernel's errno if it fails.
    """
    _room()
    for base in PAGES:
        ctypes.memmove(base, memory.read(base, ROOM), ROOM)
    value, error = try_ioctl(fd, code, number)
    for base in PAGES:
        memory.write(base, ctypes.string_at(base, ROOM))
    if value < 0:
        raise KvmError(error, hex(code), f"/dev/kvm answered: {os.strerror(error)}")
    return value


def unusable(path: str = PATH) -> tuple[int, str] | None:
    """Why the device cannot be used here: an errno and a sentence; None if it can."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return errno.ENODEV, f"there is no {path} on this machine"
    except OSError as error:
        return error.errno or errno.EIO, f"{path} cannot be opened: {error.strerror}"
    try:
        version, _ = try_ioctl(fd, request("GET_API_VERSION"))
        if version != API_VERSION:
            return errno.EOPNOTSUPP, f"{path} is no KVM of API version {API_VERSION}"
    finally:
        os.close(fd)
    return None


class Device:
    """An open /dev/kvm."""

    def __init__(self, path: str = PATH) -> None:
        reason = unusable(path)
        if reason is not None:
            raise KvmError(errno.EOPNOTSUPP, CREATE, f"engine kvm: {reason[1]}", field="engine")
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._cpuid: bytes | None = None

    def create_vm(self) -> int:
        """KVM_CREATE_VM: a descriptor."""
        return ioctl(self.fd, "CREATE_VM")

    @property
    def page_size(self) -> int:
        """KVM_GET_VCPU_MMAP_SIZE."""
        return ioctl(self.fd, "GET_VCPU_MMAP_SIZE")

    def supported_cpuid(self) -> bytes:
        """KVM_GET_SUPPORTED_CPUID: ``struct kvm_cpuid2`` as KVM_SET_CPUID2 takes it; asked once."""
        if self._cpuid is None:
            buffer = ctypes.create_string_buffer(
                CPUID_ENTRIES.to_bytes(4, "little"), CPUID_HEADER + CPUID_ENTRIES * CPUID_ENTRY
            )
            ioctl(self.fd, "GET_SUPPORTED_CPUID", buffer)
            entries = int.from_bytes(buffer.raw[:4], "little")
            self._cpuid = buffer.raw[: CPUID_HEADER + entries * CPUID_ENTRY]
        return self._cpuid

    def close(self) -> None:
        """Close the descriptor; VMs live on."""
        os.close(self.fd)
