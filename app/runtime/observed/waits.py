"""Which interrupts a vCPU has pending, and what would wake it if it sleeps: for observers, without an operation."""

from __future__ import annotations

from typing import Any

from kickstand.core.arch.irq.lapic import Lapic
from kickstand.core.arch.irq.registers import LVTT, MASKED, TASKPRI
from kickstand.core.trace import VcpuState
from kickstand.core.uapi import MpState
from kickstand.core.vcpu import Vcpu

ASLEEP = (VcpuState.HALTED, VcpuState.BLOCKED)
VECTORS = 256


def interrupts(vcpu: Vcpu, now: int) -> dict[str, Any]:
    """The shape of what is pending; ``now`` is the VM's time in ns, which its timers go by."""
    arch, apic = vcpu.arch, vcpu.apic
    asleep = vcpu.watched.state in ASLEEP
    return {
        "requested": [] if apic is None else list(apic.requested),
        "in_service": [] if apic is None else [vector for vector in reversed(range(VECTORS)) if apic.isr >> vector & 1],
        "task_priority": None if apic is None else apic.words[TASKPRI >> 2] & 0xFF,
        "nmi": arch.nmi,
        "init": arch.init,
        "sipi": arch.sipi,
        "extint": arch.extint or arch.external is not None,
        "timer": None if apic is None else _timer(apic, now),
        "asleep": asleep,
        "wakes": sorted(_wakes(vcpu, apic)) if asleep else [],
        "least_vector": _least_vector(vcpu, apic) if asleep else None,
    }


def _timer(apic: Lapic, now: int) -> dict[str, Any] | None:
    expires = apic.expires_after(now)
    if expires is None:
        return None
    entry = apic.words[LVTT >> 2]
    mode = apic.timer.name.lower()
    return {
        "due_ns": max(0, expires - now), "mode": mode, "vector": entry & 0xFF, "masked": bool(entry & MASKED),
    }  # fmt: skip


def _wakes(vcpu: Vcpu, apic: Lapic | None) -> set[str]:
    """By KVM's own rules (``kvm_vcpu_has_events``): what ends the sleep as it is now."""
    wakes = {"signal", "init"}
    mp_state = vcpu.arch.mp_state
    if mp_state is MpState.INIT_RECEIVED:
        return {*wakes, "sipi"}
    if mp_state is not MpState.HALTED or apic is None:
        return wakes
    wakes.add("nmi")
    if not vcpu.guest.interrupts_allowed():
        return wakes
    wakes.add("interrupt")
    if apic.takes_extint:
        wakes.add("extint")
    least = _least_vector(vcpu, apic)
    entry = apic.words[LVTT >> 2]
    if apic.expires is not None and not entry & MASKED and least is not None and entry & 0xFF >= least:
        wakes.add("timer")
    return wakes


def _least_vector(vcpu: Vcpu, apic: Lapic | None) -> int | None:
    """The lowest vector that the guest would take now."""
    if (
        apic is None
        or vcpu.arch.mp_state is not MpState.HALTED
        or not apic.accepts
        or not vcpu.guest.interrupts_allowed()
    ):
        return None
    least = (apic.processor_priority & 0xF0) + 0x10
    return least if least < VECTORS else None
