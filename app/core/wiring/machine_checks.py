"""KVM_X86_SETUP_MCE and KVM_X86_SET_MCE: between a vCPU's banks, its local APIC and its requests."""

from __future__ import annotations

from kickstand.core.arch.cpu.mce import CMCI_P, MachineCheck, Signal
from kickstand.core.guest import Modelled
from kickstand.core.kvm_main import AnyVcpu
from kickstand.core.shared.requests import Request


async def set_up(vcpu: AnyVcpu, guest: Modelled, mcg_cap: int, tid: str) -> None:
    """Errors as ``mce.set_up``."""

    def change() -> None:
        guest.set_up_machine_checks(mcg_cap)
        if vcpu.apic is not None:
            vcpu.apic.set_cmci(present=bool(mcg_cap & CMCI_P))

    await vcpu.with_mutex(change, tid)


async def report(vcpu: AnyVcpu, guest: Modelled, error: MachineCheck, tid: str) -> None:
    """Errors as ``mce.report``."""
    signal = await vcpu.with_mutex(lambda: guest.machine_check(error), tid)
    if signal is Signal.SHUTDOWN:
        await vcpu.make_request(Request.TRIPLE_FAULT)
    elif signal is Signal.CMCI and await vcpu.arch.deliver_cmci():
        await vcpu.make_request(Request.EVENT)
        await vcpu.kick()
