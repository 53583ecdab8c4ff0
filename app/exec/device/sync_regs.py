"""KVM_CAP_SYNC_REGS: registers that pass through the run page instead of through ioctls.

The program may write the page while it is read here: each set is copied once, and checked as its ioctl checks it.
"""

from __future__ import annotations

import errno
import struct

from kickstand.core.errors import KvmError
from kickstand.core.guest import Modelled, is_modelled
from kickstand.core.kvm_main import AnyVcpu
from kickstand.core.uapi import KVM_REGS, KVM_RUN, KVM_SREGS, KVM_VCPU_EVENTS
from kickstand.core.wiring.vcpu_events import get_events, set_events

REGS, SREGS, EVENTS = 1, 2, 4
FIELDS = REGS | SREGS | EVENTS
_MASKS = struct.Struct("=2Q")
_MASKS_AT = KVM_RUN.offset("kvm_valid_regs")
_DIRTY_AT = KVM_RUN.offset("kvm_dirty_regs")
_REGS_AT = KVM_RUN.offset("sync_regs")
_SREGS_AT = _REGS_AT + KVM_REGS.size
_EVENTS_AT = _SREGS_AT + KVM_SREGS.size


def load(view: memoryview, vcpu: AnyVcpu) -> int:
    """``sync_regs``: 0, or -EINVAL for sets that there are not, or for what their ioctls refuse."""
    valid, dirty = _MASKS.unpack_from(view, _MASKS_AT)
    if not valid | dirty:
        return 0
    guest = vcpu.guest
    if (valid | dirty) & ~FIELDS or not is_modelled(guest):
        return -errno.EINVAL
    try:
        _take_over(view, vcpu, guest, dirty)
    except KvmError as error:
        return -error.errno
    return 0


def _take_over(view: memoryview, vcpu: AnyVcpu, guest: Modelled, dirty: int) -> None:
    if dirty & REGS:
        vcpu.guest.set_registers(KVM_REGS.unpack(_copy(view, _REGS_AT, KVM_REGS.size)))
        _clear(view, REGS)
    if dirty & SREGS:
        sregs = KVM_SREGS.unpack(_copy(view, _SREGS_AT, KVM_SREGS.size))
        vcpu.guest.set_special_registers(sregs)
        if vcpu.apic is not None:
            vcpu.apic.set_base(sregs["apic_base"])
        _clear(view, SREGS)
    if dirty & EVENTS:
        set_events(vcpu, guest, KVM_VCPU_EVENTS.unpack(_copy(view, _EVENTS_AT, KVM_VCPU_EVENTS.size)))
        _clear(view, EVENTS)


def store(view: memoryview, vcpu: AnyVcpu) -> None:
    """``store_regs``: the sets that the program wants to see."""
    valid, _ = _MASKS.unpack_from(view, _MASKS_AT)
    guest = vcpu.guest
    if not valid & FIELDS or not is_modelled(guest):
        return
    if valid & REGS:
        _put(view, _REGS_AT, KVM_REGS.pack(vcpu.guest.registers()))
    if valid & SREGS:
        _put(view, _SREGS_AT, KVM_SREGS.pack(vcpu.guest.special_registers()))
    if valid & EVENTS:
        events: dict[str, object] = {"smi": dict.fromkeys(("smm", "pending", "smm_inside_nmi", "latched_init"), 0)}
        events |= {"triple_fault": {"pending": 0}, "exception_has_payload": 0, "exception_payload": 0}
        _put(view, _EVENTS_AT, KVM_VCPU_EVENTS.pack(events | get_events(vcpu, guest)))


def _copy(view: memoryview, at: int, size: int) -> bytes:
    return bytes(view[at : at + size])


def _put(view: memoryview, at: int, data: bytes) -> None:
    view[at : at + len(data)] = data


def _clear(view: memoryview, field: int) -> None:
    (dirty,) = struct.unpack_from("=Q", view, _DIRTY_AT)
    struct.pack_into("=Q", view, _DIRTY_AT, dirty & ~field)
