"""Instructions about the CPU itself: control and debug registers, MSRs, CPUID, the counter, hypercalls.

KVM intercepts them, so they are done here and checked as it checks them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kickstand.core.arch.cpu.cpuid import Feature
from kickstand.core.arch.cpu.msrs import MASK64, Msr
from kickstand.core.arch.kvm_arch import HC_MAP_GPA_RANGE
from kickstand.core.run.exits import Exit, HypercallExit, TprExit
from kickstand.core.uapi import PAGE_SIZE, Quirk
from kickstand.guests.x86.emulated.exits.pending import Pending, PendingHypercall
from kickstand.guests.x86.state.faults import GP, UD, GuestFaultError
from kickstand.guests.x86.state.registers import CR0_PE, FLAG_VM, RAX, RBX, RCX, RDX

if TYPE_CHECKING:
    from kickstand.guests.x86.emulated.decoding.decode import Shape
    from kickstand.guests.x86.emulated.exits.msr_access import MsrAccess
    from kickstand.guests.x86.emulated.instructions.control_registers import ControlRegisters
    from kickstand.guests.x86.memory.virtual import VirtualMemory
    from kickstand.guests.x86.state.model import Model, Msrs
    from kickstand.guests.x86.state.registers import CpuState

MOV_FROM_CR, MOV_FROM_DR, MOV_TO_CR, MOV_TO_DR = 0x0F20, 0x0F21, 0x0F22, 0x0F23
WRMSR, RDTSC, RDMSR, RDPMC, CPUID, GROUP7 = 0x0F30, 0x0F31, 0x0F32, 0x0F33, 0x0FA2, 0x0F01
INT1 = 0xF1
VMCALL, MONITOR, MWAIT, VMMCALL, RDTSCP = 0xC1, 0xC8, 0xC9, 0xD9, 0xF9  # the byte behind 0F 01
_CR4_TSD = 1 << 2
_MASK32 = 0xFFFFFFFF
_KVM_ENOSYS, _KVM_EPERM, _KVM_EINVAL = 1000, 1, 22
_CR8 = 8
_HC_VAPIC_POLL_IRQ, _HC_SCHED_YIELD = 1, 11  # that the guest was left is all there is to do
FIX_HYPERCALL_INSN = Quirk.FIX_HYPERCALL_INSN
_REX = range(0x40, 0x50)
Asks = tuple[Exit, Pending | None]
Perform = Callable[["Shape"], Asks | None]


class Privileged:
    """These instructions of one CPU: each method changes the registers, or raises the guest's fault.

    What it returns is an exit, and what then waits for an answer; RIP has not moved.
    """

    def __init__(
        self,
        state: CpuState,
        virtual: VirtualMemory,
        control: ControlRegisters,
        msrs: Msrs,
        msr_access: MsrAccess,
        model: Model,
    ) -> None:
        self._state = state
        self._virtual = virtual
        self._control = control
        self._msrs = msrs
        self._msr_access = msr_access
        self._model = model
        self._by_opcode: dict[int, Perform] = {
            MOV_FROM_CR: self._from_control,
            MOV_TO_CR: self._to_control,
            MOV_FROM_DR: self._from_debug,
            MOV_TO_DR: self._to_debug,
            RDMSR: self._read_msr,
            WRMSR: self._write_msr,
            RDPMC: self._read_counter,
            RDTSC: self._read_time,
            CPUID: self._identify,
        }
        self._by_operand: dict[int, Perform] = {
            VMCALL: self._other_hypercall,
            VMMCALL: self._hypercall,
            MONITOR: self._idle,
            MWAIT: self._idle,
            RDTSCP: self._read_time_and_aux,
        }

    def find(self, seen: Shape) -> Perform | None:
        """What performs this instruction; None if it is none of them."""
        if seen.opcode == GROUP7:
            return self._by_operand.get(seen.modrm)
        return self._by_opcode.get(seen.opcode)

    @staticmethod
    def length(seen: Shape) -> int:
        """How many bytes it has."""
        has_operand = seen.opcode in (MOV_FROM_CR, MOV_TO_CR, MOV_FROM_DR, MOV_TO_DR, GROUP7)
        return len(seen.prefixes) + 2 + has_operand

    def _require_ring0(self) -> None:
        if self._state.cpl:
            raise GuestFaultError(GP)

    def _operands(self, seen: Shape) -> tuple[int, int]:
        """The numbers of the control or debug register and of the general one."""
        rex = seen.prefixes[-1] if seen.prefixes and seen.bits == 64 and seen.prefixes[-1] in _REX else 0  # noqa: PLR2004
        return seen.modrm >> 3 & 7 | (rex & 4) << 1, seen.modrm & 7 | (rex & 1) << 3

    def _take(self, number: int) -> int:
        value = int(self._state.gpr[number])
        return value if self._state.bits == 64 else value & _MASK32  # noqa: PLR2004 - 64-bit code

    def _give(self, number: int, value: int) -> None:
        self._state.gpr[number] = value if self._state.bits == 64 else value & _MASK32  # noqa: PLR2004

    def _from_control(self, seen: Shape) -> None:
        self._require_ring0()
        special, general = self._operands(seen)
        self._give(general, self._control.read(special))

    def _to_control(self, seen: Shape) -> Asks | None:
        self._require_ring0()
        special, general = self._operands(seen)
        before = self._state.cr8
        self._control.write(special, self._take(general))
        lowered = special == _CR8 and self._state.cr8 < before
        return (TprExit(), None) if lowered else None

    def _from_debug(self, seen: Shape) -> None:
        self._require_ring0()
        special, general = self._operands(seen)
        self._give(general, self._control.read_debug(special))

    def _to_debug(self, seen: Shape) -> None:
        self._require_ring0()
        special, general = self._operands(seen)
        self._control.write_debug(special, self._take(general))

    def _read_msr(self, seen: Shape) -> Asks | None:
        return self._msr_access.begin(self.length(seen), write=False)

    def _write_msr(self, seen: Shape) -> Asks | None:
        return self._msr_access.begin(self.length(seen), write=True)

    def _give_pair(self, value: int) -> None:
        self._state.gpr[RAX], self._state.gpr[RDX] = value & _MASK32, value >> 32

    def _read_counter(self, _seen: Shape) -> None:
        """RDPMC: there are no performance counters."""
        raise GuestFaultError(GP)

    def _read_time(self, _seen: Shape) -> None:
        state = self._state
        if state.cr[4] & _CR4_TSD and state.cpl:
            raise GuestFaultError(GP)
        self._give_pair(self._model.tsc.now)

    def _read_time_and_aux(self, seen: Shape) -> None:
        if not self._model.cpuid.has(Feature.RDTSCP):
            raise GuestFaultError(UD)
        self._read_time(seen)
        self._state.gpr[RCX] = self._msrs.read(Msr.TSC_AUX) & _MASK32

    def _identify(self, _seen: Shape) -> None:
        gpr = self._state.gpr
        answer = self._model.cpuid.answer(gpr[RAX] & _MASK32, gpr[RCX] & _MASK32)
        for register, value in zip((RAX, RBX, RCX, RDX), answer, strict=True):
            gpr[register] = value

    def _idle(self, _seen: Shape) -> None:
        """MONITOR and MWAIT do nothing (``kvm_emulate_as_nop``, by a quirk also where CPUID has them not)."""
        known = self._model.arch.has_quirk(Quirk.MWAIT_NEVER_UD_FAULTS) or self._model.cpuid.has(Feature.MWAIT)
        if self._state.cpl or not known:
            raise GuestFaultError(UD)

    def _other_hypercall(self, seen: Shape) -> Asks | None:
        """VMCALL on a CPU of AMD's: a quirk makes a VMMCALL of it (``emulator_fix_hypercall``), which is then executed.

        Without protection there is none.
        """
        state = self._state
        if not state.cr[0] & CR0_PE or state.eflags & FLAG_VM or not self._model.arch.has_quirk(FIX_HYPERCALL_INSN):
            raise GuestFaultError(UD)
        self._require_ring0()
        self._virtual.write_system(state.linear_rip + len(seen.prefixes), bytes((0x0F, 0x01, VMMCALL)))
        return self._hypercall(seen)

    def _hypercall(self, seen: Shape) -> Asks | None:
        """``kvm_emulate_hypercall``; without protection there is no VMMCALL."""
        state = self._state
        if not state.cr[0] & CR0_PE or state.eflags & FLAG_VM:
            raise GuestFaultError(UD)
        number = self._take(RAX)
        if number == HC_MAP_GPA_RANGE and not state.cpl and self._model.arch.hypercall_exits >> number & 1:
            return self._map_gpa_range(self.length(seen))
        result = 0 if self._is_hint(number) else -_KVM_ENOSYS
        self._give(RAX, (-_KVM_EPERM if state.cpl else result) & MASK64)
        return None

    def _is_hint(self, number: int) -> bool:
        model = self._model
        yields = number == _HC_SCHED_YIELD and (not model.enforce_pv or model.cpuid.has(Feature.KVM_PV_SCHED_YIELD))
        return yields or number == _HC_VAPIC_POLL_IRQ

    def _map_gpa_range(self, length: int) -> Asks | None:
        """A range whose state is to change; userspace does it."""
        gpa, pages, attributes = self._take(RBX), self._take(RCX), self._take(RDX)
        if gpa % PAGE_SIZE or not pages or gpa // PAGE_SIZE + pages > MASK64:
            self._give(RAX, -_KVM_EINVAL & MASK64)
            return None
        args = (gpa, pages, attributes, 0, 0, 0)
        return HypercallExit(HC_MAP_GPA_RANGE, args, self._state.bits == 64), PendingHypercall(length)  # noqa: PLR2004

    def answered(self, pending: PendingHypercall, result: int) -> int:
        """Finish a hypercall that userspace has performed; how many bytes the instruction has."""
        self._give(RAX, result)
        return pending.length
