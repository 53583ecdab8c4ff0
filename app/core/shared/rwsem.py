"""A reader-writer semaphore with the kernel's vocabulary.

Waiters are served in arrival order, readers in a batch, so a waiting writer stops new readers. That is
what lets KVM_KICK_ALL_RUNNING_VCPUS finish while vCPUs keep calling KVM_RUN. A writer at the head of the
queue is *woken*, not granted: with ``steal`` a newcomer may take a lock that has just become free first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from enum import Enum
from itertools import groupby
from operator import itemgetter
from typing import Any

from kickstand.core.atomics import Killed, Shared, Task, atomic, blocked


class Side(Enum):
    """Which side of the semaphore a thread asks for."""

    READ = "read"
    WRITE = "write"


READ, WRITE = Side.READ, Side.WRITE  # plain names: see ``trace``


class RwSemaphore(Shared):
    """``struct rw_semaphore``; the kernel's rules without optimistic spinning and without PREEMPT_RT."""

    __slots__ = ("steal", "readers", "writer", "queue", "granted")

    def __init__(self, *, steal: bool = False) -> None:
        super().__init__()
        self.steal = steal
        self.readers = 0
        self.writer: str | None = None
        self.queue: deque[tuple[str, Side]] = deque()
        self.granted: set[str] = set()  # readers that were let in while they waited; counted in ``readers``

    def state(self) -> tuple[Any, ...]:
        """Readers that stand between two writers are let in together, so their order says nothing: it is sorted."""
        return self.readers, self.writer, tuple(_sorted_readers(self.queue)), tuple(sorted(self.granted))

    def load(self, state: tuple[Any, ...]) -> None:
        self.readers, self.writer, queue, granted = state
        self.queue = deque(queue)
        self.granted = set(granted)

    async def down_read(self, task: Task, *, killable: bool = False) -> bool:
        """Take the read side. False only if ``killable`` and a signal came first; then nothing is held.

        A killed thread (``Killed``) leaves the queue or gives back what it was granted meanwhile.
        """
        return await self.read_or_queue(task.tid) or await self.wait(task, READ, killable=killable)

    async def down_write(self, task: Task, *, killable: bool = False) -> bool:
        """Take the write side; result and cancellation as ``down_read``."""
        return await self.write_or_queue(task.tid) or await self.wait(task, WRITE, killable=killable)

    async def wait(self, task: Task, side: Side, *, killable: bool = False) -> bool:
        """The rest of ``down_read`` or ``down_write`` for a thread that stands in the queue."""
        try:
            if not killable:
                await self.wait_turn(task.tid, side)
            elif not await self.wait_turn_killable(task.tid, side, task):
                await self.leave_queue(task.tid, side)
                return False
        except Killed:
            await self.leave_queue(task.tid, side)
            raise
        return True

    @atomic
    async def read_or_queue(self, tid: str) -> bool:
        """The fast path of ``down_read``, else stand in the queue; says which."""
        if self.writer is None and (not self.queue or (self.steal and not self.readers)):
            self.readers += 1
            return True
        self.queue.append((tid, READ))
        return False

    @atomic
    async def write_or_queue(self, tid: str) -> bool:
        """The fast path of ``down_write``, else stand in the queue; says which."""
        if self.writer is None and not self.readers and not self.queue:
            self.writer = tid
            return True
        self.queue.append((tid, WRITE))
        return False

    @atomic
    async def wait_turn(self, tid: str, side: Side) -> None:
        """Wait in the queue; uninterruptible, as ``down_read`` and ``down_write`` are."""
        while not self._take_turn(tid, side):
            await blocked(self, key=tid)

    @atomic
    async def wait_turn_killable(self, tid: str, side: Side, task: Task) -> bool:
        """Wait in the queue; false if a signal is pending before the turn has come."""
        while not self._take_turn(tid, side):
            if task.signal:
                return False
            await blocked(self, task, key=tid)
        return True

    @atomic
    async def leave_queue(self, tid: str, side: Side) -> None:
        """Give up waiting; what was granted meanwhile is given back, who stood behind may go on."""
        if tid in self.granted:
            self.granted.discard(tid)
            self.readers -= 1
            self._wake_head()
        elif side is WRITE and self.writer == tid:
            self.writer = None
            self._wake_head()
        elif (tid, side) in self.queue:
            self.queue.remove((tid, side))
            self._wake_head()

    @atomic
    async def up_read(self) -> None:
        """The last reader out wakes the head of the queue."""
        self.readers -= 1
        if not self.readers and self.queue:
            self._wake_head()

    @atomic
    async def up_write(self) -> None:
        """Wakes the head of the queue, whichever side it is."""
        self.writer = None
        self._wake_head()

    def _take_turn(self, tid: str, side: Side) -> bool:
        if side is READ:
            if tid not in self.granted:
                return False
            self.granted.discard(tid)
            return True
        if self.readers or self.writer is not None or self.queue[0] != (tid, WRITE):
            return False
        self.queue.popleft()
        self.writer = tid
        return True

    def _wake_head(self) -> None:
        if not self.queue or self.writer is not None:
            return
        tid, side = self.queue[0]
        if side is READ:
            self._grant_readers()
        elif not self.readers:
            self.changed_for(tid)

    def _grant_readers(self) -> None:
        """Let in all queued readers whatever their place; writers keep their order (phase-fair)."""
        waiting, self.queue = self.queue, deque()
        for entry in waiting:
            tid, side = entry
            if side is WRITE:
                self.queue.append(entry)
            else:
                self.readers += 1
                self.granted.add(tid)
                self.changed_for(tid)


def _sorted_readers(queue: Iterable[tuple[str, Side]]) -> Iterator[tuple[str, Side]]:
    for side, group in groupby(queue, key=itemgetter(1)):
        entries = list(group)
        yield from sorted(entries, key=itemgetter(0)) if side is READ else entries


class Srcu(Shared):
    """``struct srcu_struct``: readers never wait; ``synchronize`` waits for those that were inside before it."""

    __slots__ = ("phase", "counts")

    def __init__(self) -> None:
        super().__init__()
        self.phase = 0  # modulo 4; its low bit is the index new readers use
        self.counts = [0, 0]

    def state(self) -> tuple[Any, ...]:
        return self.phase, tuple(self.counts)

    def load(self, state: tuple[Any, ...]) -> None:
        self.phase, counts = state
        self.counts = list(counts)

    @atomic
    async def read_lock(self) -> int:
        """``srcu_read_lock``: returns the index to give back."""
        return self.enter()

    @atomic
    async def read_unlock(self, index: int) -> None:
        """``srcu_read_unlock``."""
        self.exit(index)

    async def synchronize(self) -> None:
        """``synchronize_srcu_expedited``: returns after every reader that was inside has left."""
        await self.drained(await self.flip())

    @atomic
    async def flip(self) -> int:
        """Send new readers to the other index, once its old readers are gone; returns the new phase."""
        while self.counts[(self.phase + 1) & 1]:
            await blocked(self)
        self.phase = (self.phase + 1) % 4
        return self.phase

    @atomic
    async def drained(self, phase: int) -> None:
        """Wait for the readers of the index before ``phase``; a later flip means that they were gone already."""
        while self.phase == phase and self.counts[(phase + 1) & 1]:
            await blocked(self)

    def enter(self) -> int:
        """Enter a read section as part of another object's operation."""
        index = self.phase & 1
        self.counts[index] += 1
        return index

    def exit(self, index: int) -> None:
        """Leave a read section as part of another object's operation."""
        self.counts[index] -= 1
        if self.waiters and not self.counts[index]:
            self.changed()
