"""The x86 guest engine as the core sees it: slots as physical memory, slices or a guest thread as time.

``precise``: slices of a fixed number of instructions on the event loop; the same calls give the same run.
``fast``: the translator runs without counting on the VM's guest thread, one guest at a time (LOCK is not
atomic between two of them), until an exit, an IPI, or the next guest's turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from app.core.atomics import Killed, outside, preempt
from app.core.guest import Exit, InterruptedExit, IoExit, MmioExit, WindowExit
from app.core.uapi import PAGE_SHIFT
from app.guests.x86.cpu import X86Cpu
from app.guests.x86.memory import Segment
from app.guests.x86.rotation import Rotation, rotation
from app.guests.x86.turns import Turns

if TYPE_CHECKING:
    from app.core.memslots import Memslots
    from app.core.vcpu import Vcpu
    from app.guests.host_memory import HostMemory

# Instructions between two looks at the IPI, about half a millisecond; a prime, so that hardly a loop ends its
# slice where it began, which looks like an engine that does nothing.
SLICE = 49_999


class SlotMemory:
    """Guest-physical memory as the active slots and the arenas behind them give it."""

    def __init__(self, memslots: Memslots, memory: HostMemory) -> None:
        self._memslots = memslots
        self._memory = memory

    @property
    def generation(self) -> int:
        """Changes with every publication of slots and every new arena."""
        return self._memslots.generation << 20 | len(self._memory.arenas)

    def segments(self) -> list[Segment]:
        """The slots, cut where their host memory changes."""
        return [
            Segment(
                (slot.base_gfn << PAGE_SHIFT) + run.hva - slot.userspace_addr,
                run.size,
                run.address,
                slot.readonly,
                slot.logged,
                slot.invalid,
            )
            for slot in self._memslots.ordered()
            for run in self._memory.runs(slot.userspace_addr, slot.npages << PAGE_SHIFT)
        ]

    def mark_dirty(self, gpa: int) -> None:
        """Log a write; safe against a fetch of the log by another thread at the same moment."""
        slot = self._memslots.find(gpa >> PAGE_SHIFT)
        if slot is None or not slot.logged:
            return
        while (pages := self._memslots.dirty.get(slot.id)) is not None:
            pages.add((gpa >> PAGE_SHIFT) - slot.base_gfn)
            if self._memslots.dirty.get(slot.id) is pages:
                return


class X86Guest:
    """One vCPU's x86 CPU."""

    def __init__(self, vcpu: Vcpu, memory: HostMemory, mode: str, turns: Turns) -> None:
        self.cpu = X86Cpu(SlotMemory(vcpu.vm.memslots, memory), mode=mode)
        self._turns = turns if mode == "fast" else None
        self._rotation: Rotation | None = None  # of the loop it runs on, which is known at its first run
        self._turn: asyncio.Future[None] | None = None

    async def enter(self, vcpu: Vcpu) -> Exit:
        """Execute until an exit or an IPI."""
        self.cpu.window_requested = await vcpu.run_page.wants_interrupt_window() and not vcpu.vm.irqchip
        run = self._run_sliced if self._turns is None else self._run_on_thread
        return await run(vcpu)

    async def _run_sliced(self, vcpu: Vcpu) -> Exit:
        mine = self._rotation = self._rotation or rotation()
        mine.guests += 1
        try:
            while not await vcpu.mode.interrupted():
                if mine.guests > 1:
                    self._turn = mine.turn()
                    await outside(self._turn)
                    if await vcpu.mode.interrupted():
                        break
                exit = self.cpu.run(SLICE)
                if exit is not None and not isinstance(exit, InterruptedExit):
                    return exit
                if mine.guests == 1:
                    await preempt()
            return InterruptedExit()
        finally:
            mine.guests -= 1

    async def _run_on_thread(self, vcpu: Vcpu) -> Exit:
        while not await vcpu.mode.interrupted():
            exit = await self._on_thread()
            if exit is not None and not isinstance(exit, InterruptedExit):
                return exit
        return InterruptedExit()

    async def _on_thread(self) -> Exit | None:
        assert self._turns is not None
        self.cpu.clear_stop()
        turn = self._turns.take(self.cpu)
        try:
            return await outside(asyncio.wrap_future(turn))
        except Killed:
            self.cpu.stop()
            if not turn.cancel():
                turn.result()
            raise

    async def complete(self, vcpu: Vcpu, pending: IoExit | MmioExit, reply: bytes | None) -> Exit | None:
        """Finish the access at which the CPU stopped."""
        return self.cpu.complete(reply)

    def kick(self) -> None:
        """Stop the guest thread; a sliced guest looks for the IPI by itself, and need not wait for its turn."""
        if self._turns is not None:
            self.cpu.stop()
        elif self._turn is not None and not self._turn.done():
            self._turn.set_result(None)

    def interrupts_allowed(self) -> bool:
        """IF is set and nothing shadows it."""
        return self.cpu.interrupts_allowed

    def interrupt(self, vector: int) -> None:
        """Queue an external interrupt."""
        self.cpu.interrupt(vector)

    def nmi(self) -> None:
        """Queue an NMI."""
        self.cpu.nmi()

    def start_at(self, vector: int) -> None:
        """A SIPI: real mode at ``vector << 12``."""
        segment = {"selector": vector << 8, "base": vector << 12}
        self.cpu.set_special_registers({"cs": self.cpu.special_registers()["cs"] | segment})
        self.cpu.set_registers({"rip": 0})

    def window_exit(self) -> WindowExit | None:
        """The window is open when an interrupt would be taken and none waits."""
        return WindowExit() if self.cpu.interrupts_allowed and not self.cpu.has_pending_interrupt else None

    def registers(self) -> dict[str, int]:
        """KVM_GET_REGS."""
        return self.cpu.registers()

    def set_registers(self, registers: Mapping[str, int]) -> None:
        """KVM_SET_REGS for the named registers."""
        self.cpu.set_registers(registers)

    def special_registers(self) -> dict[str, object]:
        """KVM_GET_SREGS."""
        return self.cpu.special_registers()

    def set_special_registers(self, changes: Mapping[str, object]) -> None:
        """KVM_SET_SREGS for the named registers."""
        self.cpu.set_special_registers(changes)

    def saved(self) -> dict[str, Any]:
        """The CPU as JSON; not while its thread is in guest mode."""
        return self.cpu.state()

    def load(self, saved: Mapping[str, Any]) -> None:
        """Become the CPU that was saved. ``ValueError``: another engine's."""
        self.cpu.load(saved)

    def close(self) -> None:
        """Give the translator and the guest thread back."""
        if self._turns is not None:
            self._turns.close()
        self.cpu.close()
