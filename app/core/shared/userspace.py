"""What a VMM keeps about its own ioctls, for the variants that need no kernel change.

Source: QEMU's ``accel/accel-blocker.c`` with ``util/lockcnt.c``; ``kvm_eat_signals`` for the signal.
"""

from __future__ import annotations

from typing import Any

from kickstand.core.atomics import Shared, Task, atomic, blocked


class IoctlCounts(Shared):
    """How many ioctls are under way per owner (a vCPU's thread, or the VM), and who inhibits new ones."""

    __slots__ = ("counts", "awaited", "inhibitor", "event", "passing")

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self.awaited: set[str] = set()  # owners inside whose next ``end`` somebody waits for
        self.inhibitor: str | None = None
        self.event = False  # ``in_ioctl_event``: an ioctl has ended since it was reset
        self.passing: tuple[str, ...] = ()  # threads of the inhibitor inside ioctls that are not counted

    def state(self) -> tuple[Any, ...]:
        return tuple(sorted(self.counts.items())), frozenset(self.awaited), self.inhibitor, self.event, self.passing

    def load(self, state: tuple[Any, ...]) -> None:
        counts, awaited, self.inhibitor, self.event, self.passing = state
        self.counts = dict(counts)
        self.awaited = set(awaited)

    @atomic
    async def begin(self, owner: str) -> bool:
        """An ioctl of ``owner`` starts."""
        self.counts[owner] = self.counts.get(owner, 0) + 1
        return True

    @atomic
    async def begin_unless_inhibited(self, owner: str, process: str, task: Task) -> bool:
        """Start an ioctl, waiting while new ones are inhibited; false if a signal comes first.

        Only the step from 0 to 1 waits (``qemu_lockcnt_inc``). The inhibitor's own ioctls pass by the count, as those
        of whoever has the BQL do.
        """
        if self.inhibitor == process:
            self.passing += (task.tid,)
            return True
        while self.inhibitor is not None and not self.counts.get(owner):
            if task.signal:
                return False
            await blocked(self, task)
        self.counts[owner] = self.counts.get(owner, 0) + 1
        return True

    @atomic
    async def end(self, owner: str, tid: str = "") -> None:
        """An ioctl of ``owner`` returned, which thread ``tid`` had issued."""
        if tid in self.passing:
            at = self.passing.index(tid)
            self.passing = self.passing[:at] + self.passing[at + 1 :]
            return
        left = self.counts[owner] - 1
        if left:
            self.counts[owner] = left
        else:
            del self.counts[owner]
        self.awaited.discard(owner)
        if self.inhibitor is not None:
            self.event = True
        self.changed()

    @atomic
    async def is_inside(self, owner: str) -> bool:
        """An ioctl of ``owner`` is under way."""
        return owner in self.counts

    @atomic
    async def await_end(self, owner: str) -> None:
        """From now on ``wait_left`` waits for the ioctl that ``owner`` is in, if it is in one."""
        if owner in self.counts:
            self.awaited.add(owner)

    @atomic
    async def wait_left(self, owner: str) -> None:
        """Wait until ``owner`` has left the ioctl it was in at ``await_end``; a later one is not waited for."""
        while owner in self.awaited:
            await blocked(self)

    @atomic
    async def inhibit(self, process: str) -> bool:
        """Hold new ioctls back; another inhibitor is waited for (the BQL). False if it was so already."""
        while self.inhibitor not in (None, process):
            await blocked(self)
        opened = self.inhibitor is None
        self.inhibitor = process
        return opened

    @atomic
    async def reset_event(self) -> None:
        """From now on ``wait_event`` waits for the next ``end``."""
        self.event = False

    @atomic
    async def wait_event(self) -> None:
        """Wait until an ioctl has ended."""
        while not self.event:
            await blocked(self)

    @atomic
    async def idle(self) -> bool:
        """No ioctl is under way."""
        return not self.counts

    @atomic
    async def permit(self) -> int:
        """Let new ioctls start; 1 if they were inhibited."""
        was = self.inhibitor is not None
        self.inhibitor = None
        self.event = False
        if was:
            self.changed()
        return int(was)
