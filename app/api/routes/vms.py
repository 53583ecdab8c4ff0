"""Virtual machines: create, describe, destroy, kick, resume, interrupts."""

from __future__ import annotations

from fastapi import Request
from starlette.responses import Response

from kickstand.api.context import TheContext, TheMachine, while_connected
from kickstand.api.edge.replies import nothing, reply, reply_list, reply_long
from kickstand.api.operations import ROOT, VM, Operations
from kickstand.api.shapes import vms as shapes
from kickstand.runtime.machine import Machine
from kickstand.runtime.registry import Registry

all_vms = Operations("vms", *ROOT)
one_vm = Operations("vms", *VM)


@all_vms.get("/vms", answer=shapes.Vms)
async def list_vms(context: TheContext) -> Response:
    """List every VM with its whole state."""
    return await reply_list("vms", context.registry.describe())


@all_vms.post("/vms", answer=shapes.Vm, status=201, ioctl=Registry.create)
async def create_vm(context: TheContext, body: shapes.CreateVm | None = None) -> Response:
    """Create a VM, with vCPUs and their programs if so asked: all of it or nothing."""
    options = (body or shapes.CreateVm()).options()
    machine = await context.registry.create(options.pop("id"), **options)
    return await reply_long(machine.shape(), 201, {"Location": f"/vms/{machine.id}"})


@one_vm.get("", answer=shapes.Vm)
async def get_vm(machine: TheMachine) -> Response:
    """Describe a VM; nothing is taken, nobody is disturbed."""
    return await reply_long(machine.shape())


@one_vm.delete("", status=204)
async def delete_vm(context: TheContext, machine: TheMachine) -> Response:
    """Destroy a VM: parked runs and waiting ioctls end with EIO."""
    await context.registry.destroy(machine.id)
    return nothing()


@one_vm.post("/kick", answer=shapes.Kicked, ioctl=Machine.kick)
async def kick(request: Request, machine: TheMachine, body: shapes.Kick | None = None) -> Response:
    """Get every vCPU out of KVM_RUN, as the VM's variant does it."""
    return reply(await while_connected(request, machine.kick(body.timeout_ms if body else None)))


@one_vm.post("/resume", answer=shapes.Resumed, ioctl=Machine.resume)
async def resume(request: Request, machine: TheMachine) -> Response:
    """Let kicked vCPUs run again."""
    return reply(await while_connected(request, machine.resume()))


@one_vm.get("/locks", answer=shapes.Locks)
async def get_locks(machine: TheMachine) -> Response:
    """Describe the variant's lock: who holds it, who waits, in order and since when. Never takes it."""
    return reply(machine.locks())
