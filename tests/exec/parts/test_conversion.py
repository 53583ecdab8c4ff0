"""How private pages become shared ones: parts, holes, and who else has a turn meanwhile."""

from __future__ import annotations

import asyncio
import mmap
import os

import pytest

from kickstand.exec.host.process import Process
from kickstand.exec.host.tracee import CLOSE, MMAP
from kickstand.exec.memory import conversion
from kickstand.exec.memory.conversion import Conversion
from kickstand.exec.memory.sharing import SharedMemory

PAGE = 4096


class Self:
    """A process that need not stand still, the test's own: it keeps what was asked of it instead of doing it."""

    def __init__(self):
        self.mapped = []
        self.closed = []

    def call(self, number, *args):
        if number == CLOSE:
            self.closed.append(args[0])
            return 0
        assert number == MMAP
        self.mapped.append(args)
        return args[0]


@pytest.fixture
def shared():
    memory = SharedMemory(Process(os.getpid()))
    yield memory
    memory.close()
    memory.process.close()


def private(shared, size):
    """Memory of this process, in the middle of pages that nobody may touch, and what has to be converted of it."""
    area = mmap.mmap(-1, size + 2 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = conversion.linux.address_of(area) + PAGE
    shared.note(start, size)
    (piece,) = shared.look(list)
    return area, start, piece


async def convert(shared, piece):
    caller, turns = Self(), 0
    converting = Conversion(shared, [piece])
    converting.give(lambda descriptor: 100)
    performing = asyncio.ensure_future(converting.perform(caller))
    while not performing.done():
        turns += 1
        await asyncio.sleep(0)
    await performing
    return caller, turns


async def test_others_have_turns_while_much_is_copied(shared, monkeypatch):
    monkeypatch.setattr(conversion, "PART", 1 << 20)
    monkeypatch.setattr(conversion, "AT_ONCE", 1 << 16)
    size = 5 * (1 << 20) + 3 * PAGE
    area, start, piece = private(shared, size)
    area[PAGE : PAGE + size] = os.urandom(size)
    caller, turns = await convert(shared, piece)
    assert turns > 5
    ends = [(at, at + length) for at, length, *_ in caller.mapped]
    assert [at for at, _ in ends] == [start, *(end for _, end in ends[:-1])]
    assert ends[-1][1] == start + size
    assert len(ends) == 6
    assert caller.closed == [100]
    arena = shared.memory.find(start)
    assert (arena.base, arena.size) == (start, size)
    assert bytes(arena.buffer) == area[PAGE : PAGE + size]


async def test_a_little_is_copied_at_once(shared):
    area, _, piece = private(shared, 64 * PAGE)
    area[PAGE : 2 * PAGE] = b"x" * PAGE
    caller, turns = await convert(shared, piece)
    assert turns == 1
    assert len(caller.mapped) == 1


async def test_sparse_memory_is_one_part_however_large_it_is(shared):
    size = 1 << 32
    area, start, piece = private(shared, size)
    for at in range(0, size, size // 16):
        area[PAGE + at] = 1
    caller, turns = await convert(shared, piece)
    assert (len(caller.mapped), turns) == (1, 1)
    arena = shared.memory.find(start)
    assert [arena.buffer[at] for at in range(0, size, size // 16)] == [1] * 16


async def test_zeros_stay_holes(shared):
    size = 1 << 22
    area, start, piece = private(shared, size)
    area[PAGE : PAGE + size] = bytes(size)
    area[PAGE + size // 2] = 7
    await convert(shared, piece)
    stored = sum(run.size for run in shared.stored(start, start + size))
    assert PAGE <= stored <= size // 8
