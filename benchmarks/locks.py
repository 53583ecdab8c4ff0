"""The semaphore behind a kick: taking it when nobody waits, and the kick's pattern with many readers.

The pattern: N hold the read side; a writer queues; all leave; the writer passes; all are back inside. The floor
is the same program without a lock: each of the N waits on a future, is woken, and waits again. The lock is taken as
KVM_RUN takes it: one operation, and a second one only for who has to wait.
"""

from __future__ import annotations

import asyncio

import aiorwlock
from harness import Ratio, at_least, at_most, compare, report

from kickstand.core.atomics import Task
from kickstand.core.shared.rwsem import RwSemaphore, Side
from kickstand.runtime.driver.tasks import perform

TIMES = 20_000
CYCLES = {100: 20, 1_000: 4, 4_096: 1}


class Pattern:
    """N tasks that hold, and the one that gets them out and lets them back in. Subclasses add the lock."""

    def __init__(self, readers: int) -> None:
        self.readers = readers
        self.cycles = CYCLES[readers]
        self.holding: list = []
        self.all_hold: asyncio.Future | None = None
        self.loop = asyncio.new_event_loop()
        self.tasks = self.loop.run_until_complete(self._start())

    def hold(self, holder) -> None:
        """A reader is inside and about to wait; the last to come says that all are in."""
        self.holding.append(holder)
        if len(self.holding) == self.readers:
            self.all_hold.set_result(None)

    def held(self) -> asyncio.Future:
        """What a task waits for inside."""
        future = self.loop.create_future()
        self.hold(future)
        return future

    async def kick(self, holding) -> None:
        """Wake all who wait inside, and pass as a writer."""
        for future in holding:
            future.set_result(None)
        await self.write()

    async def _start(self):
        self.all_hold = self.loop.create_future()
        tasks = [self.started(number) for number in range(self.readers)]
        await self.all_hold
        return tasks

    async def _kick(self):
        for _ in range(self.cycles):
            self.all_hold = self.loop.create_future()
            holding, self.holding = self.holding, []
            await self.kick(holding)
            await self.all_hold

    def __call__(self) -> None:
        self.loop.run_until_complete(self._kick())

    def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*self.tasks, return_exceptions=True))
        self.loop.close()

    def started(self, number: int) -> asyncio.Future:
        """A reader, on its way in."""
        return self.loop.create_task(self.reader(number))

    async def reader(self, number: int) -> None:
        raise NotImplementedError

    async def write(self) -> None:
        raise NotImplementedError


class NoLock(Pattern):
    """The floor."""

    async def reader(self, number):
        while True:
            await self.held()

    async def write(self):
        pass


class Ours(Pattern):
    """The shipped semaphore in the shipped tasks: a reader holds as a vCPU does that sleeps in KVM_RUN."""

    def __init__(self, readers: int) -> None:
        self.semaphore = RwSemaphore()
        super().__init__(readers)

    async def reader(self, number):
        await perform(self._reader(Task(f"reader {number}")))

    async def _reader(self, task):
        while True:
            if not await self.semaphore.read_or_queue(task.tid):
                await self.semaphore.wait(task, Side.READ)
            await task.set_interruptible()
            self.hold(task)
            await task.schedule()
            await self.semaphore.up_read()

    async def kick(self, holding):
        await perform(self._kick_readers(Task("writer"), holding))

    async def _kick_readers(self, task, holding):
        for reader in holding:
            await reader.wake_up()
        await self.semaphore.down_write(task)
        await self.semaphore.up_write()


class Aiorwlock(Pattern):
    """The usual asyncio lock, in its fast mode: it gives way only when it has to wait."""

    def __init__(self, readers: int) -> None:
        self.lock = aiorwlock.RWLock(fast=True)
        super().__init__(readers)

    async def reader(self, number):
        while True:
            await self.lock.reader_lock.acquire()
            await self.held()
            self.lock.reader_lock.release()

    async def write(self):
        await self.lock.writer_lock.acquire()
        self.lock.writer_lock.release()


def on_loop(program):
    """A program of one coroutine, on a loop that is there already."""
    loop = asyncio.new_event_loop()
    return lambda: loop.run_until_complete(program())


async def read_lock():
    semaphore = RwSemaphore()
    for _ in range(TIMES):
        await semaphore.read_or_queue("reader")
        await semaphore.up_read()


async def asyncio_lock():
    lock = asyncio.Lock()
    for _ in range(TIMES):
        await lock.acquire()
        lock.release()


async def aiorwlock_read():
    lock = aiorwlock.RWLock(fast=True).reader_lock
    for _ in range(TIMES):
        await lock.acquire()
        lock.release()


def uncontended() -> list[Ratio]:
    """Acquire and release by method call, with nobody else about."""
    row = "read lock nobody waits for"
    ours = on_loop(read_lock)
    return [
        compare(row, "asyncio.Lock", ours, on_loop(asyncio_lock), goal=at_most(1.0)),
        compare(
            f"{row}, times faster", "aiorwlock (fast)", ours, on_loop(aiorwlock_read), goal=at_least(5), faster=True
        ),
    ]


def kick_cycle(readers: int) -> list[Ratio]:
    """The pattern against no lock and against the usual one."""
    row = f"kick cycle of the lock, {readers:,} readers"
    ours, floor, peer = Ours(readers), NoLock(readers), Aiorwlock(readers)
    rows = [compare(row, "no lock", ours, floor, goal=at_most(2.5))]
    goal = at_least(5) if readers == 1_000 else None  # noqa: PLR2004
    rows.append(compare(f"{row}, times faster", "aiorwlock (fast)", ours, peer, goal=goal, faster=True, rounds=5))
    for program in (ours, floor, peer):
        program.close()
    return rows


def growth() -> Ratio:
    """Whether a reader costs more where there are more of them."""
    few, many = Ours(100), Ours(4_096)
    scale = (few.readers * few.cycles) / (many.readers * many.cycles)
    row = compare(
        "cost of a reader in a kick cycle, 4,096 readers", "with 100 readers", many, few, goal=at_most(1.3), scale=scale
    )
    few.close()
    many.close()
    return row


def main() -> None:
    report([*uncontended(), *kick_cycle(100), *kick_cycle(1_000), growth()])


if __name__ == "__main__":
    main()
