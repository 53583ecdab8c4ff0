"""What is model-specific of a vCPU: CPUID tables and MSRs."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from kickstand.api.shapes.values import U32, U64, Body, Hex
from kickstand.core.arch.cpu.cpuid import MAX_ENTRIES

MOST_MSRS = 255


class CpuidEntryIn(Body):
    """``kvm_cpuid_entry2``."""

    function: U32
    index: U32 = 0
    flags: U32 = 0
    eax: U32 = 0
    ebx: U32 = 0
    ecx: U32 = 0
    edx: U32 = 0


class SetCpuid(Body):
    """``kvm_cpuid2``."""

    entries: Annotated[list[CpuidEntryIn], Field(max_length=MAX_ENTRIES, fail_fast=True)]


class MsrIn(Body):
    """``kvm_msr_entry``."""

    index: U32
    data: U64


class SetMsrs(Body):
    """``kvm_msrs``."""

    msrs: Annotated[list[MsrIn], Field(max_length=MOST_MSRS, fail_fast=True)]


class CpuidEntry(BaseModel):
    """``kvm_cpuid_entry2``."""

    function: Hex
    index: Hex
    flags: Hex
    eax: Hex
    ebx: Hex
    ecx: Hex
    edx: Hex


class CpuidTable(BaseModel):
    """``kvm_cpuid2``."""

    entries: list[CpuidEntry]


class Msr(BaseModel):
    """``kvm_msr_entry``."""

    index: Hex
    data: Hex


class Msrs(BaseModel):
    """``kvm_msrs``."""

    msrs: list[Msr]


class TakenMsrs(BaseModel):
    """How many MSRs were taken, in order."""

    taken: int = Field(ge=0, le=MOST_MSRS)
