"""KVM_GET_VCPU_EVENTS and KVM_SET_VCPU_EVENTS: what waits in the engine and what waits in ``vcpu->arch``.

Called with the vCPU's mutex held.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any

from kickstand.core.errors import KvmError
from kickstand.core.guest import Modelled
from kickstand.core.kvm_main import AnyVcpu
from kickstand.core.uapi import MpState

SET_EVENTS = "KVM_SET_VCPU_EVENTS"
_VALID_SIPI, _VALID_SMM = 2, 8


def get_events(vcpu: AnyVcpu, guest: Modelled) -> dict[str, Any]:
    """``struct kvm_vcpu_events``."""
    events = guest.structures.events
    events["nmi"]["pending"] |= int(vcpu.arch.nmi)
    return {**events, "sipi_vector": 0}


def set_events(vcpu: AnyVcpu, guest: Modelled, events: Mapping[str, Any]) -> None:
    """EINVAL: unknown flags, a vector that is no exception's, or system management mode."""
    if events["flags"] & _VALID_SMM and (events["smi"]["smm"] or events["smi"]["pending"]):
        raise KvmError(errno.EINVAL, SET_EVENTS, "there is no system management mode", field="smi")
    guest.structures.events = dict(events)
    vcpu.arch.nmi = False
    if events["flags"] & _VALID_SIPI and vcpu.arch.mp_state is MpState.INIT_RECEIVED:
        vcpu.arch.sipi = events["sipi_vector"]
