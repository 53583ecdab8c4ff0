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
import struct
import tempfile
import zlib
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from pydantic_core import from_json, to_json

from kickstand.core.errors import KvmError
from kickstand.core.uapi import PAGE_SHIFT
from kickstand.journal.form import Encoded
from kickstand.journal.records import Recorder, encoded
from kickstand.journal.restore import Saved, UnreadableError, restore
from kickstand.runtime.calls.durable import not_kept
from kickstand.runtime.driver.tasks import perform_now, to_the_end
from kickstand.runtime.machine import Machine
from kickstand.runtime.registry import Registry

MAGIC = b"KICKSNAP"
VERSION = 1
HEAD = struct.Struct("<8sII")
BLOCK = struct.Struct("<QII")
BLOCK_SIZE = 1 << 20
ZEROS = bytes(BLOCK_SIZE)
LONGEST_HEAD = 64 << 20
MOST_VALUES = 1 << 20  # of JSON in the head: what they take when they are read has no relation to its length
STILL_S = 5.0  # how long the vCPUs may take to leave KVM_RUN


def lacking(error: OSError) -> int:
    """What there is too little of: descriptors, memory, or room on the disk."""
    return error.errno if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM) else errno.ENOSPC


async def take(machine: Machine, folder: Path | None) -> IO[bytes]:
    """Write a consistent image to a file without a name, at its beginning; the machine goes on.

    ETIMEDOUT: a vCPU does not leave KVM_RUN; ENOSPC: no room for the file; EOPNOTSUPP: the real kernel's machine.
    """
    if machine.guests.of_device:
        raise KvmError(errno.EOPNOTSUPP, "snapshot", "the state of a machine of /dev/kvm is the kernel's")
    try:
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  who sends it closes it
    except OSError as error:
        raise KvmError(lacking(error), "snapshot", f"no file for it: {error.strerror}") from error
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(close, file)
        with _refusing(machine.id), not_kept():
            async with _still(machine):
                dirty = sum(map(len, machine.vm.memslots.dirty.values()))
                _check_dirty(dirty, machine.memory.budget.per_vm, "snapshot")
                recorder = Recorder(machine)
                parts = recorder.changed(others=False)
                await asyncio.sleep(0)  # a thousand vCPUs are a turn of their own
                parts |= recorder.changed(counters=True)
                arenas = [(arena.base, arena.buffer) for arena in machine.memory.arenas]
                await to_the_end(asyncio.to_thread(_write, file, parts, arenas))
        stack.pop_all()
    return file


async def close(file: IO[bytes]) -> None:
    """Close a file without a name, beside the loop: what it takes to give back its blocks grows with it."""
    await to_the_end(asyncio.to_thread(file.close))


@contextlib.contextmanager
def _refusing(vm_id: str) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise KvmError(lacking(error), "snapshot", f"it cannot be written: {error.strerror}") from error
    except ValueError as error:  # the memory was given back meanwhile
        raise KvmError(errno.EIO, "snapshot", f"virtual machine {vm_id} is destroyed") from error


@contextlib.asynccontextmanager
async def _still(machine: Machine) -> AsyncGenerator[None]:
    """Kick, and hold every vCPU's mutex so that none comes back under any variant; a window that was open stays so."""
    before = machine.vm.variant.open_windows
    await machine.kick(int(STILL_S * 1_000))
    machine.window.unsettled += 1
    tid = machine.thread("snapshot").tid
    vcpus = tuple(machine.vm.vcpus.values())
    locked = []
    try:
        for vcpu in vcpus:
            if vcpu.watched.inside:
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
        machine.window.unsettled -= 1
        if not before or machine.vm.variant.open_windows > before:
            await machine.resume()


def _head_of(parts: Mapping[str, Encoded | None]) -> bytes:
    """The parts as one object. ``KvmError`` E2BIG: no snapshot that could be restored."""
    members = (b"%s:%s" % (to_json(name), value) for name, value in sorted(encoded(parts).items()))
    head = b"{%s}" % b",".join(members)
    try:
        _check_head(head)
    except ValueError as error:
        raise KvmError(errno.E2BIG, "snapshot", str(error)) from error
    return head


def _check_head(head: bytes) -> None:
    if len(head) > LONGEST_HEAD:
        raise ValueError(f"a head of {len(head)} bytes, and {LONGEST_HEAD} are the most")
    values = head.count(b",") + head.count(b"[") + head.count(b"{")
    if values > MOST_VALUES:
        raise ValueError(f"a head of about {values} values, and {MOST_VALUES} are the most")


def _write(file: IO[bytes], parts: Mapping[str, Encoded | None], arenas: list[tuple[int, Any]]) -> None:
    head = _head_of(parts)
    seal = hashlib.sha256()

    def put(data: bytes) -> None:
        seal.update(data)
        file.write(data)

    put(HEAD.pack(MAGIC, VERSION, len(head)))
    put(head)
    for base, buffer in arenas:
        for offset in range(0, len(buffer), BLOCK_SIZE):
            block = buffer[offset : offset + BLOCK_SIZE]
            if block != ZEROS[: len(block)]:
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
        _check_size(self.saved, memory_limit)
        self.saved.check()  # here, beside the loop
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
            text = self._exactly(length)
            _check_head(text)
            return {str(name): to_json(part) for name, part in from_json(text).items()}
        except (ValueError, AttributeError, RecursionError) as error:
            raise _bad(f"its head is damaged: {error}") from error

    def blocks(self) -> Iterator[tuple[int, bytes]]:
        """Every block with its host address, within the arenas that the head names."""
        self._file.seek(self._start)
        end, arenas = 0, iter(self.saved.vm.memory)
        arena = next(arenas, None)
        while True:
            address, length, packed = BLOCK.unpack(self._exactly(BLOCK.size))
            if not length:
                return
            if address < end:
                raise _bad(f"the block at {address:#x} is there twice, or out of order")
            end = address + length
            while arena is not None and end > arena[0] + arena[1]:
                arena = next(arenas, None)
            if arena is None or address < arena[0] or length > BLOCK_SIZE or packed > 2 * BLOCK_SIZE:
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


def _check_size(saved: Saved, memory: int) -> None:
    total = sum(size for _, size, _ in saved.vm.memory)
    if total > memory:
        raise KvmError(errno.ENOMEM, "restore", f"it has {total} bytes of memory, and {memory} are the limit")
    _check_dirty(saved.slots.dirty_pages, memory, "restore")


def _check_dirty(pages: int, memory: int, ioctl: str) -> None:
    """ENOMEM: more dirty pages, in all slots together, than a machine may have of memory."""
    if pages > memory >> PAGE_SHIFT:
        raise KvmError(errno.ENOMEM, ioctl, f"{pages} dirty pages, and {memory >> PAGE_SHIFT} are the most of an image")


async def bring_back(registry: Registry, file: IO[bytes], vm_id: str | None) -> Machine:
    """Make a machine from a snapshot; it comes up kicked.

    EINVAL: damaged, cut off or foreign; ENOMEM, ENOSPC: too large for the limits or the disk; EEXIST: a taken name.
    """
    try:
        snapshot = await to_the_end(asyncio.to_thread(Snapshot, file, registry.limits.memory_per_vm))

        async def fill(machine: Machine) -> None:
            memory = snapshot.saved.vm.memory
            registry.memory.check(sum(size for _, size, _ in memory), len(memory))
            await to_the_end(asyncio.to_thread(_fill, machine, snapshot))

        machine = await restore(registry, snapshot.saved, fill, vm_id=vm_id)
    except UnreadableError as error:
        raise _bad(str(error)) from error
    await registry.settle(machine, "restore")
    return machine


def _fill(machine: Machine, snapshot: Snapshot) -> None:
    memory = machine.memory
    try:
        for base, size, name in snapshot.saved.vm.memory:
            memory.adopt(base, name, memory.back(name, size))
    except OSError as error:
        raise KvmError(lacking(error), "restore", f"its memory finds no room: {error.strerror}") from error
    for address, block in snapshot.blocks():
        arena = memory.find(address)
        assert arena is not None
        arena.buffer[address - arena.base : address - arena.base + len(block)] = block
