"""``X86Cpu``: one x86 virtual CPU.

``run`` executes until something only KVM or userspace can do, ``complete`` finishes the access at which it stopped.
The order inside follows ``vcpu_enter_guest``: events first, then the guest, then what ended it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from kickstand.core.arch.kvm_arch import KvmArch
from kickstand.core.arch.kvmclock import KvmClock
from kickstand.core.run.exits import Exit, InterruptedExit, WindowExit
from kickstand.guests.time_source import NANOSECONDS
from kickstand.guests.x86.emulated.debugger import Debugger
from kickstand.guests.x86.emulated.emulator import Emulator
from kickstand.guests.x86.emulated.exits.pending import dump_pending, load_pending
from kickstand.guests.x86.emulated.interrupts.events import Event, Events
from kickstand.guests.x86.emulated.paravirtual import Paravirtual
from kickstand.guests.x86.memory.physical import PhysicalMemory
from kickstand.guests.x86.snapshot import FORMAT, dump_events, dump_registers, load_events, load_registers
from kickstand.guests.x86.state.debug import watches
from kickstand.guests.x86.state.faults import NMI
from kickstand.guests.x86.state.model import Model
from kickstand.guests.x86.state.registers import CpuState
from kickstand.guests.x86.translated.translator import Translator
from kickstand.guests.x86.translated.unicorn_engine import Stop
from kickstand.guests.x86.userspace import UserspaceSide

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kickstand.core.arch.kvm_arch import KvmArch
    from kickstand.guests.x86.memory.physical import GuestMemory

MODES = ("precise", "fast")
_STOP_AGAIN_S = 20e-6
_MOST_ANSWERED = 16
_MOST_STEPS = 256  # under a debugger, between two looks at others


class X86Cpu(UserspaceSide):
    """One virtual CPU. All calls come from one thread, except ``stop``.

    ``mode`` "precise": ``run`` counts instructions, so that the same calls give the same results. "fast": ``run(0)``
    does not count, and runs at the translator's full speed until an exit or ``stop``.
    """

    def __init__(
        self, memory: GuestMemory, *, mode: str = "precise", arch: KvmArch | None = None, boot: bool = True
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode is one of {MODES}")
        self.mode = mode
        self.window_requested = False
        """Set to get ``WindowExit`` as soon as interrupts are allowed (KVM_RUN with request_interrupt_window)."""
        self._memory = PhysicalMemory(memory)
        self._model = Model(arch or KvmArch(clock=KvmClock(NANOSECONDS)), boot=boot)
        self._paravirtual = Paravirtual(self._memory, self._model)
        self._translator = Translator(self._memory, self._model, counted=mode == "precise")
        self._state = CpuState()
        self._state.reset()
        self._stop_requested = False
        self._inside = False
        self._answered = False  # by the kernel, since the last run
        self._answers = 0  # in a row
        self._emulator = self._make_emulator(Events())

    def _make_emulator(self, events: Events) -> Emulator:
        translator = self._translator
        emulator = Emulator(self._state, self._memory, events, self._model, translator.flush_tlb, translator.mmu)
        emulator.msrs.written = self._paravirtual.written
        return emulator

    def _move_state(self, state: CpuState) -> None:
        """Work on the state at another place from now on."""
        old, self._state = self._emulator, state
        self._emulator = self._make_emulator(old.events)
        self._emulator.pending, self._emulator.shared = old.pending, old.shared

    # -- running ---------------------------------------------------------------------------------------------

    def run(self, budget: int) -> Exit | None:
        """Execute about ``budget`` instructions; None: no exit within them.

        0 in mode fast: no limit. An exit that ``pending`` waits for must be completed first.
        """
        if self._emulator.pending is not None:
            raise RuntimeError("the last exit is not completed")
        self._attach()
        goes_on = self.goes_on
        self._answered, self._answers = False, self._answers + 1 if goes_on else 0
        self._translator.enter(compare=not goes_on)
        limited = budget > 0 or self.mode == "precise"
        left = max(budget, 1) if limited else 0
        while True:
            if self._stop_requested:
                self._stop_requested = False
                return InterruptedExit()
            exit = self._before_guest()
            if exit is not None:
                return exit
            if self._steps:
                return self._run_stepped(min(left, _MOST_STEPS) or _MOST_STEPS)
            exit, finished = self._slice(left)
            if exit is not None or finished:
                return exit
            # How much of the slice was used is not known; halving keeps the sum below twice the budget.
            left //= 2
            if limited and left == 0:
                return None

    @property
    def goes_on(self) -> bool:
        """The kernel has answered its last exit at once: so it was not away, as far as userspace can tell.

        Now and then it counts as away all the same, and always if somebody has something to tell it.
        """
        events = self._emulator.events
        told = events.queued is not None or events.interrupt is not None or events.nmis
        return self._answered and self._answers < _MOST_ANSWERED and not told

    def _run_stepped(self, count: int) -> Exit | None:
        """With breakpoints: instruction by instruction."""
        for _ in range(count):
            if self._stop_requested:
                self._stop_requested = False
                return InterruptedExit()
            exit = self._before_guest() or self._debugger.step()
            if exit is not None:
                return exit
        return None

    @property
    def _steps(self) -> bool:
        """There are breakpoints, of a debugger or of the guest: somebody looks after every instruction."""
        return self._model.debug.steps or watches(self._state.dr[7])

    @property
    def _debugger(self) -> Debugger:
        return Debugger(self._state, self._emulator, self._model)

    def _attach(self) -> None:
        if not self._translator.attached:
            self._move_state(self._translator.attach(self._state))

    def _before_guest(self) -> Exit | None:
        """``kvm_check_and_inject_events``, and the interrupt window."""
        events, emulator = self._emulator.events, self._emulator
        exit = None
        if events.queued is not None:
            event, events.queued = events.queued, None
            exit = emulator.deliver(event)
        exit = exit or self._inject_again() or self._inject_interrupt()
        if exit is not None:
            return exit
        if (events.nmis or self.window_requested) and self._state.shadow and not self._steps:
            exit = emulator.step()
            if exit is not None:
                return exit
        exit = self._inject_nmi()
        if exit is not None:
            return exit
        if self.window_requested and self.interrupts_allowed:
            return WindowExit()
        self._translator.watch_window(events.nmi_masked or self.window_requested)
        return None

    def _inject_again(self) -> Exit | None:
        """An NMI that was on its way already when userspace saved the state."""
        events = self._emulator.events
        if not events.nmi_injected:
            return None
        events.nmi_injected, events.nmi_masked = False, True
        return self._emulator.deliver(Event(NMI))

    def _inject_nmi(self) -> Exit | None:
        events = self._emulator.events
        if not events.nmis or events.nmi_masked or self._state.shadow or self._model.debug.blocks_interrupts:
            return None
        events.nmis -= 1
        events.nmi_masked = True
        return self._emulator.deliver(Event(NMI))

    def _inject_interrupt(self) -> Exit | None:
        """Whoever queued it has looked at IF: ``interrupt.injected`` goes in at the next entry, whatever IF says."""
        events = self._emulator.events
        if events.interrupt is None:
            return None
        vector, events.interrupt = events.interrupt, None
        return self._emulator.deliver(Event(vector))

    def _slice(self, count: int) -> tuple[Exit | None, bool]:
        """Run translated code once and see to what ended it: (exit, the count is used up)."""
        start = self._state.rip
        stop = self._run_translated(count)
        if stop is not Stop.RETURNED:
            return self._trapped(stop), False
        if self._translator.stopped_before(self._state.linear_rip):
            return self._emulator.step(), False
        if self._stop_requested:
            return None, False
        if self._state.rip == start:
            # A loop whose length divides the slice, or an engine that did nothing: one step is progress for certain.
            return self._emulator.step(), count > 0
        return None, count > 0

    def _trapped(self, stop: Stop) -> Exit | None:
        if stop in (Stop.ACCESS, Stop.INVALID):  # the engine does not know all that are instructions
            return self._emulator.step()
        return self._emulator.raised(self._translator.engine.vector or 0)

    def _run_translated(self, count: int) -> Stop:
        # Order matters: ``stop`` sets its flag before it looks whether we are inside.
        self._inside = True
        try:
            return Stop.RETURNED if self._stop_requested else self._translator.run(count)
        finally:
            self._inside = False

    @property
    def pending(self) -> bool:
        """True if an exit waits for ``complete``."""
        return self._emulator.pending is not None

    def complete(self, reply: bytes | None, *, by_kernel: bool = False) -> Exit | None:
        """``complete_userspace_io``: finish the access at which the last run stopped, and nothing more.

        ``reply`` is the device data for a read; what is missing is what the shared page would hold. Returns the next
        exit of the same instruction, or None when it is finished. ``by_kernel``: userspace was not asked.
        """
        self._answered = by_kernel
        self._attach()
        self._memory.refresh()
        exit = self._emulator.complete(reply)
        return self._debugger.stepped() if exit is None and self._steps else exit

    def next_element(self) -> Exit | None:
        """A device of the kernel's took the write of the last run: the next exit of the same repeated instruction."""
        return self._emulator.next_element()

    @property
    def accessing_rip(self) -> int:
        """RIP of the instruction at whose access the last run stopped."""
        return self._emulator.rip

    def ns_until(self, tsc: int) -> int:
        """How long it takes the time stamp counter to get there; 0 if it has been there."""
        return self._model.tsc.ns_until(tsc)

    @property
    def physical(self) -> PhysicalMemory:
        """Guest memory as it is now."""
        self._memory.refresh()
        return self._memory

    def stop(self) -> None:
        """Make ``run`` return ``InterruptedExit`` between two instructions; any thread.

        Remembered until a run has answered it or ``clear_stop``. Returns when the guest is out of translated code.
        """
        self._stop_requested = True
        while self._inside and self._stop_requested:
            # A stop that arrives before the engine has begun is lost, hence the loop.
            self._translator.engine.stop()
            time.sleep(_STOP_AGAIN_S)

    def leave(self) -> None:
        """Make ``run`` return ``InterruptedExit`` soon; from inside of it."""
        self._stop_requested = True
        if self._inside:
            self._translator.engine.stop()

    def clear_stop(self) -> None:
        """Forget a stop that no run has answered."""
        self._stop_requested = False

    # -- snapshots -------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return all of the CPU as JSON-able data; ``load`` takes it back, in another process too."""
        return {
            "format": FORMAT,
            **dump_registers(self._state, self._model.apic_base),
            "model": self._model.dump(),
            **dump_events(self._emulator.events),
            "pending": dump_pending(self._emulator.pending),
            "shared": self._emulator.shared.dump(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Become the CPU that ``state`` describes, whoever wrote it.

        ``KeyError``, ``TypeError``, ``ValueError``: it describes none.
        """
        if state["format"] != FORMAT:
            raise ValueError(f"a CPU of format {state['format']!r}, and this program reads {FORMAT!r}")
        model = Model(self._model.arch)
        model.answered = self._model.answered
        if "model" in state:
            model.load(state["model"])
        registers, model.apic_base = load_registers(state, model.cpuid)
        events, pending = load_events(state), load_pending(state["pending"])
        self.close()
        self._state, self._model = registers, model
        self._paravirtual = Paravirtual(self._memory, model)
        self._translator = Translator(self._memory, model, counted=self.mode == "precise")
        self._emulator = self._make_emulator(events)
        self._emulator.pending = pending
        self._emulator.shared.load(state["shared"])

    def close(self) -> None:
        """Give the engine back; guest memory may be freed afterwards. The registers stay."""
        if self._translator.attached:
            self._move_state(self._translator.detach())
