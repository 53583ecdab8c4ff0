"""The operations of an ioctl script, one model each.

The first three groups are the recorded format; the last is Kickstand's own: what a real KVM has no ioctl for.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from kickstand.core.arch.cpu.cpuid import MAX_ENTRIES
from kickstand.core.uapi import KVM_REGS
from kickstand.scripts.language.values import (
    U8,
    U32,
    U64,
    Bits,
    Flag,
    Hex,
    Host,
    Milliseconds,
    Model,
    MpStateValue,
    Name,
    Program,
    Registers,
    RequestCode,
    SpecialNames,
    SpecialRegisters,
)

MAX_ARENA = 1 << 40
STRUCTURE, DATA, ROOM = 0x1_0000_0000, 0x1_0001_0000, 0x4000  # of the operation ``ioctl``: addresses, bytes of each
Bytes = Annotated[str, StringConstraints(strict=True, pattern=r"^(?:[0-9a-fA-F]{2})*$", max_length=2 * ROOM)]
REGISTERS = KVM_REGS.names
Vcpu = U64


class Args(Model):
    """The arguments of one operation, named as its class: of ``set_memory_region`` they are ``SetMemoryRegion``."""


class OfArena(Args):
    arena: Name


class OfVcpu(Args):
    vcpu: Vcpu


# -- host memory ---------------------------------------------------------------------------------------------


class Arena(Args):
    name: Name
    size: Annotated[U64, Field(gt=0, le=MAX_ARENA)]


class WriteHost(OfArena):
    offset: U64
    hex: Hex


class FillPattern(OfArena):
    pass


class ReadHost(OfArena):
    offset: U64
    length: U64


class HashHost(OfArena):
    pass


# -- VM ------------------------------------------------------------------------------------------------------


class SetMemoryRegion(Args):
    slot: U32
    flags: U32
    gpa: U64
    size: U64
    host: Host


class GetDirtyLog(Args):
    slot: U32
    buffer_pages: U64 = 0


class ClearDirtyLog(Args):
    slot: U32
    first_page: U64
    num_pages: U32
    bits: Bits | None = None  # left out: all of them, which is Kickstand's own


class CreateIrqchip(Args):
    pass


class IrqLine(Args):
    irq: U32
    level: U32


class IrqLineStatus(IrqLine):
    pass


class OfChip(Args):
    chip_id: U32


class GetIrqchip(OfChip):
    pass


class SetIrqchip(OfChip):
    hex: Hex


class CreatePit(Args):
    flags: U32 = 0


class GetPit(Args):
    pass


class SetPit(Args):
    hex: Hex


class Route(Model):
    """To a pin (``irqchip``, ``pin``) or a message of its own (``address``, ``data``)."""

    gsi: U32
    irqchip: U32 | None = None
    pin: U32 = 0
    address: U64 | None = None
    data: U32 = 0
    flags: U32 = 0


class SetGsiRouting(Args):
    entries: Annotated[list[Route], Field(max_length=4096)]


class GetLapic(OfVcpu):
    pass


class SetLapic(OfVcpu):
    hex: Hex


class CreateVcpu(Args):
    id: Vcpu
    program: Program | None = None  # Kickstand's own: of a script guest


class RawIoctl(Args):
    on: Literal["system", "vm", "vcpu"]
    request: RequestCode
    vcpu: Vcpu | None = None


# -- vCPU ----------------------------------------------------------------------------------------------------


class SetCpuidSupported(OfVcpu):
    pass


class CpuidEntry(Model):
    """``kvm_cpuid_entry2``."""

    function: U32
    index: U32 = 0
    flags: U32 = 0
    eax: U32 = 0
    ebx: U32 = 0
    ecx: U32 = 0
    edx: U32 = 0


class SetCpuid(OfVcpu):
    entries: Annotated[list[CpuidEntry], Field(max_length=MAX_ENTRIES)]


class GetCpuid(OfVcpu):
    pass


class Msr(Model):
    """``kvm_msr_entry``."""

    index: U32
    data: U64


class SetMsrs(OfVcpu):
    msrs: Annotated[list[Msr], Field(max_length=255)]


class GetMsrs(OfVcpu):
    indices: Annotated[list[U32], Field(max_length=255)]


class SetSregs(OfVcpu):
    preset: Name | None = None
    changes: SpecialRegisters = Field(default_factory=dict)


class SetRegs(OfVcpu):
    regs: Registers


class ChangeRegs(OfVcpu):
    regs: Registers


class GetRegs(OfVcpu):
    pass


class GetSregs(OfVcpu):
    only: SpecialNames


class GetMpState(OfVcpu):
    pass


class SetMpState(OfVcpu):
    mp_state: MpStateValue


class Interrupt(OfVcpu):
    vector: U32


class Nmi(OfVcpu):
    pass


class SetRunFlag(OfVcpu):
    flag: Flag
    value: Annotated[U8 | bool, Field(union_mode="left_to_right")]


class Run(OfVcpu):
    reply: Hex | None = None
    kick_after_ms: Milliseconds | None = None
    immediate_exit: bool | None = None  # Kickstand's own: for this call only


class Ioctl(Args):
    """Any ioctl of the VM or (``vcpu``) of a vCPU that has no operation of its own.

    Its argument is ``number``, or the address of a structure: ``fields`` by name (the others are zero) or ``hex``. A
    pointer in it may be to ``data``, which lies at 0x100010000.
    """

    name: Name
    vcpu: Vcpu | None = None
    number: U64 | None = None
    fields: dict[str, Any] | None = None
    hex: Bytes = ""
    data: Bytes = ""


# -- Kickstand's own -----------------------------------------------------------------------------------------


class StartRun(OfVcpu):
    """KVM_RUN that the operations after it overlap with; ``finish_run`` has its answer."""

    reply: Hex | None = None
    immediate_exit: bool | None = None


class FinishRun(OfVcpu):
    pass


class Signal(OfVcpu):
    pass


class Coalesced(Args):
    """Take the coalesced writes."""


class DirtyRing(OfVcpu):
    """Harvest a vCPU's dirty ring."""


class Kick(Args):
    timeout_ms: Milliseconds | None = None


class Resume(Args):
    pass


class MemoryTransaction(Args):
    operations: Annotated[list[SetMemoryRegion], Field(min_length=1, max_length=1024)]
    protect: Literal["kick", "none", "list"] | None = None


class SignalMsi(Args):
    address: U64
    data: U32


class FillHost(OfArena):
    """``length`` times the same byte."""

    offset: U64
    length: U64
    byte: U8


class SetProgram(OfVcpu):
    program: Program


class StartThread(OfVcpu):
    behaviour: Literal["well", "careless"] = "well"
    handle_exits: bool = True


class StopThread(OfVcpu):
    pass


OPERATIONS: dict[str, type[Args]] = {
    re.sub("(?<!^)(?=[A-Z])", "_", model.__name__).lower(): model
    for model in list(globals().values())
    if isinstance(model, type) and issubclass(model, Args) and not model.__name__.startswith(("Args", "Of"))
}
