"""``X86Cpu``: one x86 virtual CPU.

``run`` executes until something only KVM or userspace can do, ``complete`` finishes the access at which it stopped.
The order inside follows ``vcpu_enter_guest``: events first, then the guest, then what ended it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from app.core.guest import Exit, InterruptedExit, WindowExit
from app.guests.x86.delivery import Event
from app.guests.x86.emulator import Emulator, Events
from app.guests.x86.engine import Stop
from app.guests.x86.faults import NMI, UD
from app.guests.x86.memory import PhysicalMemory
from app.guests.x86.pending import dump_pending, load_pending
from app.guests.x86.registers import FLAG_IF, GPR_NAMES, REGISTER_NAMES, CpuState
from app.guests.x86.saved import FORMAT, dump_events, dump_registers, load_events, load_registers
from app.guests.x86.sregs import get_sregs, set_sregs
from app.guests.x86.translator import Translator

if TYPE_CHECKING:
    from collections.abc import Mapping

    from app.guests.x86.memory import GuestMemory

MODES = ("precise", "fast")
_STOP_AGAIN_S = 20e-6
_APIC_BASE = 0xFEE00900  # enabled, boot CPU
_MASK64 = (1 << 64) - 1
_MAX_NMIS = 2
_VECTORS = 256


class X86Cpu:
    """One virtual CPU. All calls come from one thread, except ``stop``.

    ``mode`` "precise": ``run`` counts instructions, so that the same calls give the same results. "fast": ``run(0)``
    does not count, and runs at the translator's full speed until an exit or ``stop``.
    """

    def __init__(self, memory: GuestMemory, *, mode: str = "precise") -> None:
        if mode not in MODES:
            raise ValueError(f"mode is one of {MODES}")
        self.mode = mode
        self.window_requested = False
        """Set to get ``WindowExit`` as soon as interrupts are allowed (KVM_RUN with request_interrupt_window)."""
        self._memory = PhysicalMemory(memory)
        self._translator = Translator(self._memory, counted=mode == "precise")
        self._state = CpuState()
        self._state.reset()
        self._apic_base = _APIC_BASE
        self._stop_requested = False
        self._inside = False
        self._emulator = self._make_emulator(Events())

    def _make_emulator(self, events: Events) -> Emulator:
        return Emulator(self._state, self._memory, events, self._read_msr)

    def _read_msr(self, index: int) -> int:
        return self._translator.engine.read_msr(index)

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
        self._translator.enter()
        limited = budget > 0 or self.mode == "precise"
        left = max(budget, 1) if limited else 0
        while True:
            if self._stop_requested:
                self._stop_requested = False
                return InterruptedExit()
            exit = self._before_guest()
            if exit is not None:
                return exit
            exit, finished = self._slice(left)
            if exit is not None or finished:
                return exit
            # How much of the slice was used is not known; halving keeps the sum below twice the budget.
            left //= 2
            if limited and left == 0:
                return None

    def _attach(self) -> None:
        if not self._translator.attached:
            self._move_state(self._translator.attach(self._state))

    def _before_guest(self) -> Exit | None:
        """``kvm_check_and_inject_events``, and the interrupt window."""
        events, emulator = self._emulator.events, self._emulator
        if events.queued is not None:
            event, events.queued = events.queued, None
            exit = emulator.deliver(event)
            if exit is not None:
                return exit
        exit = self._inject_interrupt()
        if exit is not None:
            return exit
        if (events.nmis or self.window_requested) and self._state.shadow:
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

    def _inject_nmi(self) -> Exit | None:
        events = self._emulator.events
        if not events.nmis or events.nmi_masked or self._state.shadow:
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
        if stop is Stop.ACCESS:
            return self._emulator.step()
        if stop is Stop.INVALID:
            return self._emulator.deliver(Event(UD, exception=True))
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

    def complete(self, reply: bytes | None) -> Exit | None:
        """``complete_userspace_io``: finish the access at which the last run stopped, and nothing more.

        ``reply`` is the device data for a read; what is missing is what the shared page would hold. Returns the next
        exit of the same instruction, or None when it is finished.
        """
        self._attach()
        self._memory.refresh()
        return self._emulator.complete(reply)

    def stop(self) -> None:
        """Make ``run`` return ``InterruptedExit`` between two instructions; any thread.

        Remembered until a run has answered it or ``clear_stop``. Returns when the guest is out of translated code.
        """
        self._stop_requested = True
        while self._inside and self._stop_requested:
            # A stop that arrives before the engine has begun is lost, hence the loop.
            self._translator.engine.stop()
            time.sleep(_STOP_AGAIN_S)

    def clear_stop(self) -> None:
        """Forget a stop that no run has answered."""
        self._stop_requested = False

    # -- registers -------------------------------------------------------------------------------------------

    def registers(self) -> dict[str, int]:
        """KVM_GET_REGS."""
        values = dict(zip(GPR_NAMES, self._state.gpr, strict=True))
        return values | {"rip": self._state.rip, "rflags": self._state.flags}

    def set_registers(self, regs: Mapping[str, int]) -> None:
        """KVM_SET_REGS for the registers named; a queued exception is dropped."""
        unknown = set(regs) - REGISTER_NAMES
        if unknown:
            raise ValueError(f"no register is called {min(unknown)}")
        self._emulator.registers_change()
        state = self._state
        for index, name in enumerate(GPR_NAMES):
            if name in regs:
                state.gpr[index] = regs[name] & _MASK64
        state.rip = regs.get("rip", state.rip) & _MASK64
        if "rflags" in regs:
            state.flags = regs["rflags"]
            state.update_hidden_flags()
        events = self._emulator.events
        if events.queued is not None and events.queued.exception:
            events.queued = None

    def special_registers(self) -> dict[str, Any]:
        """KVM_GET_SREGS; the bitmap has the interrupt that waits."""
        waiting = self._emulator.events.interrupt
        bitmap = 0 if waiting is None else 1 << waiting
        words = [bitmap >> shift & _MASK64 for shift in range(0, _VECTORS, 64)]
        return get_sregs(self._state, self._apic_base) | {"interrupt_bitmap": words}

    def set_special_registers(self, changes: Mapping[str, Any]) -> None:
        """KVM_SET_SREGS for the registers named; KvmError(EINVAL) for a combination no CPU can have."""
        registers = {name: value for name, value in changes.items() if name != "interrupt_bitmap"}
        set_sregs(self._state, registers)
        self._apic_base = changes.get("apic_base", self._apic_base)
        bitmap = sum(word << 64 * index for index, word in enumerate(changes.get("interrupt_bitmap", ())))
        if bitmap:
            self.interrupt((bitmap & -bitmap).bit_length() - 1)  # ``find_first_bit``
        self._translator.flush_tlb()

    # -- events ----------------------------------------------------------------------------------------------

    def interrupt(self, vector: int) -> None:
        """``kvm_queue_interrupt``: delivered at the next entry; replaces one that still waits."""
        self._emulator.events.interrupt = vector

    def nmi(self) -> None:
        """``kvm_inject_nmi``: at most one waits behind the one in progress."""
        self._emulator.events.nmis = min(self._emulator.events.nmis + 1, _MAX_NMIS)

    @property
    def if_flag(self) -> bool:
        """RFLAGS.IF."""
        return bool(self._state.eflags & FLAG_IF)

    @property
    def interrupts_allowed(self) -> bool:
        """``kvm_x86_interrupt_allowed``: IF is set, and STI or a load of SS is not the last instruction."""
        return self.if_flag and not self._state.shadow

    @property
    def has_pending_interrupt(self) -> bool:
        """True if an interrupt or NMI waits to be delivered."""
        return self._emulator.events.interrupt is not None or self._emulator.events.nmis > 0

    def wake(self) -> None:
        """Nothing to do: HLT leaves RIP behind the instruction, and sleeping is the core's business."""

    # -- snapshots -------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return all of the CPU as JSON-able data; ``load`` takes it back, in another process too."""
        return {
            "format": FORMAT,
            **dump_registers(self._state, self._apic_base),
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
        registers, apic_base = load_registers(state)
        events, pending = load_events(state), load_pending(state["pending"])
        self.close()
        self._state, self._apic_base = registers, apic_base
        self._emulator = self._make_emulator(events)
        self._emulator.pending = pending
        self._emulator.shared.load(state["shared"])

    def close(self) -> None:
        """Give the engine back; guest memory may be freed afterwards. The registers stay."""
        if self._translator.attached:
            self._move_state(self._translator.detach())
