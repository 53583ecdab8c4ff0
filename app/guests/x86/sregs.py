"""KVM_GET_SREGS and KVM_SET_SREGS: the special registers by their KVM names."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from app.core.errors import KvmError
from app.guests.x86.registers import CR0_PE, CR0_PG, CR4_PAE, EFER_LMA, EFER_LME, FLAG_VM, CpuState
from app.guests.x86.segments import LONG_CODE, SEGMENT_NAMES

if TYPE_CHECKING:
    from collections.abc import Mapping

_CR0_CD, _CR0_NW = 1 << 30, 1 << 29
_CR4_VALID = 0xFFFFFF & ~(1 << 15 | 1 << 19)
_EFER_VALID = 0x7D01  # SCE LME LMA NXE SVME LMSLE FFXSR
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


def set_sregs(state: CpuState, changes: Mapping[str, Any]) -> None:
    """Set the named registers; EINVAL without effect for a combination no CPU can have."""
    unknown = set(changes) - SREG_NAMES
    if unknown:
        raise _invalid(f"no special register is called {min(unknown)}", min(unknown))
    after = CpuState.from_buffer_copy(state)
    _assign(after, changes)
    _check(after, changes)
    _assign(state, changes)
    state.update_hidden_flags()


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
    state.cr8 = changes.get("cr8", state.cr8)
    state.efer = changes.get("efer", state.efer)


def _check(state: CpuState, changes: Mapping[str, Any]) -> None:
    """``kvm_is_valid_sregs``."""
    cr0, cr4, efer = state.cr[0], state.cr[4], state.efer
    if cr0 >> 32 or (cr0 & _CR0_NW and not cr0 & _CR0_CD) or (cr0 & CR0_PG and not cr0 & CR0_PE):
        raise _invalid("CR0 has upper bits, NW without CD, or PG without PE", "cr0")
    if cr4 & ~_CR4_VALID:
        raise _invalid("CR4 has reserved bits", "cr4")
    if efer & ~_EFER_VALID:
        raise _invalid("EFER has reserved bits", "efer")
    if changes.get("cr8", 0) > 15:  # noqa: PLR2004 - a task priority has four bits
        raise _invalid("CR8 is at most 15", "cr8")
    if efer & EFER_LME and cr0 & CR0_PG:
        if not cr4 & CR4_PAE or not efer & EFER_LMA:
            raise _invalid("long mode with paging needs CR4.PAE and EFER.LMA", "efer")
        if state.cr[3] >> 52:
            raise _invalid("CR3 is not a guest-physical address", "cr3")
    elif efer & EFER_LMA or state.segment[1].long:
        raise _invalid("EFER.LMA and 64-bit code need long mode with paging", "efer")
    if state.eflags & FLAG_VM and efer & EFER_LMA:
        raise _invalid("there is no virtual-8086 mode in long mode", "efer")


def make_consistent(state: CpuState) -> None:
    """Clear what keeps the state from being one of a CPU: bits that do not exist, modes without what they need."""
    cr0 = state.cr[0] & 0xFFFFFFFF
    if cr0 & _CR0_NW and not cr0 & _CR0_CD:
        cr0 &= ~_CR0_NW
    if cr0 & CR0_PG and not cr0 & CR0_PE:
        cr0 &= ~CR0_PG
    state.cr[0] = cr0
    state.cr[4] &= _CR4_VALID
    state.cr8 &= 15
    state.efer &= _EFER_VALID
    if not (state.efer & EFER_LME and cr0 & CR0_PG):
        state.efer &= ~EFER_LMA
    if state.efer & EFER_LMA:
        state.eflags &= ~FLAG_VM
    else:
        state.segment[1].flags &= ~LONG_CODE
    state.update_hidden_flags()
    state.update_float_modes()


def assign_sregs(state: CpuState, values: Mapping[str, Any]) -> None:
    """Set the named registers without a check; ``make_consistent`` afterwards."""
    _assign(state, values)


def _invalid(detail: str, field: str) -> KvmError:
    return KvmError(errno.EINVAL, "KVM_SET_SREGS", detail, field=field)
