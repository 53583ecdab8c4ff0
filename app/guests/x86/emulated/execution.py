"""Instructions that leave the translator: port I/O, HLT, system calls, and whatever met a hole or a fault.

Every method returns the exit that userspace must see, or None if the guest can go on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kickstand.core.run.exits import DebugExit, Exit, FaultExit, HltExit, InternalErrorExit, IoExit, MmioExit, RetryExit
from kickstand.guests.x86.emulated.decoding.decode import (
    HLT,
    IRET,
    SYSCALL,
    Instruction,
    Shape,
    as_load,
    as_test,
    decode,
    is_repeated_string,
    is_undefined,
    shape,
    without_lock,
)
from kickstand.guests.x86.emulated.exits import mmio
from kickstand.guests.x86.emulated.exits.failure import emulation_failure
from kickstand.guests.x86.emulated.exits.msr_access import MsrAccess
from kickstand.guests.x86.emulated.exits.pending import (
    Pending,
    PendingPort,
    PendingRead,
    PendingWrite,
)
from kickstand.guests.x86.emulated.exits.pio import Ports
from kickstand.guests.x86.emulated.instructions.control_registers import ControlRegisters
from kickstand.guests.x86.emulated.instructions.corrections import (
    after_far_return,
    after_iret,
    after_load,
    interrupt_length,
)
from kickstand.guests.x86.emulated.instructions.exchange import OPCODE as EXCHANGE
from kickstand.guests.x86.emulated.instructions.exchange import Exchange
from kickstand.guests.x86.emulated.instructions.privileged import INT1, Perform, Privileged
from kickstand.guests.x86.emulated.instructions.repeated import Repeated
from kickstand.guests.x86.emulated.instructions.stepper import NeedRead, Step, shared_stepper
from kickstand.guests.x86.emulated.instructions.syscalls import syscall, sysenter
from kickstand.guests.x86.emulated.interrupts.delivery import Delivery
from kickstand.guests.x86.emulated.interrupts.events import Event, Events
from kickstand.guests.x86.memory.paging import Mmu
from kickstand.guests.x86.memory.physical import AccessStoppedError
from kickstand.guests.x86.memory.virtual import VirtualMemory
from kickstand.guests.x86.state.debug import DR6_FIXED, watches
from kickstand.guests.x86.state.faults import BP, DB, GP, UD, WITH_ERROR_CODE, DeviceAccessError, GuestFaultError
from kickstand.guests.x86.state.model import Model, Msrs
from kickstand.guests.x86.state.registers import RSP, CpuState

if TYPE_CHECKING:
    from collections.abc import Callable

    from kickstand.guests.x86.memory.physical import PhysicalMemory

_RING3 = 3


class Execution:
    """Executes single instructions for one CPU, with KVM's exits."""

    def __init__(
        self,
        state: CpuState,
        memory: PhysicalMemory,
        events: Events,
        model: Model,
        changed: Callable[[], None],
        mmu: Mmu | None = None,
    ) -> None:
        self._state = state
        self.virtual = VirtualMemory(memory, mmu or Mmu(memory, state, model), state)
        self._ports = Ports(state, self.virtual)
        self._repeated = Repeated(state, self._ports)
        self._delivery = Delivery(state, self.virtual)
        self.msrs = Msrs(state, model)
        self._exchange = Exchange(state, self.virtual)
        control = ControlRegisters(state, memory, model, changed)
        self._msr_access = MsrAccess(state, self._ports, self.msrs, model, changed)
        self._privileged = Privileged(state, self.virtual, control, self.msrs, self._msr_access, model)
        self._arch = model.arch
        self._model = model
        self.accesses: list[tuple[int, int, bool]] = []
        """What instructions have read and written, in linear addresses, since somebody emptied it."""
        self.events = events
        self.pending: Pending | None = None
        self.rip = 0  # of the instruction that was begun last
        self._code = b""
        self._stored = 0, 0  # where its last write to a device went, and how long it was
        self.shared = mmio.SharedData()

    # -- events ----------------------------------------------------------------------------------------------

    def deliver(self, event: Event) -> Exit | None:
        """Deliver now; an event that host memory keeps from being delivered stays queued."""
        exit = self._delivery.deliver(event)
        if isinstance(exit, FaultExit | RetryExit):
            self.events.queued = event
        return exit

    def raised(self, vector: int) -> Exit | None:
        """Deliver what the engine reported: an exception, or a software interrupt."""
        state = self._state
        if vector == DB and self._model.debug.takes_debug_exceptions:
            return self._debug_exit(DB, state.dr[6])
        if not state.is_software_int:
            error = state.error_code if vector in WITH_ERROR_CODE else None
            return self.deliver(Event(vector, error, exception=True))
        return_rip = state.next_rip
        length = interrupt_length(state, self.virtual, vector)
        state.rip = return_rip - length
        if vector == BP and length == 1 and self._model.debug.takes_breakpoints:
            return self._debug_exit(BP, 0)
        return self.deliver(Event(vector, software=True, return_rip=return_rip))

    def _debug_exit(self, vector: int, dr6: int) -> DebugExit:
        state, debug = self._state, self._model.debug
        return DebugExit(vector, state.linear_rip, DR6_FIXED | dr6, debug.breakpoints(state.dr).dr7)

    # -- one instruction -------------------------------------------------------------------------------------

    def _guard(self, work: Callable[[], Exit | None]) -> Exit | None:
        """Turn what can happen to an access into what the guest or userspace gets."""
        try:
            return work()
        except GuestFaultError as fault:
            return self.deliver(Event.from_fault(fault))
        except AccessStoppedError as stopped:
            return stopped.exit
        except DeviceAccessError as hole:
            return self._cannot_emulate(hole.gpa)

    def step(self) -> Exit | None:
        """Execute the instruction at RIP, whatever it is, with every access checked."""
        return self._guard(self._dispatch)

    def _dispatch(self) -> Exit | None:
        code = self.virtual.fetch()
        if is_undefined(code, self._state.bits):
            raise GuestFaultError(UD)
        seen = shape(code, self._state.bits)
        privileged = self._privileged.find(seen)
        if privileged is not None and len(code) >= self._privileged.length(seen):
            return self._perform(privileged, seen)
        if seen.opcode == INT1:
            return self.deliver(Event(DB, exception=True, return_rip=self._state.rip + len(seen.prefixes) + 1))
        if seen.opcode == EXCHANGE and not self._watched and (length := self._exchange.perform(code)):
            self._ports.advance(length)
            return None
        instruction = decode(code, self._state.bits)
        if instruction is None or instruction.compares_strings:
            checked = seen.loads_table or seen.loads_stack
            return self._load_checked(code, seen) if checked else self._execute(code, [])
        if instruction.is_string:
            return self._string_io(instruction, code)
        if instruction.is_port:
            return self._io_exit(*self._ports.register_io(instruction))
        if instruction.opcode == HLT:
            return self._halt(instruction)
        if instruction.opcode == IRET:
            return self._return_from_interrupt(code)
        self._system_call(instruction)
        return None

    def _perform(self, privileged: Perform, seen: Shape) -> Exit | None:
        exit, self.pending = privileged(seen) or (None, None)
        if self.pending is None:
            self._ports.advance(self._privileged.length(seen))
        return exit

    def _return_from_interrupt(self, code: bytes) -> Exit | None:
        rsp = self._state.gpr[RSP]
        exit = self._execute(code, [])
        if exit is None:
            self.events.nmi_masked = False
            after_iret(self._state, rsp)
        return exit

    def _load_checked(self, code: bytes, seen: Shape) -> Exit | None:
        before = CpuState.from_buffer_copy(self._state)
        exit = self._execute(code, [])
        after_load(self._state, before, seen)
        return exit

    def _system_call(self, instruction: Instruction) -> None:
        if instruction.opcode == SYSCALL:
            syscall(self._state, self._state.rip + instruction.length, self.msrs.read)
        else:
            sysenter(self._state, self.msrs.read)

    def _halt(self, instruction: Instruction) -> HltExit:
        if self._state.cpl:
            raise GuestFaultError(GP)
        self._ports.advance(instruction.length)
        return HltExit()

    def _cannot_emulate(self, gpa: int) -> Exit | None:
        """``handle_emulation_failure``: #UD, or in ring 0 an exit; KVM_RUN then tries the instruction again.

        The kernel queues #UD in ring 0 too. The one that recorded the traces drops it; hardware would deliver it.
        """
        if self._state.cpl and not self._arch.exit_on_emulation_failure:
            return self.deliver(Event(UD, exception=True))
        return InternalErrorExit(data=emulation_failure(self.virtual), gpa=gpa)

    @property
    def _watched(self) -> bool:
        """Somebody wants to know of each access."""
        return self._model.debug.steps or watches(self._state.dr[7])

    def _execute(self, code: bytes, reads: list[bytes]) -> Exit | None:
        rip = self.rip = self._state.rip
        self._code = code
        self._state.set_resume(repeating=False)
        flush = as_load(code, self._state.bits)
        kept = list(self._state.gpr) if flush else None
        bare = flush or as_test(code, self._state.bits) or without_lock(code, self._state.bits)
        step = shared_stepper().step(self._state, self.virtual, bare, reads, self._read_first(code))
        reason = step.interruption
        if self._watched:
            self.accesses += step.accesses
        if reason is None:
            if kept:
                self._state.gpr[:] = kept
            after_far_return(self._state, step, code)
            return self._finish(step, code, rip)
        if isinstance(reason, NeedRead):
            self.pending = pending = PendingRead(rip, code, step.reads, reason.data, reason.missing)
            return mmio.read_exit(pending)
        if isinstance(reason, GuestFaultError):
            return self.deliver(Event.from_fault(reason))
        if isinstance(reason, DeviceAccessError):
            return self._cannot_emulate(reason.gpa)
        return reason.exit

    def _read_first(self, code: bytes) -> tuple[int, int] | None:
        """CMPS: the emulator reads the source before the destination, unlike the engine."""
        instruction = decode(code, self._state.bits)
        if instruction is None or not instruction.compares_strings:
            return None
        return self._ports.source(instruction), instruction.size

    def _finish(self, step: Step, code: bytes, rip: int) -> Exit | None:
        if self._state.rip == rip and is_repeated_string(code, self._state.bits):
            self._state.set_resume(repeating=True)
        exit = self._write_exit(mmio.last_store(self.virtual.write_physical(store) for store in step.writes))
        if exit is not None:
            return exit
        if step.invalid:
            return self.deliver(Event(UD, exception=True))
        return None if step.vector is None else self.raised(step.vector)

    def _write_exit(self, pieces: list[tuple[int, bytes]]) -> MmioExit | None:
        if not pieces:
            return None
        self.pending = pending = PendingWrite(pieces)
        return self._next_write(pending)

    def _next_write(self, pending: PendingWrite) -> MmioExit:
        exit = mmio.write_exit(pending)
        self._stored = exit.phys_addr, exit.len
        self.shared.put(exit.data)
        return exit

    # -- port strings ----------------------------------------------------------------------------------------

    def _string_io(self, instruction: Instruction, code: bytes) -> Exit | None:
        if self._ports.remaining(instruction) == 0:
            self._ports.advance(instruction.length)
            return None
        if not instruction.is_out:
            return self._io_exit(*self._ports.begin_ins(instruction))
        self._ports.port(instruction)
        address = self._ports.source(instruction)
        data, missing = self.virtual.read_parts(address, instruction.size, user=self._state.cpl == _RING3)
        if missing:
            self.pending = pending = PendingRead(self._state.rip, code, [], data, missing)
            return mmio.read_exit(pending)
        return self._io_exit(*self._ports.begin_outs(instruction, bytes(data)))

    def _io_exit(self, exit: IoExit, pending: PendingPort) -> IoExit:
        self.pending = pending
        self.shared.after_io_exit()
        return exit
