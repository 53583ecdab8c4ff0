"""Memory transactions: several changes of slots, all or none, with the vCPUs kept out meanwhile or not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any

from kickstand.core.atomics import Task, outside, preempt
from kickstand.core.errors import KvmError
from kickstand.core.memslots import Region, Settled
from kickstand.core.trace import Tracepoint
from kickstand.runtime.vmm.process import Process
from kickstand.runtime.windows.window import Window


class Transactions:
    """The transactions of one machine, one at a time.

    ``settled``: while one is applied, the slots and the dirty pages that there are if it never ends; else None.
    """

    def __init__(self, process: Process, window: Window) -> None:
        self.settled: Settled | None = None
        self._process = process
        self._window = window
        self._lock = asyncio.Lock()

    async def perform(self, regions: Sequence[Region], protect: str, timeout_ms: int | None) -> dict[str, Any]:
        """Apply ``regions`` in order, protected by a ``kick``, by the batch ioctl (``list``), or not at all (``none``).

        Errors as KVM_SET_USER_MEMORY_REGION, with the number of the operation, and ETIMEDOUT if the kick takes
        longer than ``timeout_ms``. After an error or a cancellation the slots are as before.
        """
        process = self._process
        async with self._lock:
            begin = {"phase": "begin", "protect": protect, "operations": len(regions)}
            process.trace(Tracepoint.MEM_TRANSACTION, None, begin)
            try:
                if protect == "kick":
                    drain_ns, window_ns = await self._in_window(regions, timeout_ms)
                else:
                    apply = self._apply_list if protect == "list" else self._apply
                    drain_ns, window_ns = 0, await _timed(apply(regions))
            finally:
                process.trace(Tracepoint.MEM_TRANSACTION, None, {"phase": "end", "protect": protect})
        results = [{"ret": 0, "errno": None} for _ in regions]
        return {"results": results, "drain_ns": drain_ns, "window_ns": window_ns, "seq": process.log.seq}

    async def _in_window(self, regions: Sequence[Region], timeout_ms: int | None) -> tuple[int, int]:
        kicked = await self._window.kick(timeout_ms)
        self._window.unsettled += 1
        try:
            window_ns = await _timed(self._apply(regions))
        finally:
            try:
                await self._window.resume()
            finally:
                self._window.unsettled -= 1
        return kicked["drain_ns"], window_ns

    async def _apply(self, regions: Sequence[Region]) -> None:
        vm = self._process.vm
        await self._process.by_thread(
            lambda thread: vm.with_slots_lock(thread, partial(self._in_order, regions, thread))
        )

    async def _in_order(self, regions: Sequence[Region], thread: Task) -> None:
        """The ioctl for each region, under ``slots_lock`` throughout: nobody else's change can be undone with them."""
        vm = self._process.vm
        before = self.settled = vm.memslots.settled()
        try:
            for index, region in enumerate(regions):
                try:
                    await vm.variant.region_begin(region, thread)
                    await vm.set_region(region)
                    await vm.variant.region_end(region, thread)
                except KvmError as error:
                    raise _at(error, index) from error
                await preempt()  # back in user mode: others run
                if (turn := self._process.guest_time()) is not None:
                    await outside(turn)
        except BaseException:
            if not vm.lifetime.dead:
                await vm.restore_slots(before)
            raise
        finally:
            self.settled = None
            await vm.variant.regions_done(thread)

    async def _apply_list(self, regions: Sequence[Region]) -> None:
        try:
            await self._process.by_thread(partial(self._process.vm.set_user_memory_region_list, regions))
        except KvmError as error:
            index = error.extra.get("operation")
            raise _at(error, index) if isinstance(index, int) else error from error


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
