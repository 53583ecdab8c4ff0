"""What userspace reads and sets of one CPU: registers, CPUID and MSRs, time, what waits to be delivered."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from kickstand.core.arch.cpu import mce
from kickstand.core.errors import KvmError
from kickstand.guests.x86.emulated.interrupts.events import Event
from kickstand.guests.x86.state.debug import INJECT_BP, INJECT_DB, GuestDebug
from kickstand.guests.x86.state.faults import BP, DB, MC
from kickstand.guests.x86.state.model import APIC_MSRS, Model, Msrs
from kickstand.guests.x86.state.registers import CR4_MCE, FLAG_IF, GPR_NAMES, REGISTER_NAMES, CpuState
from kickstand.guests.x86.state.sregs import first_vector, get_sregs, interrupt_bitmap, set_sregs
from kickstand.guests.x86.structures import Structures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from kickstand.core.arch.cpu.cpuid import Entry
    from kickstand.guests.x86.emulated.emulator import Emulator
    from kickstand.guests.x86.emulated.paravirtual import Paravirtual
    from kickstand.guests.x86.memory.physical import PhysicalMemory
    from kickstand.guests.x86.state.tsc import Tsc
    from kickstand.guests.x86.translated.translator import Translator

_MASK64 = (1 << 64) - 1
_MAX_NMIS = 2


class UserspaceSide:
    """The part of a CPU that its ioctls work on; it is not running then."""

    _state: CpuState
    _model: Model
    _memory: PhysicalMemory
    _paravirtual: Paravirtual
    _translator: Translator
    _emulator: Emulator

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
        special = get_sregs(self._state, self._model.apic_base)
        return special | {"interrupt_bitmap": interrupt_bitmap(self._emulator.events.interrupt)}

    def set_special_registers(self, changes: Mapping[str, Any]) -> None:
        """KVM_SET_SREGS for the registers named; KvmError(EINVAL) for a combination no CPU can have."""
        registers = {name: value for name, value in changes.items() if name != "interrupt_bitmap"}
        set_sregs(self._state, registers, self._model)
        vector = first_vector(changes.get("interrupt_bitmap", ()))
        if vector is not None:
            self.interrupt(vector)
        self._translator.flush_tlb()

    @property
    def enforce_pv(self) -> bool:
        """Of KVM's own features only those are there that CPUID lists."""
        return self._model.enforce_pv

    @enforce_pv.setter
    def enforce_pv(self, enforced: bool) -> None:
        self._model.enforce_pv = enforced

    @property
    def counter(self) -> Tsc:
        """The time-stamp counter."""
        return self._model.tsc

    def set_up_machine_checks(self, mcg_cap: int) -> None:
        """KVM_X86_SETUP_MCE. EINVAL: as ``mce.set_up``."""
        mce.set_up(self._model.values, mcg_cap)

    def machine_check(self, error: mce.MachineCheck) -> mce.Signal:
        """KVM_X86_SET_MCE; #MC is delivered at the next entry. EINVAL: as ``mce.report``."""
        signal = mce.report(self._model.values, error, enabled=bool(self._state.cr[4] & CR4_MCE))
        if signal is mce.Signal.EXCEPTION:
            self._emulator.events.queued = Event(MC, exception=True)
        return signal

    def tell_paused(self) -> bool:
        """KVM_KVMCLOCK_CTRL; False: the guest has no clock that could say so."""
        self._paravirtual.paused = self._paravirtual.tells_time
        return self._paravirtual.paused

    def entering(self, run_delay_ns: Callable[[], int]) -> None:
        """KVM_RUN is about to enter the guest: what it reads in pages of its own is brought up to date."""
        if not self._model.has_pages:
            return
        self._memory.refresh()
        self._paravirtual.entering(run_delay_ns)

    def set_cpuid(self, entries: Iterable[Entry]) -> None:
        """KVM_SET_CPUID2. E2BIG, EINVAL: as ``cpuid.check_entries``."""
        self._model.set_cpuid(list(entries))
        self._translator.flush_tlb()

    @property
    def structures(self) -> Structures:
        """The CPU in KVM's structures; whoever sets one has a CPU that is not running."""
        return Structures(self._state, self._emulator.events, self._emulator.virtual)

    @property
    def cpuid(self) -> list[Entry]:
        """KVM_GET_CPUID2."""
        return self._model.cpuid.entries

    @property
    def msrs(self) -> Msrs:
        """The model-specific registers. After a write ``flush_tlb``: one of them may be EFER."""
        return self._emulator.msrs

    def refresh_memory(self) -> None:
        """Userspace is about to do something that reads or writes guest memory."""
        self._memory.refresh()

    def flush_tlb(self) -> None:
        """Translate every page again."""
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
        return self.if_flag and not self._state.shadow and not self._model.debug.blocks_interrupts

    @property
    def event_waits(self) -> bool:
        """True if an interrupt or an exception waits to be delivered."""
        return self._emulator.events.interrupt is not None or self._emulator.events.queued is not None

    @property
    def has_pending_interrupt(self) -> bool:
        """True if an interrupt or NMI waits to be delivered."""
        return self._emulator.events.interrupt is not None or self._emulator.events.nmis > 0

    @property
    def task_priority(self) -> int:
        """CR8."""
        return self._state.cr8

    @task_priority.setter
    def task_priority(self, priority: int) -> None:
        self._state.cr8 = priority

    def answer_apic_msrs(self) -> None:
        """From now on an access to an MSR of the local APIC stops with ``MsrExit``."""
        self._model.answered = APIC_MSRS

    def reset(self) -> None:
        """``kvm_vcpu_reset`` on INIT: registers as after power-on, but MSRs and FPU stay; nothing waits any more."""
        fresh = CpuState()
        fresh.reset()
        values = dict(zip(GPR_NAMES, fresh.gpr, strict=True))
        self._emulator.pending = None
        self.set_special_registers(get_sregs(fresh, self._model.apic_base))
        self.set_registers(values | {"rip": fresh.rip, "rflags": fresh.flags})
        self._emulator.events.forget()

    def window(self) -> tuple[bool, bool, int, int]:
        """What ``post_kvm_run_save`` tells: ready for an interrupt, IF, CR8, the APIC's base."""
        ready = self.interrupts_allowed and not self.has_pending_interrupt
        return ready, self.if_flag, self._state.cr8, self._model.apic_base

    # -- a debugger ------------------------------------------------------------------------------------------

    def set_guest_debug(self, control: int, registers: Sequence[int]) -> None:
        """KVM_SET_GUEST_DEBUG. EBUSY: an exception is to be injected, and one waits already."""
        events = self._emulator.events
        if control & (INJECT_DB | INJECT_BP):
            if events.queued is not None:
                raise KvmError(errno.EBUSY, "KVM_SET_GUEST_DEBUG", "an exception waits already", field="control")
            events.queued = Event(DB if control & INJECT_DB else BP, exception=True)
        self._model.debug = GuestDebug.of(control, registers)
