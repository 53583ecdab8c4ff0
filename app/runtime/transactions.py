"""Memory transactions: several changes of slots, all or none, with the vCPUs kept out meanwhile or not."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from app.core.errors import KvmError
from app.core.memslots import Region, Slot
from app.core.trace import Event

if TYPE_CHECKING:
    from app.runtime.machine import Machine


class Transactions:
    """The transactions of one machine, one at a time.

    ``settled``: while one is open, the slots and the dirty pages that there are if it never ends; else None.
    """

    def __init__(self, machine: Machine) -> None:
        self.settled: tuple[dict[int, Slot], dict[int, set[int]]] | None = None
        self._machine = machine
        self._lock = asyncio.Lock()

    async def perform(self, regions: Sequence[Region], protect: str, timeout_ms: int | None) -> dict[str, Any]:
        """Apply ``regions`` in order, protected by a ``kick``, by the batch ioctl (``list``), or not at all (``none``).

        Errors as KVM_SET_USER_MEMORY_REGION, with the number of the operation, and ETIMEDOUT if the kick takes
        longer than ``timeout_ms``. After an error or a cancellation the slots are as before.
        """
        machine = self._machine
        async with self._lock:
            begin = {"phase": "begin", "protect": protect, "operations": len(regions)}
            machine.trace(Event.MEM_TRANSACTION, None, begin)
            slots = machine.vm.memslots
            self.settled = dict(slots.slots), {slot: set(pages) for slot, pages in slots.dirty.items()}
            try:
                if protect == "kick":
                    drain_ns, window_ns = await self._in_window(regions, timeout_ms)
                else:
                    apply = self._apply_list if protect == "list" else self._apply
                    drain_ns, window_ns = 0, await _timed(apply(regions))
            finally:
                self.settled = None
                machine.trace(Event.MEM_TRANSACTION, None, {"phase": "end", "protect": protect})
        results = [{"ret": 0, "errno": None} for _ in regions]
        return {"results": results, "drain_ns": drain_ns, "window_ns": window_ns, "seq": machine.log.seq}

    def changed_beside(self, slot_id: int) -> None:
        """A slot was changed by a call that is no part of the open transaction, if there is one."""
        if self.settled is None:
            return
        settled, _ = self.settled
        slot = self._machine.vm.memslots.slots.get(slot_id)
        if slot is None:
            settled.pop(slot_id, None)
        else:
            settled[slot_id] = slot

    async def _in_window(self, regions: Sequence[Region], timeout_ms: int | None) -> tuple[int, int]:
        machine = self._machine
        kicked = await machine.kick(timeout_ms)
        machine.unsettled += 1
        try:
            window_ns = await _timed(self._apply(regions))
        finally:
            try:
                await machine.resume()
            finally:
                machine.unsettled -= 1
        return kicked["drain_ns"], window_ns

    async def _apply(self, regions: Sequence[Region]) -> None:
        machine = self._machine
        before = machine.vm.memslots.state()
        for index, region in enumerate(regions):
            try:
                await machine.change_region(region)
            except KvmError as error:
                if error.errno != errno.EIO:
                    await self._restore(before)
                raise _at(error, index) from error
            except asyncio.CancelledError:
                await self._restore(before)
                raise
            await asyncio.sleep(0)  # back in user mode: others run

    async def _restore(self, before: tuple[Any, ...]) -> None:
        machine = self._machine
        await machine.call(machine.vm.restore_slots(before, machine.thread()))

    async def _apply_list(self, regions: Sequence[Region]) -> None:
        machine = self._machine
        await machine.call(machine.vm.set_user_memory_region_list(regions, machine.thread()))


async def _timed(work: Coroutine[Any, Any, None]) -> int:
    started = time.monotonic_ns()
    await work
    return time.monotonic_ns() - started


def _at(error: KvmError, index: int) -> KvmError:
    return KvmError(
        error.errno,
        error.ioctl,
        f"operation {index}: {error.detail}; nothing has changed",
        field=f"operations.{index}.{error.field}" if error.field else None,
        operation=index,
    )
