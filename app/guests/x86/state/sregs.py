"""KVM_GET_SREGS and KVM_SET_SREGS: the special registers by their KVM names."""

from __future__ import annotations

import ctypes
import errno
from typing import TYPE_CHECKING, Any

from kickstand.core.arch.cpu.msrs import Refused, Situation, check_apic_base
from kickstand.core.errors import KvmError
from kickstand.guests.x86.state.control import allowed_cr4, is_legal_cr3, is_valid_cr0, is_valid_cr4
from kickstand.guests.x86.state.registers import CR0_PE, CR0_PG, CR4_PAE, EFER_LMA, EFER_LME, FLAG_VM, CpuState
from kickstand.guests.x86.state.segments import LONG_CODE, SEGMENT_NAMES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kickstand.core.arch.cpu.cpuid import Cpuid
    from kickstand.guests.x86.state.model import Model

_CR0_CD, _CR0_NW = 1 << 30, 1 << 29
_HIGHEST_PRIORITY = 15
_TABLES = ("gdt", "idt")
_CONTROLS = {"cr0": 0, "cr2": 2, "cr3": 3, "cr4": 4}
SREG_NAMES = frozenset((*SEGMENT_NAMES, "tr", "ldt", *_TABLES, *_CONTROLS, "cr8", "efer", "apic_base"))


def get_sregs(state: CpuState, apic_base: int) -> dict[str, Any]:
    """Return every special register."""
    values: dict[str, Any] = {name: cache.to_kvm() for name, cache in zip(SEGMENT_NAMES, state.segment, strict=True)}
    values["tr"], values["ldt"] = state.tr.to_kvm(), state.ldt.to_kvm()
    for name in _TABLES:
        table = getattr(state, name)
        values[name] = {"base": table.base, "limit": table.limit}
    values |= {name: state.cr[index] for name, index in _CONTROLS.items()}
    return values | {"cr8": state.cr8, "efer": state.efer, "apic_base": apic_base}


def interrupt_bitmap(waiting: int | None) -> list[int]:
    """The four words of a bitmap with this vector in it."""
    bitmap = 0 if waiting is None else 1 << waiting
    return [bitmap >> shift & (1 << 64) - 1 for shift in range(0, 256, 64)]


def first_vector(words: Sequence[int]) -> int | None:
    """The lowest vector of a bitmap (``find_first_bit``)."""
    bitmap = sum(word << 64 * index for index, word in enumerate(words))
    return (bitmap & -bitmap).bit_length() - 1 if bitmap else None


def set_sregs(state: CpuState, changes: Mapping[str, Any], model: Model) -> None:
    """Set the named registers (``__set_sregs``); EINVAL without effect for a combination no CPU can have."""
    unknown = set(changes) - SREG_NAMES
    if unknown:
        raise _invalid(f"no special register is called {min(unknown)}", min(unknown))
    after = CpuState.from_buffer_copy(state)
    _assign(after, changes)
    _check(after, model.cpuid)
    _set_apic_base(changes.get("apic_base", model.apic_base), model)
    ctypes.memmove(ctypes.addressof(state), ctypes.addressof(after), ctypes.sizeof(state))
    state.update_hidden_flags()


def _set_apic_base(apic_base: int, model: Model) -> None:
    if apic_base == model.apic_base:
        return
    try:
        model.apic_base = check_apic_base(apic_base, model.apic_base, Situation(model.cpuid, host=True))
    except Refused:
        raise _invalid("the APIC base has reserved bits, or x2APIC mode without being enabled", "apic_base") from None


def _assign(state: CpuState, changes: Mapping[str, Any]) -> None:
    for index, name in enumerate(SEGMENT_NAMES):
        if name in changes:
            state.segment[index].from_kvm(changes[name])
    for name in ("tr", "ldt"):
        if name in changes:
            getattr(state, name).from_kvm(changes[name])
    for name in _TABLES:
        if name in changes:
            table = getattr(state, name)
            table.base = changes[name].get("base", table.base)
            table.limit = changes[name].get("limit", table.limit) & 0xFFFF
    for name, index in _CONTROLS.items():
        if name in changes:
            state.cr[index] = changes[name]
    if changes.get("cr8", 0) <= _HIGHEST_PRIORITY:  # ``kvm_set_cr8`` refuses others, and nobody looks
        state.cr8 = changes.get("cr8", state.cr8)
    state.efer = changes.get("efer", state.efer)


def _check(state: CpuState, cpuid: Cpuid) -> None:
    """``kvm_is_valid_sregs``. EFER is looked at no further: what a guest may not write, userspace may."""
    cr0, cr4, efer = state.cr[0], state.cr[4], state.efer
    if efer & EFER_LME and cr0 & CR0_PG:
        if not cr4 & CR4_PAE or not efer & EFER_LMA:
            raise _invalid("long mode with paging needs CR4.PAE and EFER.LMA", "efer")
        if not is_legal_cr3(state.cr[3], cpuid):
            raise _invalid("CR3 is not a guest-physical address", "cr3")
    elif efer & EFER_LMA or state.segment[1].long:
        raise _invalid("EFER.LMA and 64-bit code need long mode with paging", "efer")
    if not is_valid_cr4(cr4, cpuid):
        raise _invalid("CR4 has reserved bits, or those of a feature that CPUID lacks", "cr4")
    if not is_valid_cr0(cr0):
        raise _invalid("CR0 has upper bits, NW without CD, or PG without PE", "cr0")


def make_consistent(state: CpuState, cpuid: Cpuid) -> None:
    """Clear what keeps the state from being one of a CPU: bits that do not exist, modes without what they need."""
    cr0 = state.cr[0] & 0xFFFFFFFF
    if cr0 & _CR0_NW and not cr0 & _CR0_CD:
        cr0 &= ~_CR0_NW
    if cr0 & CR0_PG and not cr0 & CR0_PE:
        cr0 &= ~CR0_PG
    state.cr[0] = cr0
    state.cr[4] &= allowed_cr4(cpuid)
    state.cr8 &= _HIGHEST_PRIORITY
    if state.efer & EFER_LME and cr0 & CR0_PG:
        state.efer |= EFER_LMA
        state.cr[4] |= CR4_PAE
        state.cr[3] &= ~cpuid.reserved_gpa_bits
        state.eflags &= ~FLAG_VM
    else:
        state.efer &= ~EFER_LMA
        state.segment[1].flags &= ~LONG_CODE
    state.update_hidden_flags()
    state.update_float_modes()


def assign_sregs(state: CpuState, values: Mapping[str, Any]) -> None:
    """Set the named registers without a check; ``make_consistent`` afterwards."""
    _assign(state, values)


def _invalid(detail: str, field: str) -> KvmError:
    return KvmError(errno.EINVAL, "KVM_SET_SREGS", detail, field=field)
