"""What stopped for userspace is finished here: accesses, and what is left of the instruction that made them.

Every method returns the exit that userspace must see, or None if the guest can go on.
"""

from __future__ import annotations

from kickstand.core.run.exits import Exit
from kickstand.guests.x86.emulated.decoding.decode import decode
from kickstand.guests.x86.emulated.execution import Execution
from kickstand.guests.x86.emulated.exits import mmio
from kickstand.guests.x86.emulated.exits.pending import (
    PendingHypercall,
    PendingMsr,
    PendingPort,
    PendingRead,
    PendingWrite,
)


class Emulator(Execution):
    """Executes single instructions, and completes what userspace was asked to do (``complete_userspace_io``)."""

    def complete(self, reply: bytes | None) -> Exit | None:
        """Finish the access at which the guest stopped; the next exit of the same instruction if there is one."""
        return self._guard(lambda: self._complete(reply))

    def _complete(self, reply: bytes | None) -> Exit | None:
        pending, self.pending = self.pending, None
        if isinstance(pending, PendingPort):
            return self._complete_port(pending, reply)
        if isinstance(pending, PendingMsr):
            exit, self.pending = self._msr_access.complete(pending, reply or bytes(9)) or (None, None)
            return exit
        if isinstance(pending, PendingHypercall):
            self._ports.advance(self._privileged.answered(pending, int.from_bytes(reply or bytes(8), "little")))
            return None
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
        while exit is None and self._goes_on():
            exit = self._execute(pending.code, [])
        return exit

    def _goes_on(self) -> bool:
        return self.events.queued is None and self._repeated.goes_on(self.rip, self._code)

    def next_element(self) -> Exit | None:
        """The kernel has taken a write: the emulator does the next element of a repeated instruction, if it was one."""
        if self.pending is not None or self._model.debug.steps or not self._goes_on():
            return None
        piece = self._repeated.next_store(self._code, *self._stored)
        return self.step() if piece is None else self._write_exit([piece])
