"""What KVM_SET_GUEST_DEBUG has set of one CPU: a debugger's breakpoints, which the guest does not see."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

ENABLE, SINGLESTEP = 1, 2
USE_SW_BP, USE_HW_BP, INJECT_DB, INJECT_BP, BLOCKIRQ = 1 << 16, 1 << 17, 1 << 18, 1 << 19, 1 << 20
DR6_FIXED, DR6_HITS, DR6_BD, DR6_BS = 0xFFFF_0FF0, 0xF, 1 << 13, 1 << 14
DR7_GD = 1 << 13
REGISTERS = 8
_ENABLED_BREAKPOINTS = 0xFF
_LENGTHS = (1, 2, 8, 4)
_EXECUTE, _WRITE, _ACCESS = 0, 1, 3

Access = tuple[int, int, bool]
"""(linear address, bytes, it was a write)."""


def watches(dr7: int) -> bool:
    """A guest with this DR7 has breakpoints of its own."""
    return bool(dr7 & _ENABLED_BREAKPOINTS)


@dataclass(frozen=True, slots=True)
class GuestDebug:
    """``vcpu->guest_debug`` and its registers."""

    control: int = 0
    registers: tuple[int, ...] = (0,) * REGISTERS

    @classmethod
    def of(cls, control: int, registers: Sequence[int]) -> GuestDebug:
        """Without KVM_GUESTDBG_ENABLE nothing else counts."""
        return cls(control, tuple(registers)) if control & ENABLE else cls()

    @property
    def single_steps(self) -> bool:
        """Every instruction ends with an exit."""
        return bool(self.control & SINGLESTEP)

    @property
    def has_registers(self) -> bool:
        """The debug registers are the debugger's."""
        return bool(self.control & USE_HW_BP)

    @property
    def steps(self) -> bool:
        """The CPU has to look after every instruction."""
        watches = self.has_registers and self.registers[7] & (_ENABLED_BREAKPOINTS | DR7_GD)
        return self.single_steps or bool(watches)

    @property
    def takes_breakpoints(self) -> bool:
        """INT3 is the debugger's."""
        return bool(self.control & USE_SW_BP)

    @property
    def takes_debug_exceptions(self) -> bool:
        """#DB is the debugger's."""
        return bool(self.control & (SINGLESTEP | USE_HW_BP))

    @property
    def blocks_interrupts(self) -> bool:
        """None is delivered."""
        return bool(self.control & BLOCKIRQ)

    @property
    def guards_registers(self) -> bool:
        """A move to or from a debug register is the debugger's to see."""
        return self.has_registers and bool(self.registers[7] & DR7_GD)

    def breakpoints(self, of_guest: Iterable[int]) -> Breakpoints:
        """The registers that count."""
        return Breakpoints(self.registers if self.has_registers else tuple(of_guest))


@dataclass(frozen=True, slots=True)
class Breakpoints:
    """What DR0 to DR7 watch."""

    registers: tuple[int, ...]

    @property
    def dr7(self) -> int:
        """The one that controls the others."""
        return self.registers[7]

    def _enabled(self) -> Iterable[tuple[int, int, int, int]]:
        """(bit of DR6, kind, address, length) of each that is enabled."""
        dr7 = self.dr7
        for number in range(4):
            if dr7 >> 2 * number & 3:
                kind, length = dr7 >> 16 + 4 * number & 3, _LENGTHS[dr7 >> 18 + 4 * number & 3]
                yield 1 << number, kind, self.registers[number], length

    def before(self, address: int) -> int:
        """Which breakpoints (bits of DR6) the instruction at this linear address meets."""
        return sum(bit for bit, kind, at, _ in self._enabled() if kind == _EXECUTE and at == address)

    def after(self, accesses: Iterable[Access]) -> int:
        """Which breakpoints (bits of DR6) these accesses meet."""
        done = list(accesses)
        found = 0
        for bit, kind, at, length in self._enabled():
            first = at & ~(length - 1)
            if kind in (_WRITE, _ACCESS) and any(
                address < first + length and first < address + size and (write or kind == _ACCESS)
                for address, size, write in done
            ):
                found |= bit
        return found
