"""Interrupt controllers in the kernel: lines, messages, routing, and the state of each controller."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Request
from starlette.responses import Response

from kickstand.api.context import TheMachine, while_connected
from kickstand.api.edge.replies import done, reply
from kickstand.api.operations import VCPU, VM, Operations
from kickstand.api.shapes import irqchip as shapes
from kickstand.api.shapes.values import Done, VcpuId
from kickstand.core.uapi import Cap
from kickstand.runtime.machine import Machine

of_vm = Operations("irqchip", *VM)
of_vcpu = Operations("irqchip", *VCPU)
Chip = Annotated[int, Path(ge=0, le=2, description="0: master 8259, 1: slave 8259, 2: IOAPIC.")]


@of_vm.post("/irqchip", answer=Done, ioctl=Machine.create_irqchip)
async def create_irqchip(machine: TheMachine, body: shapes.CreateIrqchip | None = None) -> Response:
    """Create the in-kernel interrupt controllers, or of a split irqchip the local APICs; before the first vCPU."""
    if body is not None and body.split:
        await machine.enable_cap(Cap.SPLIT_IRQCHIP, 0, [body.pins])
    else:
        await machine.create_irqchip()
    return done(machine.log.seq)


@of_vm.get("/irqchip/{chip}", answer=shapes.ChipState, ioctl=Machine.get_irqchip)
async def get_irqchip(machine: TheMachine, chip: Chip) -> Response:
    """Read the state of one controller: the 512 bytes of ``kvm_irqchip.chip``."""
    return reply({"state": (await machine.get_irqchip(chip))[1].hex()})


@of_vm.put("/irqchip/{chip}", answer=Done, ioctl=Machine.set_irqchip)
async def set_irqchip(machine: TheMachine, chip: Chip, body: shapes.ChipStateIn) -> Response:
    """Put the state of one controller back; what is shorter than the structure ends in zeros."""
    await machine.set_irqchip(chip, body.bytes_of(512))
    return done(machine.log.seq)


@of_vm.put("/gsi-routing", answer=Done, ioctl=Machine.set_gsi_routing)
async def set_gsi_routing(machine: TheMachine, body: shapes.GsiRouting) -> Response:
    """Say where every interrupt line goes: all at once."""
    await machine.set_gsi_routing([route.entry() for route in body.entries])
    return done(machine.log.seq)


@of_vm.post("/irq-line", answer=Done, ioctl=Machine.irq_line)
async def irq_line(machine: TheMachine, body: shapes.IrqLine) -> Response:
    """Set the level of an interrupt line."""
    await machine.irq_line(body.irq, body.level)
    return done(machine.log.seq)


@of_vm.post("/msi", answer=shapes.MsiDone, ioctl=Machine.signal_msi)
async def signal_msi(machine: TheMachine, body: shapes.Msi) -> Response:
    """Send a message-signalled interrupt, in the delivery mode that its data say."""
    delivered = await machine.signal_msi(body.target(), body.data, body.flags) > 0
    return done(machine.log.seq, ret=int(delivered), delivered=delivered)


@of_vm.post("/pit", answer=Done, ioctl=Machine.create_pit)
async def create_pit(machine: TheMachine, body: shapes.CreatePit | None = None) -> Response:
    """Create the 8254 timer."""
    await machine.create_pit((body or shapes.CreatePit()).flags)
    return done(machine.log.seq)


@of_vm.get("/pit", answer=shapes.ChipState, ioctl=Machine.get_pit)
async def get_pit(machine: TheMachine) -> Response:
    """Read the state of the 8254: ``kvm_pit_state2``."""
    return reply({"state": (await machine.get_pit()).hex()})


@of_vm.put("/pit", answer=Done, ioctl=Machine.set_pit)
async def set_pit(machine: TheMachine, body: shapes.ChipStateIn) -> Response:
    """Put the state of the 8254 back."""
    await machine.set_pit(body.bytes_of(112))
    return done(machine.log.seq)


@of_vcpu.get("/{id}/lapic", answer=shapes.ChipState, ioctl=Machine.get_lapic)
async def get_lapic(machine: TheMachine, id: VcpuId) -> Response:
    """Read the registers of a local APIC: the 1,024 bytes of its page; waits for KVM_RUN to end."""
    return reply({"state": (await machine.get_lapic(id)).hex()})


@of_vcpu.put("/{id}/lapic", answer=Done, ioctl=Machine.set_lapic)
async def set_lapic(request: Request, machine: TheMachine, id: VcpuId, body: shapes.ChipStateIn) -> Response:
    """Set the registers of a local APIC; waits for KVM_RUN to end."""
    await while_connected(request, machine.set_lapic(id, body.bytes_of(1024)))
    return done(machine.log.seq)


@of_vcpu.put("/{id}/tpr-access-reporting", answer=Done, ioctl=Machine.report_tpr_access)
async def report_tpr_access(
    request: Request, machine: TheMachine, id: VcpuId, body: shapes.TprAccessReporting
) -> Response:
    """Leave KVM_RUN whenever the guest has accessed its task priority in the APIC's page."""
    await while_connected(request, machine.report_tpr_access(id, int(body.enabled)))
    return done(machine.log.seq)


@of_vcpu.put("/{id}/vapic-addr", answer=Done, ioctl=Machine.set_vapic_addr)
async def set_vapic_addr(request: Request, machine: TheMachine, id: VcpuId, body: shapes.VapicAddr) -> Response:
    """Keep the task priority in a word of guest memory as well; 0: no more."""
    await while_connected(request, machine.set_vapic_addr(id, body.vapic_addr))
    return done(machine.log.seq)


@of_vcpu.get("/{id}/interrupts", answer=shapes.PendingInterrupts)
async def get_interrupts(machine: TheMachine, id: VcpuId) -> Response:
    """Tell which interrupts are pending and, of a vCPU that sleeps, what would wake it; disturbs nothing."""
    return reply(machine.describe_interrupts(id))
