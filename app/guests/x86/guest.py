"""The x86 guest engine as the core sees it: slots as physical memory, slices or a guest thread as time.

``precise``: slices of a fixed number of instructions on the event loop; the same calls give the same run.
``fast``: the translator runs without counting on the VM's guest thread, one guest at a time (LOCK is not
atomic between two of them), until an exit, an IPI, or the next guest's turn; for a moment on the loop first, if the
guest's last exit came soon.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kickstand.core.atomics import Killed, outside
from kickstand.core.guest import Cpu
from kickstand.core.run.exits import Asked, Exit, InterruptedExit, MsrExit, WindowExit
from kickstand.core.uapi import PAGE_SHIFT, PAGE_SIZE
from kickstand.guests.x86.cpu import X86Cpu
from kickstand.guests.x86.memory.physical import Segment
from kickstand.guests.x86.time_sharing.guest_thread import Turns
from kickstand.guests.x86.time_sharing.inline import LIMIT_S, WATCH
from kickstand.guests.x86.time_sharing.shares import Share
from kickstand.guests.x86.time_sharing.slices import EXITS, Rotation, rotation

if TYPE_CHECKING:
    from kickstand.core.arch.cpu.cpuid import Entry
    from kickstand.core.arch.cpu.mce import MachineCheck, Signal
    from kickstand.core.memslots import Memslots
    from kickstand.core.memslots.dirty_ring import DirtyRing
    from kickstand.guests.host_memory import HostMemory
    from kickstand.guests.x86.state.tsc import Tsc
    from kickstand.guests.x86.structures import Structures

# Instructions between two looks at the IPI, about half a millisecond; a prime, so that hardly a loop ends its
# slice where it began, which looks like an engine that does nothing.
SLICE = 49_999


def _nobody() -> None:
    """Nobody has to know."""


class SlotMemory:
    """Guest-physical memory as the active slots and the arenas behind them give it."""

    def __init__(self, memslots: Memslots, memory: HostMemory, ring: DirtyRing | None = None) -> None:
        self._memslots = memslots
        self._memory = memory
        self._ring = ring
        self.on_full: Callable[[], None] = _nobody
        """Called when the ring has become full."""

    @property
    def generation(self) -> int:
        """Changes with every publication of slots and every arena that comes or goes."""
        return self._memslots.generation << 40 | self._memory.version

    def find(self, gpa: int) -> Segment | None:
        """The slot that holds ``gpa``, cut where its host memory changes."""
        slot = self._memslots.find(gpa >> PAGE_SHIFT)
        if slot is None:
            return None
        start, hva = slot.base_gfn << PAGE_SHIFT, slot.hva(gpa)
        arena, end = self._memory.find(hva), slot.userspace_addr + (slot.npages << PAGE_SHIFT)
        if arena is None:
            first, end, address = hva & ~(PAGE_SIZE - 1), (hva & ~(PAGE_SIZE - 1)) + PAGE_SIZE, None
        else:
            first, end = max(slot.userspace_addr, arena.base), min(end, arena.base + arena.size)
            address = arena.address + first - arena.base
        gpa = start + first - slot.userspace_addr
        return Segment(gpa, end - first, address, slot.readonly, slot.logged, slot.invalid)

    def mark_dirty(self, gpa: int) -> None:
        """Log a write; safe against a fetch of the log by another thread at the same moment."""
        slot = self._memslots.find(gpa >> PAGE_SHIFT)
        if slot is None or not slot.logged:
            return
        if self._ring is not None:
            self._ring.push(slot.id, (gpa >> PAGE_SHIFT) - slot.base_gfn)
            if self._ring.soft_full:
                self.on_full()
            return
        while (pages := self._memslots.dirty.get(slot.id)) is not None:
            pages.add((gpa >> PAGE_SHIFT) - slot.base_gfn)
            if self._memslots.dirty.get(slot.id) is pages:
                return


class X86Guest:
    """One vCPU's x86 CPU."""

    def __init__(self, vcpu: Cpu, memory: HostMemory, mode: str, turns: Turns) -> None:
        slots = SlotMemory(vcpu.memslots, memory, vcpu.dirty_ring)
        self.cpu = X86Cpu(slots, mode=mode, arch=vcpu.kvm_arch, boot=vcpu.is_boot_vcpu)
        slots.on_full = self.cpu.leave
        if vcpu.has_local_apic:
            self.cpu.answer_apic_msrs()
        self._turns = turns if mode == "fast" else None
        self._share = Share()
        self._rotation: Rotation | None = None  # of the loop it runs on, which is known at its first run
        self._turn: asyncio.Future[None] | None = None
        self._waited_ns = 0  # for its turns
        self._near = True  # its last exit came soon

    async def enter(self, vcpu: Cpu) -> Exit:
        """Execute until an exit or an IPI."""
        if not self.cpu.goes_on:
            self.cpu.entering(lambda: self._waited_ns + vcpu.run_delay_ns())
        self.cpu.window_requested = await vcpu.wants_interrupt_window()
        run = self._run_sliced if self._turns is None else self._run_on_thread
        return await run(vcpu)

    async def _run_sliced(self, vcpu: Cpu) -> Exit:
        mine = self._rotation = self._rotation or rotation()
        mine.guests += 1
        first = True  # an exit that is near need not wait
        try:
            while not await vcpu.mode.interrupted():
                if mine.guests > 1 or not first:
                    self._turn = mine.turn(self._share)
                    since = time.monotonic_ns()
                    await outside(self._turn)
                    self._waited_ns += time.monotonic_ns() - since
                    if await vcpu.mode.interrupted():
                        break
                exit = self.cpu.run(SLICE)
                if exit is not None and not isinstance(exit, InterruptedExit):
                    self._share.used += 1
                    return exit
                self._share.used += EXITS
                if vcpu.dirty_ring is not None and vcpu.dirty_ring.soft_full:
                    break
                first = False
            return InterruptedExit()
        finally:
            mine.guests -= 1

    async def _run_on_thread(self, vcpu: Cpu) -> Exit:
        assert self._turns is not None
        since, looks = time.thread_time(), self._near and self._turns.idle
        while looks and not await vcpu.mode.interrupted():
            exit = WATCH.run(self.cpu)
            if exit is not None and not isinstance(exit, InterruptedExit):
                return exit
            looks = time.thread_time() - since < LIMIT_S  # else the host had something else to do meanwhile
        while not await vcpu.mode.interrupted():
            exit, seconds = await self._on_thread()
            self._near = seconds < LIMIT_S
            if exit is not None and not isinstance(exit, InterruptedExit):
                return exit
            if vcpu.dirty_ring is not None and vcpu.dirty_ring.soft_full:
                break
        return InterruptedExit()

    async def _on_thread(self) -> tuple[Exit | None, float]:
        assert self._turns is not None
        self.cpu.clear_stop()
        turn = self._turns.take(self.cpu, self._share)
        try:
            return await outside(asyncio.wrap_future(turn))
        except Killed:
            self.cpu.stop()
            if not turn.cancel():
                turn.result()
            raise

    async def complete(self, vcpu: Cpu, pending: Asked, reply: bytes | None) -> Exit | None:
        """Finish the access at which the CPU stopped."""
        by_kernel = isinstance(pending, MsrExit) and not pending.msr_reason
        return self.cpu.complete(reply, by_kernel=by_kernel)

    def next_element(self) -> Exit | None:
        """EMULATION_RESTART of a repeated instruction."""
        return self.cpu.next_element()

    def kick(self) -> None:
        """Stop the guest thread; a sliced guest looks for the IPI by itself, and need not wait for its turn."""
        if self._turns is not None:
            self.cpu.stop()
        elif self._turn is not None and not self._turn.done():
            self._turn.set_result(None)

    def interrupts_allowed(self) -> bool:
        """IF is set and nothing shadows it."""
        return self.cpu.interrupts_allowed

    @property
    def event_waits(self) -> bool:
        """``kvm_check_and_inject_events``: what is injected already keeps others from being."""
        return self.cpu.event_waits

    def interrupt(self, vector: int) -> None:
        """Queue an external interrupt."""
        self.cpu.interrupt(vector)

    def nmi(self) -> None:
        """Queue an NMI."""
        self.cpu.nmi()

    @property
    def instruction_pointer(self) -> int:
        """RIP of the instruction whose access is being answered."""
        return self.cpu.accessing_rip

    def ns_until(self, tsc: int) -> int:
        """How long it takes the time stamp counter to get there."""
        return self.cpu.ns_until(tsc)

    def read_memory(self, gpa: int, length: int) -> bytes | None:
        """``kvm_read_guest``."""
        return self.cpu.physical.read(gpa, length)

    def write_memory(self, gpa: int, data: bytes) -> bool:
        """``kvm_write_guest``."""
        return self.cpu.physical.write(gpa, data)

    @property
    def handles_interrupts(self) -> bool:
        """Machine code has handlers."""
        return True

    @property
    def task_priority(self) -> int | None:
        """CR8."""
        return self.cpu.task_priority

    def set_task_priority(self, priority: int) -> None:
        """CR8 follows a write to TPR."""
        self.cpu.task_priority = priority

    def reset(self) -> None:
        """INIT."""
        self.cpu.reset()

    def start_at(self, vector: int) -> None:
        """A SIPI: real mode at ``vector << 12``."""
        segment = {"selector": vector << 8, "base": vector << 12}
        self.cpu.set_special_registers({"cs": self.cpu.special_registers()["cs"] | segment})
        self.cpu.set_registers({"rip": 0})

    def window_exit(self) -> WindowExit | None:
        """The window is open when an interrupt would be taken and none waits."""
        return WindowExit() if self.cpu.interrupts_allowed and not self.cpu.has_pending_interrupt else None

    def window(self) -> tuple[bool, bool, int, int]:
        """What a VMM reads in kvm_run after every run: ready for an interrupt, IF, CR8, the APIC's base."""
        return self.cpu.window()

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

    @property
    def cpuid(self) -> Sequence[Entry]:
        """KVM_GET_CPUID2."""
        return self.cpu.cpuid

    @property
    def structures(self) -> Structures:
        """The CPU in KVM's structures."""
        return self.cpu.structures

    def set_cpuid(self, entries: Iterable[Entry]) -> None:
        """KVM_SET_CPUID2."""
        self.cpu.set_cpuid(entries)

    def enforce_pv(self, *, enforced: bool) -> None:
        """KVM_CAP_ENFORCE_PV_FEATURE_CPUID."""
        self.cpu.enforce_pv = enforced

    @property
    def counter(self) -> Tsc:
        """The time-stamp counter."""
        return self.cpu.counter

    def set_up_machine_checks(self, mcg_cap: int) -> None:
        """KVM_X86_SETUP_MCE."""
        self.cpu.set_up_machine_checks(mcg_cap)

    def machine_check(self, error: MachineCheck) -> Signal:
        """KVM_X86_SET_MCE."""
        return self.cpu.machine_check(error)

    def set_guest_debug(self, control: int, registers: Sequence[int]) -> None:
        """KVM_SET_GUEST_DEBUG."""
        self.cpu.set_guest_debug(control, registers)

    def tell_paused(self) -> bool:
        """KVM_KVMCLOCK_CTRL."""
        return self.cpu.tell_paused()

    def read_msrs(self, indices: Iterable[int]) -> list[int]:
        """KVM_GET_MSRS."""
        return self.cpu.msrs.read_all(indices)

    def write_msrs(self, entries: Iterable[tuple[int, int]]) -> int:
        """KVM_SET_MSRS."""
        self.cpu.refresh_memory()
        taken = self.cpu.msrs.write_all(entries)
        self.cpu.flush_tlb()
        return taken

    @property
    def source(self) -> object:
        """Nothing: machine code lies in guest memory."""
        return None

    def saved(self) -> dict[str, Any]:
        """The CPU as JSON; not while its thread is in guest mode."""
        return self.cpu.state()

    def load(self, saved: Mapping[str, Any], source: object, *, pending: bool) -> None:
        """Become the CPU that was saved. ``ValueError``: another engine's."""
        self.cpu.load(saved if pending else {**saved, "pending": None})

    def close(self) -> None:
        """Give the translator and the guest thread back."""
        if self._turns is not None:
            self._turns.close()
        self.cpu.close()
