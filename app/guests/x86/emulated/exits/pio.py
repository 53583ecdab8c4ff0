"""Port I/O: IN, OUT, INS and OUTS with the exits of KVM.

``OUT`` and ``IN`` move RIP on completion (``complete_fast_pio_out``, ``complete_fast_pio_in``). ``OUTS`` exits per
element with its registers already written; ``INS`` reads ahead (``pio_in_emulated``) as many elements as fit in 1024
bytes, but no more than there are bytes left in the page of RDI, and writes them to memory on completion.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kickstand.core.run.exits import IoExit
from kickstand.guests.x86.emulated.exits.pending import READ_AHEAD, PendingPort
from kickstand.guests.x86.memory.physical import PAGE
from kickstand.guests.x86.state.faults import GP, GuestFaultError
from kickstand.guests.x86.state.registers import FLAG_IOPL, FLAG_VM, RAX, RCX, RDI, RDX, RSI
from kickstand.guests.x86.state.segments import ES

if TYPE_CHECKING:
    from kickstand.guests.x86.emulated.decoding.decode import Instruction
    from kickstand.guests.x86.memory.virtual import VirtualMemory
    from kickstand.guests.x86.state.registers import CpuState

_WIDTH = 4  # a port register is at most 32 bits wide
_TSS32 = (9, 11)
_IO_MAP_BASE = 102


class Ports:
    """Port I/O of one CPU."""

    def __init__(self, state: CpuState, memory: VirtualMemory) -> None:
        self._state = state
        self._memory = memory

    @property
    def _user(self) -> bool:
        return self._state.cpl == 3  # noqa: PLR2004 - ring 3

    def port(self, instruction: Instruction) -> int:
        """Return the port number; raises #GP without the right to use it (``emulator_io_permitted``)."""
        state = self._state
        port: int = state.gpr[RDX] & 0xFFFF if instruction.port is None else instruction.port
        restricted = state.eflags & FLAG_VM or state.cpl > (state.eflags & FLAG_IOPL) >> 12
        if restricted and state.cr[0] & 1 and not self._in_bitmap(port, instruction.size):
            raise GuestFaultError(GP)
        return port

    def _in_bitmap(self, port: int, size: int) -> bool:
        tss = self._state.tr
        if tss.flags >> 8 & 15 not in _TSS32 or tss.limit < _IO_MAP_BASE + 1:
            return False
        base = int.from_bytes(self._memory.read_system(tss.base + _IO_MAP_BASE, 2), "little")
        if base + port // 8 + 1 > tss.limit:
            return False
        bits = int.from_bytes(self._memory.read_system(tss.base + base + port // 8, 2), "little")
        return not bits >> port % 8 & (1 << size) - 1

    # -- one element in a register ----------------------------------------------------------------------------

    def register_io(self, instruction: Instruction) -> tuple[IoExit, PendingPort]:
        """Begin IN or OUT."""
        port, state = self.port(instruction), self._state
        pending = PendingPort(state.rip, instruction.length, instruction.size, 1, instruction.is_out)
        if not instruction.is_out:
            return IoExit("in", instruction.size, port), pending
        data = (state.gpr[RAX] & 0xFFFFFFFF).to_bytes(_WIDTH, "little")[: instruction.size]
        return IoExit("out", instruction.size, port, 1, data), pending

    def complete_register(self, pending: PendingPort, data: bytes) -> None:
        """Finish IN or OUT, unless userspace has moved RIP."""
        state = self._state
        if state.rip != pending.rip:
            return
        if not pending.out:
            value = int.from_bytes(data, "little")
            if pending.size < _WIDTH:  # a smaller IN leaves the rest of RAX alone, a 32-bit one clears it
                value |= state.gpr[RAX] & ~((1 << 8 * pending.size) - 1)
            state.gpr[RAX] = value
        self.advance(pending.length)

    def advance(self, length: int) -> None:
        """Move RIP past an instruction that was done here."""
        state = self._state
        limit = (1 << 64) - 1 if state.bits == 64 else 0xFFFFFFFF  # noqa: PLR2004 - 64-bit code
        state.rip = state.rip + length & limit
        state.clear_shadow()
        state.set_resume(repeating=False)

    # -- strings ---------------------------------------------------------------------------------------------

    def remaining(self, instruction: Instruction) -> int:
        """How many elements are left."""
        if not instruction.repeat:
            return 1
        return self._masked(RCX, instruction.address_bits)

    def source(self, instruction: Instruction) -> int:
        """The linear address the next OUTS element is read from."""
        return self._state.linear(instruction.segment, self._masked(RSI, instruction.address_bits))

    def begin_outs(self, instruction: Instruction, data: bytes) -> tuple[IoExit, PendingPort]:
        """Exit with one element; the registers are written now."""
        port = self.port(instruction)
        pending = PendingPort(self._state.rip, instruction.length, instruction.size, 1, out=True, string=True)
        self._move(RSI, instruction.size, instruction.address_bits)
        self._count_down(1, instruction.address_bits, instruction.repeat, instruction.length)
        return IoExit("out", instruction.size, port, 1, data), pending

    def begin_ins(self, instruction: Instruction) -> tuple[IoExit, PendingPort]:
        """Ask for as many elements as KVM reads ahead."""
        port, size = self.port(instruction), instruction.size
        count = self._read_ahead(size, self.remaining(instruction))
        pending = PendingPort(
            self._state.rip,
            instruction.length,
            size,
            count,
            out=False,
            string=True,
            address_bits=instruction.address_bits,
            repeat=instruction.repeat,
        )
        return IoExit("in", size, port, count), pending

    def _read_ahead(self, size: int, remaining: int) -> int:
        offset = self._state.gpr[RDI] % PAGE
        in_page = offset if self._state.backwards else PAGE - offset  # bytes, and yet a limit of elements
        return max(1, min(in_page, READ_AHEAD // size, remaining))

    def complete_ins(self, pending: PendingPort, data: bytes) -> list[tuple[int, bytes]]:
        """Write the elements to memory; return what belongs to a device.

        How many is decided again: userspace may have set RCX since. What it was not asked for is zero.
        """
        state, bits, size = self._state, pending.address_bits, pending.size
        remaining = self._masked(RCX, bits) if pending.repeat else 1
        length = self._read_ahead(size, remaining) * size
        data = data[:length].ljust(length, b"\0")
        state.rip = pending.rip
        step = len(data) if pending.repeat and not state.backwards else size
        for start in range(0, len(data), step):
            part = data[start : start + step]
            pieces = self._memory.write_parts(self._target(bits), part, user=self._user)
            self._move(RDI, len(part), bits)
            self._count_down(len(part) // size, bits, pending.repeat, pending.length)
            if pieces:
                return pieces  # what was read ahead beyond this is lost
        return []

    def _target(self, bits: int) -> int:
        return self._state.linear(ES, self._masked(RDI, bits))

    def stored(self, size: int, bits: int) -> None:
        """Move the registers of a repeated STOS by one element."""
        self._move(RDI, size, bits)
        self._count_down(1, bits, repeat=True, length=0)

    def _masked(self, register: int, bits: int) -> int:
        value: int = self._state.gpr[register]
        return value & (1 << bits) - 1

    def _store(self, register: int, value: int, bits: int) -> None:
        """``assign_masked``: a 32-bit address clears the upper half, a 16-bit one keeps it."""
        mask = (1 << bits) - 1
        kept = self._state.gpr[register] & ~mask if bits == 16 else 0  # noqa: PLR2004
        self._state.gpr[register] = kept | value & mask

    def _move(self, register: int, distance: int, bits: int) -> None:
        signed = -distance if self._state.backwards else distance
        self._store(register, self._masked(register, bits) + signed, bits)

    def _count_down(self, done: int, bits: int, repeat: bool, length: int) -> None:
        """A repeated instruction stays where it is, also after its last element: the guest looks at RCX first."""
        if not repeat:
            self.advance(length)
            return
        self._store(RCX, self._masked(RCX, bits) - done, bits)
        self._state.set_resume(repeating=True)
        self._state.clear_shadow()
