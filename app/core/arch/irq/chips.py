"""The controllers that a VM has once: routing, the 8259 pair, the IOAPIC, the 8254."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kickstand.core.arch.irq import i8259, ioapic
from kickstand.core.arch.irq.i8254 import Pit
from kickstand.core.arch.irq.i8259 import Pic
from kickstand.core.arch.irq.ioapic import Ioapic
from kickstand.core.arch.irq.message import Message, msi
from kickstand.core.arch.irq.routing import DEFAULT, EMPTY, ChipId, MsiRoute, PinRoute, Table
from kickstand.core.arch.kvm_arch import KvmArch
from kickstand.core.atomics import Shared, atomic

USERSPACE, PIT, RESAMPLE = 0, 1, 2  # who holds a line (``irq_source_id``); a line is high while anybody holds it
PIT_GSI = 0


@dataclass(frozen=True, slots=True)
class Raised:
    """What a change leads to: messages to local APICs; ``status`` as KVM_IRQ_LINE_STATUS answers."""

    messages: tuple[Message, ...] = ()
    status: int = -1


class Chips(Shared):
    """``kvm->arch``'s controllers. ``split``: those with pins are userspace's, here is only the routing."""

    __slots__ = ("split", "arch", "table", "lines", "pic", "ioapic", "pit", "shown", "resampled", "acked")

    def __init__(self, *, split: bool = False, arch: KvmArch | None = None) -> None:
        super().__init__()
        self.split = split
        self.arch = arch or KvmArch()
        self.table: Table = EMPTY if split else DEFAULT
        self.lines: dict[tuple[ChipId, int], int] = {}  # by input: a bit for each source that holds it high
        self.pic = Pic()
        self.ioapic = Ioapic()
        self.pit: Pit | None = None
        self.shown = False  # what the CPUs have seen of the 8259's output
        self.resampled: frozenset[int] = frozenset()  # lines whose holder is told when their interrupt has ended
        self.acked: tuple[int, ...] = ()  # those of them that have, until somebody tells

    def state(self) -> tuple[Any, ...]:
        """All of it as one hashable value."""
        table = tuple(sorted((gsi, routes) for gsi, routes in self.table.items()))
        pit = None if self.pit is None else self.pit.state()
        lines = tuple(sorted(self.lines.items()))
        return table, lines, self.pic.state(), self.ioapic.state(), pit, self.shown

    def load(self, state: tuple[Any, ...]) -> None:
        """Put a value of ``state`` back."""
        table, lines, pic, ioapic, pit, self.shown = state
        self.table, self.lines = dict(table), dict(lines)
        self.pic.load(pic)
        self.ioapic.load(ioapic)
        self.pit = None if pit is None else self.pit or Pit()
        if self.pit is not None and pit is not None:
            self.pit.load(pit)

    # -- lines -------------------------------------------------------------------------------------------

    @atomic
    async def set_gsi(self, gsi: int, high: bool, source: int = USERSPACE) -> Raised:
        """``kvm_set_irq``: a line changes, wherever it is routed."""
        return self._set_gsi(gsi, high=high, source=source)

    def _set_gsi(self, gsi: int, *, high: bool, source: int) -> Raised:
        messages: list[Message] = []
        status = -1
        for route in self.table.get(gsi, ()):
            if isinstance(route, MsiRoute):
                sent, one = ([self.message(route)], 1) if high else ([], -1)
            else:
                sent, one = self._set_input(route.chip, route.pin, high=high, source=source)
            messages += sent
            if one >= 0:
                status = one + max(status, 0)
        return Raised(tuple(messages), status)

    def message(self, route: MsiRoute) -> Message:
        """``kvm_set_msi_irq``."""
        return msi(route.address, route.data, wide=self.arch.x2apic_format)

    def _set_input(self, chip: ChipId, pin: int, *, high: bool, source: int) -> tuple[list[Message], int]:
        held = self.lines.get((chip, pin), 0) & ~(1 << source) | high << source
        if held:
            self.lines[chip, pin] = held
        else:
            self.lines.pop((chip, pin), None)
        if chip is ChipId.IOAPIC:
            return self.ioapic.set_line(pin, high=bool(held))
        return [], self.pic.set_line((chip << 3) + pin, high=bool(held))

    @atomic
    async def set_routing(self, table: Table) -> None:
        """KVM_SET_GSI_ROUTING: the whole table at once."""
        self.table = table

    @atomic
    async def extint_changed(self) -> bool | None:
        """The wire from the 8259 pair to the CPUs, if it is not what they have seen last."""
        if self.pic.output == self.shown:
            return None
        self.shown = self.pic.output
        return self.shown

    @atomic
    async def acknowledge(self, *, over: bool) -> int:
        """A CPU takes an interrupt from the 8259 pair; ``over``: its guest has no handler that would end it."""
        vector = self.pic.acknowledge()
        if over:
            for chip in self.pic.chips:
                chip.isr = 0
            self.pic.update()
        self._ack_pic()
        return vector

    # -- local APICs answer ------------------------------------------------------------------------------

    @atomic
    async def refused(self, pin: int) -> None:
        """No APIC took the message of a level triggered pin."""
        self.ioapic.refused(pin)

    @atomic
    async def ended(self, vector: int, level_triggered: bool) -> Raised:
        """EOI of a vector: level triggered pins that are still high interrupt again."""
        messages: list[Message] = []
        for pin in self.ioapic.pins_of(vector):
            messages += self._ack(ChipId.IOAPIC, pin)
            messages += self.ioapic.ended(pin) if level_triggered else ()
        return Raised(tuple(messages))

    def _ack(self, chip: ChipId, pin: int) -> list[Message]:
        """``kvm_notify_acked_irq``: a line that is resampled goes low, unless somebody else holds it."""
        messages: list[Message] = []
        for gsi in self.resampled:
            if PinRoute(chip, pin) in self.table.get(gsi, ()):
                messages += self._set_gsi(gsi, high=False, source=RESAMPLE).messages
                self.acked += (gsi,)
        return messages

    def _ack_pic(self) -> None:
        for irq in self.pic.take_ended():
            self._ack(ChipId(irq >> 3), irq & 7)

    @atomic
    async def take_acked(self) -> tuple[int, ...]:
        """The resampled lines whose interrupt has ended."""
        taken, self.acked = self.acked, ()
        return taken

    @atomic
    async def resample(self, gsi: int, wanted: bool) -> Raised:
        """Whether somebody wants to know when a line's interrupt has ended; if not, it is not held any more."""
        self.resampled = self.resampled | {gsi} if wanted else self.resampled - {gsi}
        return Raised() if wanted else self._set_gsi(gsi, high=False, source=RESAMPLE)

    @atomic
    async def exits_for(self, vector: int) -> tuple[Message, ...]:
        """With a split irqchip: the level triggered messages of userspace's IOAPIC with this vector.

        Its pins are the first lines of the routing, as many as KVM_CAP_SPLIT_IRQCHIP has said
        (``kvm_scan_ioapic_routes``).
        """
        if not self.split:
            return ()
        pins = range(self.arch.nr_reserved_ioapic_pins)
        routes = [route for gsi in pins for route in self.table.get(gsi, ()) if isinstance(route, MsiRoute)]
        messages = [self.message(route) for route in routes]
        return tuple(message for message in messages if message.vector == vector and message.level_triggered)

    # -- registers ---------------------------------------------------------------------------------------

    def answers_port(self, port: int) -> bool:
        """A port of the 8259 pair or the 8254 (which is created once, before the first vCPU)."""
        if self.split:
            return False
        return port in i8259.PORTS or port in i8259.ELCR_PORTS or (self.pit is not None and self.pit.answers(port))

    def answers_page(self, gpa: int) -> bool:
        """An address of the IOAPIC."""
        return not self.split and ioapic.ADDRESS <= gpa < ioapic.ADDRESS + ioapic.LENGTH

    @atomic
    async def read_port(self, port: int, size: int, now: int) -> bytes:
        """IN. The 8259 pair answers bytes only; wider ones read zeros."""
        if self.pit is not None and self.pit.answers(port):
            return self.pit.read(port, now).to_bytes(size, "little")
        return self.pic.read(port).to_bytes(1, "little") if size == 1 else bytes(size)

    @atomic
    async def write_port(self, port: int, data: bytes, now: int) -> int | None:
        """OUT; when the 8254 is due."""
        if self.pit is not None and self.pit.answers(port):
            self.pit.write(port, data[0], now)
        elif len(data) == 1:
            self.pic.write(port, data[0])
            self._ack_pic()
        return None if self.pit is None else self.pit.due

    @atomic
    async def read_ioapic(self, gpa: int, length: int) -> bytes:
        """A load from the IOAPIC's page."""
        return self.ioapic.read(gpa - ioapic.ADDRESS, length)

    @atomic
    async def write_ioapic(self, gpa: int, data: bytes) -> Raised:
        """A store to the IOAPIC's page."""
        return Raised(tuple(self.ioapic.write(gpa - ioapic.ADDRESS, data)))

    # -- the 8254 ----------------------------------------------------------------------------------------

    @atomic
    async def create_pit(self, flags: int) -> bool:
        """KVM_CREATE_PIT2; false if there is one."""
        if self.pit is not None:
            return False
        self.pit = Pit(flags)
        return True

    @atomic
    async def pit_fired(self, now: int) -> tuple[Raised, int | None]:
        """The 8254's time may have come: an edge on GSI 0; and when it is due next."""
        if self.pit is None:
            return Raised(), None
        raised = Raised()
        if self.pit.fired(now):
            raised = self._set_gsi(PIT_GSI, high=True, source=PIT)
            self._set_gsi(PIT_GSI, high=False, source=PIT)
        return raised, self.pit.due

    @atomic
    async def pit_due(self) -> int | None:
        """When the 8254 is due."""
        return None if self.pit is None else self.pit.due

    @atomic
    async def pit_state(self) -> bytes | None:
        """KVM_GET_PIT2; None: there is none."""
        return None if self.pit is None else self.pit.saved()

    @atomic
    async def set_pit_state(self, state: bytes, now: int) -> int | None:
        """KVM_SET_PIT2; when it is due."""
        if self.pit is None:
            return None
        self.pit.restore(state, now)
        return self.pit.due

    # -- KVM_GET_IRQCHIP, KVM_SET_IRQCHIP ----------------------------------------------------------------

    @atomic
    async def chip_state(self, chip: ChipId) -> bytes:
        """The state of one controller, as the ABI has it."""
        return self.ioapic.saved() if chip is ChipId.IOAPIC else self.pic.chips[chip].saved()

    @atomic
    async def set_chip_state(self, chip: ChipId, state: bytes) -> Raised:
        """Put the state of one controller back; lines that were pending there are raised again."""
        if chip is ChipId.IOAPIC:
            return Raised(tuple(self.ioapic.restore(state)))
        self.pic.chips[chip].restore(state)
        self.pic.update()
        return Raised()
