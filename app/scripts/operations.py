"""The operations of an ioctl script, one model each.

The first three groups are the recorded format; the last is Kickstand's own: what a real KVM has no ioctl for.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from app.core.uapi import KVM_REGS
from app.scripts.values import (
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
REGISTERS = KVM_REGS.names
Vcpu = U64


class Args(Model):
    """The arguments of one operation."""


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
    bits: Bits


class CreateIrqchip(Args):
    pass


class IrqLine(Args):
    irq: U32
    level: U32


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


# -- Kickstand's own -----------------------------------------------------------------------------------------


class StartRun(OfVcpu):
    """KVM_RUN that the operations after it overlap with; ``finish_run`` has its answer."""

    reply: Hex | None = None
    immediate_exit: bool | None = None


class FinishRun(OfVcpu):
    pass


class Signal(OfVcpu):
    pass


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
    "arena": Arena,
    "write_host": WriteHost,
    "fill_pattern": FillPattern,
    "read_host": ReadHost,
    "hash_host": HashHost,
    "set_memory_region": SetMemoryRegion,
    "get_dirty_log": GetDirtyLog,
    "clear_dirty_log": ClearDirtyLog,
    "create_irqchip": CreateIrqchip,
    "irq_line": IrqLine,
    "create_vcpu": CreateVcpu,
    "raw_ioctl": RawIoctl,
    "set_cpuid_supported": SetCpuidSupported,
    "set_sregs": SetSregs,
    "set_regs": SetRegs,
    "change_regs": ChangeRegs,
    "get_regs": GetRegs,
    "get_sregs": GetSregs,
    "get_mp_state": GetMpState,
    "set_mp_state": SetMpState,
    "interrupt": Interrupt,
    "nmi": Nmi,
    "set_run_flag": SetRunFlag,
    "run": Run,
    "start_run": StartRun,
    "finish_run": FinishRun,
    "signal": Signal,
    "kick": Kick,
    "resume": Resume,
    "memory_transaction": MemoryTransaction,
    "signal_msi": SignalMsi,
    "fill_host": FillHost,
    "set_program": SetProgram,
    "start_thread": StartThread,
    "stop_thread": StopThread,
}
