"""The part ``interrupts``: time, and the controllers that a VM has once."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter

from kickstand.core.arch.irq.i8254 import Pit
from kickstand.core.arch.irq.ioapic import STATE
from kickstand.core.arch.irq.routing import ChipId, MsiRoute, PinRoute, Route, check_route, table
from kickstand.journal.form.part import Count, Gsi, Part, Unsigned


class Interrupts(Part):
    """The part ``interrupts``: time, and the controllers that the VM has once, in the layouts of KVM_GET_IRQCHIP."""

    time: Count
    split: bool
    routes: list[tuple[Gsi, Literal[1, 2], Unsigned, Unsigned]]
    lines: list[tuple[Annotated[int, Field(ge=0, le=2)], Gsi, Count]]
    pics: Annotated[list[Annotated[bytes, Field(min_length=16, max_length=16)]], Field(min_length=2, max_length=2)]
    ioapic: Annotated[bytes, Field(min_length=216, max_length=216)]
    irr: Annotated[int, Field(ge=0, lt=1 << 24)]
    delivered: Annotated[int, Field(ge=0, lt=1 << 24)]
    pit: Annotated[bytes, Field(min_length=112, max_length=112)] | None
    speaker: Literal[0, 1]
    due: Count | None
    period: Count

    @classmethod
    def of(cls, live: Any) -> Self:
        """Of a machine that has controllers."""
        chips = live.vm.interrupts.chips
        pit = chips.pit
        return cls(
            time=live.clock.time_now(),
            split=chips.split,
            routes=[(gsi, *_route(route)) for gsi, routes in sorted(chips.table.items()) for route in routes],
            lines=[(int(chip), pin, held) for (chip, pin), held in sorted(chips.lines.items())],
            pics=[chip.saved() for chip in chips.pic.chips],
            ioapic=chips.ioapic.saved(),
            irr=chips.ioapic.irr,
            delivered=chips.ioapic.delivered,
            pit=None if pit is None else pit.saved(),
            speaker=0 if pit is None else pit.speaker_on,
            due=None if pit is None else pit.due,
            period=0 if pit is None else pit.period,
        )

    def into(self, live: Any) -> None:
        """Into a machine without vCPUs yet. ``KvmError``, ``ValueError``: no controllers were ever like that."""
        live.clock.set_time(self.time)
        interrupts = live.vm.interrupts
        if interrupts.chips is None:
            raise ValueError("interrupt controllers of a machine without irqchip")
        if self.split:
            interrupts.create(split=True)
        chips = interrupts.chips
        routes = [(gsi, PinRoute(ChipId(a), b) if kind == 1 else MsiRoute(a, b)) for gsi, kind, a, b in self.routes]
        for gsi, route in routes:
            check_route(gsi, route, 0, split=self.split)
        chips.table = table(routes)
        chips.lines = {(ChipId(chip), pin): held for chip, pin, held in self.lines}
        for chip, state in zip(chips.pic.chips, self.pics, strict=True):
            chip.restore(state)
        chips.pic.update()
        chips.shown = chips.pic.output
        chips.ioapic.restore(self.ioapic)
        chips.ioapic.irr, chips.ioapic.delivered = self.irr, self.delivered
        chips.ioapic.entries = list(STATE.unpack(self.ioapic)[5:])
        if self.pit is not None:
            chips.pit = Pit()
            chips.pit.restore(self.pit, self.time)
            chips.pit.speaker_on, chips.pit.due, chips.pit.period = self.speaker, self.due, self.period


def _route(route: Route) -> tuple[Literal[1, 2], int, int]:
    return (2, route.address, route.data) if isinstance(route, MsiRoute) else (1, int(route.chip), route.pin)


INTERRUPTS = TypeAdapter(Interrupts)
