"""``struct kvm_run``: the page a vCPU shares with the real kernel, as the core's ``KvmRun``."""

from __future__ import annotations

import mmap
import struct
from typing import Any

from kickstand.core.arch.coalesced import Entry, noted
from kickstand.core.run.exits import (
    HltExit,
    InternalErrorExit,
    IoExit,
    MmioExit,
    ShutdownExit,
    UserExit,
    WindowExit,
)
from kickstand.core.run.run_page import KvmRun, PageWrites
from kickstand.core.uapi import (
    KVM_RUN,
    KVM_RUN_EXITS,
    PAGE_SIZE,
    Cap,
    ExitReason,
    InternalError,
    IoDirection,
    check_extension,
)

REASON = KVM_RUN.offset("exit_reason")
UNION = KVM_RUN.offset("exit")
IMMEDIATE_EXIT = KVM_RUN.offset("immediate_exit")
REQUEST_WINDOW = KVM_RUN.offset("request_interrupt_window")
RING = check_extension(Cap.COALESCED_MMIO) * PAGE_SIZE
MMIO = KVM_RUN_EXITS[ExitReason.MMIO]
IO = KVM_RUN_EXITS[ExitReason.IO]
INTERNAL = KVM_RUN_EXITS[ExitReason.INTERNAL_ERROR]
PLAIN: dict[int, UserExit] = {
    ExitReason.HLT: HltExit(), ExitReason.SHUTDOWN: ShutdownExit(), ExitReason.IRQ_WINDOW_OPEN: WindowExit(),
}  # fmt: skip


class DeviceRunPage(KvmRun):
    """The mapping of a vCPU's descriptor. Its flags are bytes of the page; ``taken`` copies an exit out of it."""

    __slots__ = ("_map",)

    def __init__(self, fd: int, size: int) -> None:
        super().__init__()
        self._map = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)

    async def write(self, page: PageWrites) -> None:
        """Userspace writes the device's answer where the exit said, or a flag."""
        if page.reply:
            at = self._reply_at()
            self._map[at : at + len(page.reply)] = page.reply
        if page.immediate_exit is not None:
            await self.set_immediate_exit(page.immediate_exit)

    async def set_immediate_exit(self, value: bool) -> None:
        await super().set_immediate_exit(value)
        self._map[IMMEDIATE_EXIT] = self.immediate_exit

    async def keep_immediate_exit(self, value: bool) -> None:
        await super().keep_immediate_exit(value)
        self._map[IMMEDIATE_EXIT] = value

    async def set_request_interrupt_window(self, value: bool) -> None:
        self.request_interrupt_window = value
        self._map[REQUEST_WINDOW] = value

    def take_coalesced(self) -> list[Entry]:
        """What is noted in the VM's ring of coalesced writes, which is empty then."""
        ring = self._map[RING : RING + PAGE_SIZE]
        first, last = struct.unpack_from("<2I", ring)
        self._map[RING : RING + 4] = ring[4:8]
        return noted(ring, first, last)

    def taken(self) -> UserExit | None:
        """Read what the kernel left: ``exit_reason``, and the exit it describes (None for a kind not known here)."""
        (value,) = struct.unpack_from("<I", self._map, REASON)
        self.exit_reason = ExitReason(value) if value in ExitReason.__members__.values() else ExitReason.UNKNOWN
        self.exit = self._exit(value)
        return self.exit

    def _fields(self, reason: ExitReason) -> dict[str, Any]:
        described = KVM_RUN_EXITS[reason]
        return described.unpack(self._map[UNION : UNION + described.size])

    def _exit(self, reason: int) -> UserExit | None:
        if reason == ExitReason.IO:
            io = self._fields(ExitReason.IO)
            at, size = io["data_offset"], io["size"] * io["count"]
            outward = io["direction"] == IoDirection.OUT
            data = self._map[at : at + size] if outward else b""
            return IoExit("out" if outward else "in", io["size"], io["port"], io["count"], data)
        if reason == ExitReason.MMIO:
            mmio = self._fields(ExitReason.MMIO)
            write = bool(mmio["is_write"])
            return MmioExit(mmio["phys_addr"], mmio["len"], write, mmio["data"][: mmio["len"]] if write else b"")
        if reason == ExitReason.INTERNAL_ERROR:
            internal = self._fields(ExitReason.INTERNAL_ERROR)
            known = internal["suberror"] in InternalError.__members__.values()
            words = tuple(internal["data"][: internal["ndata"]])
            return InternalErrorExit(InternalError(internal["suberror"]) if known else InternalError.EMULATION, words)
        return PLAIN.get(reason)

    def _reply_at(self) -> int:
        if isinstance(self.exit, IoExit):
            return int(self._fields(ExitReason.IO)["data_offset"])
        return UNION + MMIO.offset("data")

    def close(self) -> None:
        """Unmap."""
        self._map.close()
