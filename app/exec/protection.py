"""Slot updates of programs that know neither KICK nor RESUME, and the time that passes between two of them.

A transaction is what one thread does from its first DELETE or MOVE until its next KVM_RUN, or until it has covered
again what it took away: QEMU's order. ``hold`` and ``kick`` put the two ioctls of the VM's variant around it; a
transaction that nothing protects is traced all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

from kickstand.core.errors import KvmError
from kickstand.core.memslots import Region, Slot
from kickstand.core.trace import Tracepoint
from kickstand.core.uapi import PAGE_SHIFT
from kickstand.exec.host.tracee import is_running
from kickstand.exec.summary import Summary
from kickstand.runtime.driver.tasks import start
from kickstand.runtime.machine import Machine

NONE, HOLD = "none", "hold"
LOOK_S = 0.05  # how often it is looked whether the thread has gone on to something else

Span = tuple[int, int]


def taken_away(old: Slot | None, region: Region) -> Span | None:
    """The guest-physical addresses that a slot ioctl takes away: of a slot that it deletes or moves."""
    if old is None or (region.memory_size and old.base_gfn << PAGE_SHIFT == region.guest_phys_addr):
        return None
    return old.base_gfn << PAGE_SHIFT, old.end_gfn << PAGE_SHIFT


def without(holes: Iterable[Span], start: int, end: int) -> list[Span]:
    """What is left of holes once a range is covered."""
    left: list[Span] = []
    for low, high in holes:
        left += [(low, min(high, start))] if low < start else []
        left += [(max(low, end), high)] if high > end else []
    return [(low, high) for low, high in left if low < high]


class Protection:
    """The transactions of one VM."""

    def __init__(self, machine: Machine, how: str, summary: Summary) -> None:
        self.hides_kicks = how == HOLD
        self._machine = machine
        self._how = how
        self._summary = summary
        self._thread: int | None = None  # whose transaction is open
        self._holes: list[Span] = []
        self._timer: asyncio.TimerHandle | None = None

    async def change(self, tid: int, region: Region) -> None:
        """KVM_SET_USER_MEMORY_REGION by a thread of the program. Errors as the ioctl; nothing is held then."""
        taken = taken_away(self._machine.vm.memslots.slots.get(region.slot), region)
        if taken is not None:
            await self._open(tid)
        try:
            await self._machine.set_user_memory_region(region)
        except KvmError:
            if not self._holes:
                await self._close()
            raise
        self._holes += [taken] if taken else []
        end = region.guest_phys_addr + region.memory_size
        self._holes = without(self._holes, region.guest_phys_addr, end) if region.memory_size else self._holes
        if not self._holes:
            await self._close()
        elif self._how == NONE and (turn := self._machine.guest_time()) is not None:
            await turn  # before the caller can issue its next ioctl

    async def run_begins(self, tid: int) -> None:
        """The thread is done with its slots."""
        if tid == self._thread:
            await self._close()

    def concerns(self, tid: int) -> bool:
        """The thread has a transaction open."""
        return tid == self._thread

    async def _open(self, tid: int) -> None:
        if self._thread is None:
            self._thread = tid
            self._trace("begin")
            if self._how != NONE:
                self._summary.window((await self._machine.kick())["drain_ns"])
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look, 0)

    def _look(self, slept: int) -> None:
        """A thread that took memory away for good, and sleeps or has ended, is not waited for."""
        slept = slept + 1 if self._thread is not None and not is_running(self._thread) else 0
        if slept > 1:
            start(self._close())
        else:
            self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look, slept)

    async def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._holes.clear()
        if self._thread is not None:
            self._thread = None
            if self._how != NONE:
                with contextlib.suppress(KvmError):  # the VM has ended meanwhile
                    await self._machine.resume()
            self._trace("end")

    def _trace(self, phase: str) -> None:
        protect = NONE if self._how == NONE else "kick"
        self._machine.trace(Tracepoint.MEM_TRANSACTION, None, {"phase": phase, "protect": protect})
