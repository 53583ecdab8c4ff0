"""The IOAPIC: 24 pins, each with a redirection entry that says which message its line becomes."""

from __future__ import annotations

import struct
from typing import Any

from kickstand.core.arch.irq.message import Delivery, Message

PINS = 24
ADDRESS, LENGTH = 0xFEC00000, 0x100
SELECT, WINDOW = 0x00, 0x10
REG_ID, REG_VERSION, REG_ARBITRATION, REG_ENTRIES = 0, 1, 2, 0x10
VERSION = 0x11
VECTOR, LOGICAL, DELIVERY_STATUS, REMOTE_IRR, LEVEL, MASK = 0xFF, 1 << 11, 1 << 12, 1 << 14, 1 << 15, 1 << 16
READ_ONLY = DELIVERY_STATUS | REMOTE_IRR
STATE = struct.Struct("<QIIII24Q")  # ``kvm_ioapic_state``
MASK32 = 0xFFFF_FFFF


class Ioapic:
    """``struct kvm_ioapic``. What it sends is returned as messages; the sender marks a level entry as in service."""

    def __init__(self) -> None:
        self.id = self.select = 0
        self.irr = 0  # lines that are high, or were and wait
        self.delivered = 0  # edges that have been sent since
        self.entries = [MASK] * PINS

    def state(self) -> tuple[Any, ...]:
        """All of it as one hashable value."""
        return self.id, self.select, self.irr, self.delivered, tuple(self.entries)

    def load(self, state: tuple[Any, ...]) -> None:
        """Put a value of ``state`` back."""
        self.id, self.select, self.irr, self.delivered, entries = state
        self.entries = list(entries)

    # -- pins --------------------------------------------------------------------------------------------

    def set_line(self, pin: int, *, high: bool) -> tuple[list[Message], int]:
        """``ioapic_set_irq``: what is sent, and 0 if an edge met one that is pending, 1 if not, -1 if masked."""
        bit = 1 << pin
        if not high:
            self.irr &= ~bit
            return [], 1
        edge = not self.entries[pin] & LEVEL
        pending = self.irr & bit
        self.irr |= bit
        if edge:
            self.delivered &= ~bit
            if pending:
                return [], 0
        sent = self._service(pin)
        return sent, 1 if sent else -1

    def _service(self, pin: int) -> list[Message]:
        entry = self.entries[pin]
        if entry & MASK or (entry & LEVEL and entry & REMOTE_IRR):
            return []
        if entry & LEVEL:
            self.entries[pin] |= REMOTE_IRR
        else:
            self.delivered |= 1 << pin
        return [
            Message(
                vector=entry & VECTOR,
                dest=entry >> 56,
                delivery=Delivery(entry >> 8 & 7),
                logical=bool(entry & LOGICAL),
                level_triggered=bool(entry & LEVEL),
                pin=pin,
            )
        ]

    def refused(self, pin: int) -> None:
        """Nobody took the message of a level pin: it is not in service."""
        self.entries[pin] &= ~REMOTE_IRR

    def pins_of(self, vector: int) -> list[int]:
        """The pins whose interrupt has this vector."""
        return [pin for pin, entry in enumerate(self.entries) if entry & VECTOR == vector]

    def ended(self, pin: int) -> list[Message]:
        """EOI of a level triggered interrupt at a local APIC: a pin that is still high is served again."""
        if not self.entries[pin] & LEVEL:
            return []
        self.entries[pin] &= ~REMOTE_IRR
        return self._service(pin) if self.irr >> pin & 1 else []

    # -- registers ---------------------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> bytes:
        """A load of 1 to 8 bytes from its page."""
        value = self.select if offset == SELECT else self._indirect() if offset == WINDOW else 0
        return (value & (1 << 8 * length) - 1).to_bytes(length, "little")

    def _indirect(self) -> int:
        if self.select == REG_VERSION:
            return (PINS - 1) << 16 | VERSION
        if self.select in (REG_ID, REG_ARBITRATION):
            return self.id << 24
        pin = (self.select - REG_ENTRIES) >> 1
        entry = self.entries[pin] if 0 <= pin < PINS else (1 << 64) - 1
        return entry >> 32 if self.select & 1 else entry & MASK32

    def write(self, offset: int, data: bytes) -> list[Message]:
        """A store to its page; an entry that is unmasked while its level line is high is served."""
        value = int.from_bytes(data[:4], "little")
        if offset == SELECT:
            self.select = value & 0xFF
        elif offset == WINDOW:
            return self._write_indirect(value)
        return []

    def _write_indirect(self, value: int) -> list[Message]:
        if self.select == REG_ID:
            self.id = value >> 24 & 0xF
        pin = (self.select - REG_ENTRIES) >> 1
        if not 0 <= pin < PINS:
            return []
        entry = self.entries[pin]
        if self.select & 1:
            entry = entry & MASK32 | value << 32
        else:
            entry = entry & ~MASK32 | value & ~READ_ONLY | entry & READ_ONLY
        if not entry & LEVEL:
            entry &= ~REMOTE_IRR
        self.entries[pin] = entry
        waiting = entry & LEVEL and self.irr >> pin & 1
        return self._service(pin) if waiting else []

    def saved(self) -> bytes:
        """KVM_GET_IRQCHIP."""
        pending = self.irr & ~self.delivered
        return STATE.pack(ADDRESS, self.select, self.id, pending, 0, *self.entries)

    def restore(self, state: bytes) -> list[Message]:
        """KVM_SET_IRQCHIP: lines that were pending are raised again; what that sends."""
        _, self.select, self.id, pending, _, *self.entries = STATE.unpack_from(state)
        self.irr = self.delivered = 0
        sent: list[Message] = []
        for pin in range(PINS):
            if pending >> pin & 1:
                sent += self.set_line(pin, high=True)[0]
        return sent
