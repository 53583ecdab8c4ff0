"""The parts ``cpu/N`` and ``counters``: one vCPU, what it shows in ``kvm_run``, and what it has counted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Annotated, Self

from pydantic import ConfigDict, Field, JsonValue, TypeAdapter

from kickstand.core.arch.cpu.vcpu_arch import VcpuArch
from kickstand.core.arch.irq.registers import REGISTERS
from kickstand.core.kvm_main import AnyVcpu
from kickstand.core.run.watched import Counters
from kickstand.core.uapi import ExitReason, MpState
from kickstand.core.vcpu import Vcpu
from kickstand.journal.form.exits import Access, UserExit
from kickstand.journal.form.part import Count, Part, Unsigned, Vector

LONGEST_REPLY = 1 << 16
ReplyBytes = Annotated[bytes, Field(max_length=LONGEST_REPLY)]
Bitmap = Annotated[int, Field(ge=0, lt=1 << 256)]  # of vectors


class Apic(Part):
    """A local APIC. ``page``: its registers but for the bitmaps; times are those of the VM's clock."""

    base: Annotated[int, Field(ge=0, lt=1 << 52)]
    registers_kept: Annotated[bytes, Field(min_length=REGISTERS, max_length=REGISTERS)]
    irr: Bitmap
    isr: Bitmap
    tmr: Bitmap
    expires: Count | None
    period: Count
    tsc_deadline: Unsigned
    reports_tpr: bool = False
    vapic: Unsigned | None = None


class Arch(Part):
    """``vcpu->arch``."""

    mp_state: MpState
    pending: Access | None
    nmi: bool
    init: bool
    sipi: Vector | None
    extint: bool = False
    external: Vector | None = None
    eoi_exit: Vector | None = None
    tpr_access: tuple[Unsigned, bool] | None = None
    apic: Apic | None = None

    def into(self, live: VcpuArch) -> None:
        """``ValueError``: an APIC that the machine has no place for."""
        apic = live.apic
        super().into(live)
        live.apic = apic
        if self.apic is not None:
            if apic is None:
                raise ValueError("an APIC of a machine without irqchip")
            self.apic.into(apic)


class Page(Part):
    """``kvm_run``."""

    exit_reason: ExitReason
    exit: UserExit | None
    reply: ReplyBytes | None
    immediate_exit: bool
    kept: bool = False  # by the user; files from before do not say
    request_interrupt_window: bool


class Cpu(Part):
    """One vCPU; ``guest`` is for its engine."""

    arch: Arch
    page: Page
    signal: bool
    guest: dict[str, JsonValue]
    ring: Annotated[tuple[tuple[Unsigned, Unsigned], ...], Field(max_length=1 << 20)] = ()
    """(slot, page) of what its dirty ring has, and nobody has harvested."""

    @classmethod
    def of(cls, live: Vcpu) -> Self:
        return cls(
            arch=Arch.of(live.arch),
            page=Page.of(live.run_page),
            signal=live.task.signal,
            guest=live.guest.saved(),
            ring=() if live.dirty_ring is None else tuple(live.dirty_ring.unharvested()),
        )

    def into(self, live: Vcpu, program: object = ()) -> None:
        """Be again what ``of`` saw; ``program`` is a script guest's. Errors as the engine's ``load``."""
        self.arch.into(live.arch)
        self.page.into(live.run_page)
        live.task.signal = self.signal
        live.guest.load(self.guest, program, pending=self.arch.pending is not None)
        if live.dirty_ring is not None:
            for slot, page in self.ring:
                live.dirty_ring.push(slot, page)


PROGRAM: TypeAdapter[JsonValue] = TypeAdapter(JsonValue)  # the guest compiles it, which checks every step
COUNTERS: TypeAdapter[dict[str, list[int]]] = TypeAdapter(dict[str, list[Count]], config=ConfigDict(strict=True))


def counters(vcpus: Iterable[AnyVcpu]) -> bytes:
    """The part ``counters``: each vCPU's, in the order of their names."""
    return COUNTERS.dump_json({str(vcpu.id): list(vcpu.watched.counters.by_name().values()) for vcpu in vcpus})


def load_counters(part: Mapping[str, list[int]], vcpus: Iterable[AnyVcpu]) -> None:
    """Undo ``counters``; those that this program has more are zero."""
    for vcpu in vcpus:
        kept = part.get(str(vcpu.id), [])
        vcpu.watched.counters = Counters(*kept[: len(fields(Counters))])


CPU = TypeAdapter(Cpu)
