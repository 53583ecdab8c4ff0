"""The pair of 8259 interrupt controllers: master, and slave on the master's input 2."""

from __future__ import annotations

import struct
from typing import Any

CASCADE = 2
PORTS = {0x20: (0, 0), 0x21: (0, 1), 0xA0: (1, 0), 0xA1: (1, 1)}  # port: (chip, register)
ELCR_PORTS = {0x4D0: 0, 0x4D1: 1}
ELCR_MASKS = (0xF8, 0xDE)  # inputs that can be level triggered
STATE = struct.Struct("<16B")  # ``kvm_pic_state``
FIELDS = (
    "last_irr", "irr", "imr", "isr", "priority_add", "irq_base", "read_isr", "poll", "special_mask", "init_state",
    "auto_eoi", "rotate_on_auto_eoi", "fully_nested", "init4", "elcr", "elcr_mask",
)  # fmt: skip
NONE = 8  # the priority of no input


class Chip:
    """One 8259 (``struct kvm_kpic_state``): bit n of a mask is input n."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.last_irr = self.irr = self.imr = self.isr = 0
        self.priority_add = 0  # the input of highest priority
        self.irq_base = 0
        self.read_isr = self.poll = self.special_mask = 0
        self.init_state = self.init4 = 0
        self.auto_eoi = self.rotate_on_auto_eoi = self.fully_nested = 0
        self.elcr, self.elcr_mask = 0, ELCR_MASKS[number]
        self.ended: list[int] = []  # inputs whose service has ended, until ``Pic.take_ended``

    def set_input(self, pin: int, *, high: bool) -> int:
        """``pic_set_irq1``: 0 if a request met one that was pending, -1 if it is masked, else 1."""
        bit = 1 << pin
        new = 1
        if not high:
            self.last_irr &= ~bit
            if self.elcr & bit:
                self.irr &= ~bit
        else:
            if self.elcr & bit or not self.last_irr & bit:
                new = int(not self.irr & bit)
                self.irr |= bit
            self.last_irr |= bit
        return -1 if self.imr & bit else new

    def priority(self, mask: int) -> int:
        """The priority of the most urgent input in ``mask``: 0 to 7, or 8 if there is none."""
        for priority in range(NONE):
            if mask >> (priority + self.priority_add & 7) & 1:
                return priority
        return NONE

    def request(self) -> int | None:
        """The input that would be served now (``pic_get_irq``)."""
        wanted = self.priority(self.irr & ~self.imr)
        served = self.isr & ~(1 << CASCADE) if self.fully_nested and self.number == 0 else self.isr
        return (wanted + self.priority_add) & 7 if wanted < self.priority(served) else None

    def acknowledge(self, pin: int) -> None:
        """INTA: the input is in service."""
        bit = 1 << pin
        self.isr |= bit
        if not self.elcr & bit:
            self.irr &= ~bit
        if self.auto_eoi:
            if self.rotate_on_auto_eoi:
                self.priority_add = pin + 1 & 7
            self._end(pin)

    def _end(self, pin: int) -> None:
        """``pic_clear_isr``: the input's service is over; whoever holds its line may want to know."""
        self.isr &= ~(1 << pin)
        self.ended.append(pin)

    def command(self, value: int) -> None:
        """A write of the first register: ICW1, OCW3 or OCW2."""
        if value & 0x10:
            self._initialise(value)
        elif value & 0x08:
            self._select(value)
        else:
            self._end_of_interrupt(value >> 5, value & 7)

    def _initialise(self, value: int) -> None:
        self.init4 = value & 1
        self.last_irr = self.imr = self.priority_add = self.special_mask = self.read_isr = 0
        self.irr &= self.elcr
        self.isr = self.isr  # KVM leaves what is in service alone
        if not self.init4:
            self.fully_nested = self.auto_eoi = 0
        self.init_state = 1

    def _select(self, value: int) -> None:
        if value & 0x04:
            self.poll = 1
        if value & 0x02:
            self.read_isr = value & 1
        if value & 0x40:
            self.special_mask = value >> 5 & 1

    def _end_of_interrupt(self, command: int, pin: int) -> None:
        if command in (0, 4):
            self.rotate_on_auto_eoi = command >> 2
        elif command in (1, 5):
            priority = self.priority(self.isr)
            if priority == NONE:
                return
            pin = priority + self.priority_add & 7
            self._end(pin)
            if command == 5:
                self.priority_add = pin + 1 & 7
        elif command == 6:
            self.priority_add = pin + 1 & 7
        elif command in (3, 7):
            self._end(pin)
            if command == 7:
                self.priority_add = pin + 1 & 7

    def data(self, value: int) -> None:
        """A write of the second register: the mask, or the next word of an initialisation."""
        if self.init_state == 0:
            self.imr = value
        elif self.init_state == 1:
            self.irq_base = value & 0xF8
            self.init_state = 2
        elif self.init_state == 2:
            self.init_state = 3 if self.init4 else 0
        else:
            self.fully_nested, self.auto_eoi = value >> 4 & 1, value >> 1 & 1
            self.init_state = 0

    def read(self, register: int) -> int:
        """The mask, or what was selected: requests or what is in service."""
        return self.imr if register else self.isr if self.read_isr else self.irr

    def state(self) -> tuple[int, ...]:
        """All of it as one hashable value."""
        return tuple(getattr(self, field) for field in FIELDS)

    def load(self, state: tuple[int, ...]) -> None:
        """Put a value of ``state`` back."""
        for field, value in zip(FIELDS, state, strict=True):
            setattr(self, field, value)

    def saved(self) -> bytes:
        """KVM_GET_IRQCHIP."""
        return STATE.pack(*self.state())

    def restore(self, state: bytes) -> None:
        """KVM_SET_IRQCHIP."""
        self.load(STATE.unpack_from(state))


class Pic:
    """``struct kvm_pic``; ``output`` is the wire to the CPUs."""

    def __init__(self) -> None:
        self.chips = (Chip(0), Chip(1))
        self.output = False

    def state(self) -> tuple[Any, ...]:
        """All of it as one hashable value."""
        return *(chip.state() for chip in self.chips), self.output

    def load(self, state: tuple[Any, ...]) -> None:
        """Put a value of ``state`` back."""
        for chip, kept in zip(self.chips, state, strict=False):
            chip.load(kept)
        self.output = state[-1]

    def take_ended(self) -> list[int]:
        """The inputs (0 to 15) whose service has ended since the last call."""
        ended = [8 * chip.number + pin for chip in self.chips for pin in chip.ended]
        for chip in self.chips:
            chip.ended.clear()
        return ended

    def set_line(self, irq: int, *, high: bool) -> int:
        """Input ``irq`` (0 to 15) changes; result as ``Chip.set_input``."""
        new = self.chips[irq >> 3].set_input(irq & 7, high=high)
        self.update()
        return new

    def update(self) -> None:
        """``pic_update_irq``: the slave's request is an edge at the master, the master's is the output."""
        master, slave = self.chips
        if slave.request() is not None:
            master.set_input(CASCADE, high=True)
            master.set_input(CASCADE, high=False)
        self.output = master.request() is not None

    def acknowledge(self) -> int:
        """INTA: the vector of the most urgent input, a spurious one (input 7) if there is none."""
        master, slave = self.chips
        pin = master.request()
        if pin is None:
            vector = master.irq_base + 7
        else:
            master.acknowledge(pin)
            vector = master.irq_base + pin
            if pin == CASCADE:
                behind = slave.request()
                if behind is not None:
                    slave.acknowledge(behind)
                vector = slave.irq_base + (7 if behind is None else behind)
        self.update()
        return vector

    def read(self, port: int) -> int:
        """IN of one byte."""
        if port in ELCR_PORTS:
            return self.chips[ELCR_PORTS[port]].elcr
        number, register = PORTS[port]
        chip = self.chips[number]
        if not chip.poll:
            return chip.read(register)
        chip.poll = 0
        return self._poll(chip)

    def _poll(self, chip: Chip) -> int:
        """A read after a poll command acknowledges: bit 7 says whether there was anything."""
        pin = chip.request()
        if pin is None:
            self.update()
            return 7
        if chip.number:
            self.chips[0].isr &= ~(1 << CASCADE)
            self.chips[0].irr &= ~(1 << CASCADE)
        chip.irr &= ~(1 << pin)
        chip.isr &= ~(1 << pin)
        if chip.number or pin != CASCADE:
            self.update()
        return pin | 0x80

    def write(self, port: int, value: int) -> None:
        """OUT of one byte."""
        if port in ELCR_PORTS:
            chip = self.chips[ELCR_PORTS[port]]
            chip.elcr = value & chip.elcr_mask
            return
        number, register = PORTS[port]
        chip = self.chips[number]
        if register:
            masked = chip.init_state == 0
            chip.data(value)
            if masked:
                self.update()
            return
        chip.command(value)
        if not value & 0x18 and value >> 5 not in (0, 4):
            self.update()
