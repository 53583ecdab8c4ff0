"""Virtual machines: create, describe, destroy, kick, resume, interrupts."""

from __future__ import annotations

from fastapi import Request
from starlette.responses import Response

from app.api import answers, schemas
from app.api.context import TheContext, TheMachine, while_connected
from app.api.operations import ROOT, VM, Operations
from app.api.replies import done, nothing, reply

all_vms = Operations("vms", *ROOT)
one_vm = Operations("vms", *VM)


@all_vms.get("/vms", answer=answers.Vms)
async def list_vms(context: TheContext) -> Response:
    """List every VM with its whole state."""
    return reply({"vms": context.registry.describe()})


@all_vms.post("/vms", answer=answers.VmShape, status=201, ioctl="KVM_CREATE_VM")
async def create_vm(context: TheContext, body: schemas.CreateVm | None = None) -> Response:
    """Create a VM, with vCPUs and their programs if so asked: all of it or nothing."""
    options = dict(body or schemas.CreateVm())
    machine = await context.registry.create(options.pop("id"), **options)
    return reply(machine.describe(), 201, {"Location": f"/vms/{machine.id}"})


@one_vm.get("", answer=answers.VmShape)
async def get_vm(machine: TheMachine) -> Response:
    """Describe a VM; nothing is taken, nobody is disturbed."""
    return reply(machine.describe())


@one_vm.delete("", status=204)
async def delete_vm(context: TheContext, machine: TheMachine) -> Response:
    """Destroy a VM: parked runs and waiting ioctls end with EIO."""
    await context.registry.destroy(machine.id)
    return nothing()


@one_vm.post("/kick", answer=answers.Kicked, ioctl="KVM_KICK_ALL_RUNNING_VCPUS")
async def kick(request: Request, machine: TheMachine, body: schemas.Kick | None = None) -> Response:
    """Get every vCPU out of KVM_RUN, as the VM's variant does it."""
    return reply(await while_connected(request, machine.kick(body.timeout_ms if body else None)))


@one_vm.post("/resume", answer=answers.Resumed, ioctl="KVM_RESUME_ALL_KICKED_VCPUS")
async def resume(request: Request, machine: TheMachine) -> Response:
    """Let kicked vCPUs run again."""
    return reply(await while_connected(request, machine.resume()))


@one_vm.get("/locks", answer=answers.Locks)
async def get_locks(machine: TheMachine) -> Response:
    """Describe the variant's lock: who holds it, who waits, in order and since when. Never takes it."""
    return reply(machine.locks())


@one_vm.post("/irqchip", answer=answers.Done, ioctl="KVM_CREATE_IRQCHIP")
async def create_irqchip(machine: TheMachine) -> Response:
    """Create the in-kernel interrupt controller; it must come before the first vCPU."""
    await machine.create_irqchip()
    return done(machine.log.seq)


@one_vm.post("/irq-line", answer=answers.Done, ioctl="KVM_IRQ_LINE")
async def irq_line(machine: TheMachine, body: schemas.IrqLine) -> Response:
    """Set the level of an interrupt line."""
    await machine.irq_line(body.irq, body.level)
    return done(machine.log.seq)


@one_vm.post("/msi", answer=answers.MsiDone, ioctl="KVM_SIGNAL_MSI")
async def signal_msi(machine: TheMachine, body: schemas.Msi) -> Response:
    """Send a message-signalled interrupt."""
    delivered = await machine.signal_msi(body.target(), body.data)
    return done(machine.log.seq, ret=int(delivered), delivered=delivered)
