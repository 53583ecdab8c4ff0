"""Instructions that leave the translator: port I/O, HLT, system calls, and whatever met a hole or a fault.

Every method returns the exit that userspace must see, or None if the guest can go on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.core.guest import Exit, FaultExit, HltExit, InternalErrorExit, IoExit, MmioExit, RetryExit
from app.guests.x86 import mmio
from app.guests.x86.decode import (
    FAR_RETURNS,
    HLT,
    IRET,
    SYSCALL,
    Instruction,
    decode,
    is_repeated_string,
    is_undefined,
    shape,
    without_lock,
)
from app.guests.x86.delivery import Delivery, Event
from app.guests.x86.faults import GP, UD, WITH_ERROR_CODE, DeviceAccessError, GuestFaultError
from app.guests.x86.memory import AccessStoppedError
from app.guests.x86.msrs import KNOWN as KNOWN_MSRS
from app.guests.x86.msrs import RDMSR, WRMSR
from app.guests.x86.paging import Mmu
from app.guests.x86.pending import Pending, PendingPort, PendingRead, PendingWrite
from app.guests.x86.pio import Ports
from app.guests.x86.registers import CR0_PE, RCX, RSP
from app.guests.x86.stepper import NeedRead, Step, shared_stepper
from app.guests.x86.syscalls import syscall, sysenter
from app.guests.x86.virtual import VirtualMemory

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.guests.x86.memory import PhysicalMemory
    from app.guests.x86.registers import CpuState

_RING3 = 3
_RESTART_MASK = 0x3FF  # a repeated instruction goes back to the guest after 1024 elements


@dataclass(slots=True)
class Events:
    """What waits to be delivered (``kvm_vcpu_events``)."""

    queued: Event | None = None
    interrupt: int | None = None
    nmis: int = 0
    nmi_masked: bool = False


class Emulator:
    """Executes single instructions for one CPU, with KVM's exits."""

    def __init__(self, state: CpuState, memory: PhysicalMemory, events: Events, read_msr: Callable[[int], int]) -> None:
        self._state = state
        self._virtual = VirtualMemory(memory, Mmu(memory, state), state)
        self._ports = Ports(state, self._virtual)
        self._delivery = Delivery(state, self._virtual)
        self._read_msr = read_msr
        self.events = events
        self.pending: Pending | None = None
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
        if not state.is_software_int:
            error = state.error_code if vector in WITH_ERROR_CODE else None
            return self.deliver(Event(vector, error, exception=True))
        return_rip = state.next_rip
        state.rip = return_rip - self._interrupt_length(vector, return_rip)
        return self.deliver(Event(vector, software=True, return_rip=return_rip))

    def _interrupt_length(self, vector: int, return_rip: int) -> int:
        """INT3 and INTO have one byte, INT n two."""
        short = {3: 0xCC, 4: 0xCE}.get(vector)
        if short is None:
            return 2
        return 1 if self._virtual.read_system(self._state.linear(1, return_rip - 1), 1)[0] == short else 2

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
        code = self._virtual.fetch()
        if is_undefined(code, self._state.bits):
            raise GuestFaultError(UD)
        instruction = decode(code, self._state.bits)
        if instruction is None or instruction.compares_strings:
            return self._execute(code, [])
        if instruction.opcode in (RDMSR, WRMSR):
            return self._model_specific(code)
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

    def _return_from_interrupt(self, code: bytes) -> Exit | None:
        state, before = self._state, self._state.gpr[RSP]
        real = not state.cr[0] & CR0_PE
        exit = self._execute(code, [])
        if exit is None:
            self.events.nmi_masked = False
            if real:  # the engine clears what is above ESP
                state.gpr[RSP] = before & ~0xFFFF | state.gpr[RSP] & 0xFFFF
        return exit

    def _model_specific(self, code: bytes) -> Exit | None:
        if self._state.gpr[RCX] & 0xFFFFFFFF not in KNOWN_MSRS:
            raise GuestFaultError(GP)
        return self._execute(code, [])

    def _system_call(self, instruction: Instruction) -> None:
        if instruction.opcode == SYSCALL:
            syscall(self._state, self._state.rip + instruction.length, self._read_msr)
        else:
            sysenter(self._state, self._read_msr)

    def _halt(self, instruction: Instruction) -> HltExit:
        if self._state.cpl:
            raise GuestFaultError(GP)
        self._ports.advance(instruction.length)
        return HltExit()

    def _cannot_emulate(self, gpa: int) -> Exit | None:
        """``handle_emulation_failure``: #UD, or in ring 0 an exit; KVM_RUN then tries the instruction again.

        The kernel queues #UD in ring 0 too. The one that recorded the traces drops it; hardware would deliver it.
        """
        return self.deliver(Event(UD, exception=True)) if self._state.cpl else InternalErrorExit(gpa=gpa)

    def _execute(self, code: bytes, reads: list[bytes]) -> Exit | None:
        rip = self._state.rip
        self._state.set_resume(repeating=False)
        bare = without_lock(code, self._state.bits)
        step = shared_stepper().step(self._state, self._virtual, bare, reads, self._read_first(code))
        reason = step.interruption
        if reason is None:
            self._land(step, code)
            return self._finish(step, code, rip)
        if isinstance(reason, NeedRead):
            self.pending = pending = PendingRead(rip, code, step.reads, reason.data, reason.missing)
            return mmio.read_exit(pending)
        if isinstance(reason, GuestFaultError):
            return self.deliver(Event.from_fault(reason))
        if isinstance(reason, DeviceAccessError):
            return self._cannot_emulate(reason.gpa)
        return reason.exit

    def _land(self, step: Step, code: bytes) -> None:
        """RETF outside of protected mode: Unicorn jumps before it reads CS, and back if that takes a look."""
        if step.vector is None and not self._state.protected and shape(code, self._state.bits).opcode in FAR_RETURNS:
            self._state.rip = int.from_bytes(step.reads[0], "little")

    def _read_first(self, code: bytes) -> tuple[int, int] | None:
        """CMPS: the emulator reads the source before the destination, unlike the engine."""
        instruction = decode(code, self._state.bits)
        if instruction is None or not instruction.compares_strings:
            return None
        return self._ports.source(instruction), instruction.size

    def _finish(self, step: Step, code: bytes, rip: int) -> Exit | None:
        if self._state.rip == rip and is_repeated_string(code, self._state.bits):
            self._state.set_resume(repeating=True)
        exit = self._write_exit(mmio.last_store(self._virtual.write_physical(store) for store in step.writes))
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
        data, missing = self._virtual.read_parts(address, instruction.size, user=self._state.cpl == _RING3)
        if missing:
            self.pending = pending = PendingRead(self._state.rip, code, [], data, missing)
            return mmio.read_exit(pending)
        return self._io_exit(*self._ports.begin_outs(instruction, bytes(data)))

    def _io_exit(self, exit: IoExit, pending: PendingPort) -> IoExit:
        self.pending = pending
        self.shared.after_io_exit()
        return exit

    # -- complete_userspace_io -------------------------------------------------------------------------------

    def complete(self, reply: bytes | None) -> Exit | None:
        """Finish the access at which the guest stopped; the next exit of the same instruction if there is one."""
        return self._guard(lambda: self._complete(reply))

    def _complete(self, reply: bytes | None) -> Exit | None:
        pending, self.pending = self.pending, None
        if isinstance(pending, PendingPort):
            return self._complete_port(pending, reply)
        if isinstance(pending, PendingWrite):
            return self._complete_write(pending)
        return None if pending is None else self._complete_read(pending, reply)

    def _complete_port(self, pending: PendingPort, reply: bytes | None) -> Exit | None:
        # Without an answer the guest reads zeros: emulator_pio_in_out clears the buffer first.
        length = pending.size * pending.count
        data = (reply or b"")[:length].ljust(length, b"\0")
        if not pending.string:
            self._ports.complete_register(pending, data)
            return None
        return None if pending.out else self._write_exit(mmio.in_exit_sizes(self._ports.complete_ins(pending, data)))

    def _complete_write(self, pending: PendingWrite) -> Exit | None:
        pending.pieces.pop(0)
        if not pending.pieces:
            return None
        self.pending = pending
        return self._next_write(pending)

    def _complete_read(self, pending: PendingRead, reply: bytes | None) -> Exit | None:
        data = self.shared.answer(reply, pending.missing[0].length)
        if not mmio.take_reply(pending, data):
            self.pending = pending
            return mmio.read_exit(pending)
        if pending.decoded is None:
            return self._finish_read(pending)
        given = self._registers()
        self._set_registers(pending.decoded)
        exit = self._finish_read(pending)
        if isinstance(self.pending, PendingRead):
            self.pending.decoded = pending.decoded
        else:  # the result is not written back: the emulator's copy of the registers was dropped
            given = (*given[:-1], self._state.flags)
        self._set_registers(given)
        return exit

    def registers_change(self) -> None:
        """Userspace sets registers: an instruction that waits for a read was decoded with those from before."""
        if isinstance(self.pending, PendingRead) and self.pending.decoded is None:
            self.pending.decoded = self._registers()

    def _registers(self) -> tuple[int, ...]:
        return (*self._state.gpr, self._state.flags)

    def _set_registers(self, values: tuple[int, ...]) -> None:
        *general, self._state.flags = values
        for index, value in enumerate(general):
            self._state.gpr[index] = value

    def _finish_read(self, pending: PendingRead) -> Exit | None:
        self._state.rip = pending.rip
        instruction = decode(pending.code, self._state.bits)
        if instruction is not None and instruction.is_string:
            return self._io_exit(*self._ports.begin_outs(instruction, bytes(pending.data)))
        exit = self._execute(pending.code, [*pending.reads, bytes(pending.data)])
        while exit is None and self._goes_on(pending):
            exit = self._execute(pending.code, [])
        return exit

    def _goes_on(self, pending: PendingRead) -> bool:
        """EMULATION_RESTART: the emulator does the next element of a repeated instruction itself."""
        if self._state.rip != pending.rip or self.events.queued is not None:
            return False
        repeated = is_repeated_string(pending.code, self._state.bits)
        return repeated and bool(self._state.gpr[RCX] & _RESTART_MASK)
