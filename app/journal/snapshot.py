"""Snapshots: one running machine as a file, taken by the kick, and a machine from such a file.

    KICKSNAP, version, length of the head | head: JSON | blocks of memory | an empty block | SHA-256 of all before

A block is: host address, length, length when packed, packed bytes; what is zero is left out. Reading checks every
number before it is used, packs nothing out beyond what it says, and executes nothing: all of it is JSON and bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import json
import struct
import tempfile
import zlib
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import IO, Any

from app.core.errors import KvmError
from app.core.trace import VcpuState
from app.core.uapi import PAGE_SIZE
from app.journal.records import Recorder
from app.journal.restore import Saved, UnreadableError, restore
from app.runtime.machine import Machine
from app.runtime.registry import Registry
from app.runtime.tasks import perform_now

MAGIC = b"KICKSNAP"
VERSION = 1
HEAD = struct.Struct("<8sII")
BLOCK = struct.Struct("<QII")
BLOCK_SIZE = 1 << 20
LONGEST_HEAD = 64 << 20
STILL_S = 5.0  # how long the vCPUs may take to leave KVM_RUN
USER_SPACE = 1 << 47


async def take(machine: Machine, folder: Path | None) -> IO[bytes]:
    """Write a consistent image to a file without a name, at its beginning; the machine goes on.

    ETIMEDOUT: a vCPU does not leave KVM_RUN; ENOSPC: no room for the file; EOPNOTSUPP: the real kernel's machine.
    """
    if machine.engine == "kvm":
        raise KvmError(errno.EOPNOTSUPP, "snapshot", "the state of a machine of /dev/kvm is the kernel's")
    try:
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  who sends it closes it
    except OSError as error:
        raise KvmError(errno.ENOSPC, "snapshot", f"no file for it: {error.strerror}") from error
    try:
        async with _still(machine):
            parts = Recorder(machine).changed(counters=True)
            arenas = [(arena.base, arena.buffer) for arena in machine.memory.arenas]
            await asyncio.to_thread(_write, file, parts, arenas)
    except OSError as error:
        file.close()
        raise KvmError(errno.ENOSPC, "snapshot", f"it cannot be written: {error.strerror}") from error
    except BaseException:
        file.close()
        raise
    return file


@contextlib.asynccontextmanager
async def _still(machine: Machine) -> AsyncGenerator[None]:
    """Kick, and hold every vCPU's mutex so that none comes back under any variant; a window that was open stays so."""
    before = machine.vm.variant.holds
    await machine.kick(int(STILL_S * 1_000))
    machine.unsettled += 1
    tid = machine.thread("snapshot").tid
    vcpus = tuple(machine.vm.vcpus.values())
    locked = []
    try:
        for vcpu in vcpus:
            if vcpu.watched.state not in (VcpuState.USER, VcpuState.WAITING):
                perform_now(vcpu.send_signal())  # the variant's kick does not stop it
        try:
            async with asyncio.timeout(STILL_S):
                for vcpu in vcpus:
                    await machine.call(vcpu.mutex.lock(tid))
                    locked.append(vcpu)
        except TimeoutError:
            raise KvmError(errno.ETIMEDOUT, "snapshot", "a vcpu does not leave KVM_RUN") from None
        yield
    finally:
        for vcpu in locked:
            perform_now(vcpu.mutex.unlock())
        machine.unsettled -= 1
        if not before or machine.vm.variant.holds > before:
            await machine.resume()


def _write(file: IO[bytes], parts: dict[str, bytes], arenas: list[tuple[int, Any]]) -> None:
    seal = hashlib.sha256()

    def put(data: bytes) -> None:
        seal.update(data)
        file.write(data)

    head = json.dumps({name: json.loads(value) for name, value in sorted(parts.items())}).encode()
    put(HEAD.pack(MAGIC, VERSION, len(head)))
    put(head)
    for base, buffer in arenas:
        for offset in range(0, len(buffer), BLOCK_SIZE):
            block = buffer[offset : offset + BLOCK_SIZE]
            if block.count(0) != len(block):
                packed = zlib.compress(block, 1)
                put(BLOCK.pack(base + offset, len(block), len(packed)) + packed)
    put(BLOCK.pack(0, 0, 0))
    file.write(seal.digest())
    file.flush()
    file.seek(0)


class Snapshot:
    """A file that was read to its end and found whole. ``KvmError`` EINVAL: what is wrong with it."""

    def __init__(self, file: IO[bytes], memory_limit: int) -> None:
        self._file = file
        self.saved = Saved(self._head())
        self._start = file.tell()
        _check_memory(self.saved.memory, memory_limit)
        for _ in self.blocks():
            pass
        self._check_seal()

    def _head(self) -> dict[str, bytes]:
        magic, version, length = HEAD.unpack(self._exactly(HEAD.size))
        if magic != MAGIC:
            raise _bad("it is no snapshot of Kickstand")
        if version != VERSION:
            raise _bad(f"its version is {version}, and this program reads version {VERSION}")
        if length > LONGEST_HEAD:
            raise _bad("its head is longer than any machine's")
        try:
            head = json.loads(self._exactly(length))
            return {str(name): json.dumps(part).encode() for name, part in head.items()}
        except (ValueError, AttributeError, RecursionError) as error:
            raise _bad(f"its head is damaged: {error}") from error

    def blocks(self) -> Iterator[tuple[int, bytes]]:
        """Every block with its host address, within the arenas that the head names."""
        self._file.seek(self._start)
        while True:
            address, length, packed = BLOCK.unpack(self._exactly(BLOCK.size))
            if not length:
                return
            inside = any(base <= address and address + length <= base + size for base, size, _ in self.saved.memory)
            if not inside or length > BLOCK_SIZE or packed > 2 * BLOCK_SIZE:
                raise _bad(f"a block of {length} bytes at {address:#x} is not in its memory")
            unpacker = zlib.decompressobj()
            try:
                block = unpacker.decompress(self._exactly(packed), length + 1)
            except zlib.error as error:
                raise _bad(f"the block at {address:#x} is damaged") from error
            if len(block) != length:
                raise _bad(f"the block at {address:#x} is damaged")
            yield address, block

    def _check_seal(self) -> None:
        end = self._file.tell()
        seal = self._exactly(32)
        if self._file.read(1):
            raise _bad("there is more behind its end")
        self._file.seek(0)
        found = hashlib.sha256()
        while end:
            piece = self._exactly(min(end, BLOCK_SIZE))
            found.update(piece)
            end -= len(piece)
        if found.digest() != seal:
            raise _bad("its checksum is wrong")

    def _exactly(self, length: int) -> bytes:
        data = self._file.read(length)
        if len(data) != length:
            raise _bad("it is cut off")
        return data


def _bad(why: str) -> KvmError:
    return KvmError(errno.EINVAL, "restore", f"the snapshot cannot be restored: {why}; nothing has changed")


def _check_memory(arenas: list[tuple[int, int, str]], limit: int) -> None:
    total, end = 0, 0
    for base, size, _ in arenas:
        if size <= 0 or size % PAGE_SIZE or base % PAGE_SIZE or base < end or base + size > USER_SPACE:
            raise _bad(f"host memory of {size} bytes at {base:#x} is none")
        total, end = total + size, base + size
    if total > limit:
        raise KvmError(errno.ENOMEM, "restore", f"it has {total} bytes of memory, and {limit} are the limit")


async def bring_back(registry: Registry, file: IO[bytes], vm_id: str | None) -> Machine:
    """Make a machine from a snapshot; it comes up kicked.

    EINVAL: damaged, cut off or foreign; ENOMEM, ENOSPC: too large for the limits or the disk; EEXIST: a taken name.
    """
    try:
        snapshot = await asyncio.to_thread(Snapshot, file, registry.limits.memory_per_vm)

        async def fill(machine: Machine) -> None:
            await asyncio.to_thread(_fill, machine, snapshot)

        machine = await restore(registry, snapshot.saved, fill, vm_id=vm_id)
    except UnreadableError as error:
        raise _bad(str(error)) from error
    await machine.committed()
    return machine


def _fill(machine: Machine, snapshot: Snapshot) -> None:
    memory = machine.memory
    try:
        for base, size, name in snapshot.saved.memory:
            memory.adopt(base, name, memory.back(name, size))
    except OSError as error:
        raise KvmError(errno.ENOSPC, "restore", f"its memory finds no room: {error.strerror}") from error
    for address, block in snapshot.blocks():
        arena = memory.find(address)
        assert arena is not None
        arena.buffer[address - arena.base : address - arena.base + len(block)] = block
