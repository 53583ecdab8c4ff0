"""vCPUs: create, describe, registers, events, programs, server-side VMM threads. KVM_RUN is in ``runs``."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Body, Query, Request
from starlette.responses import Response

from kickstand.api.context import TheContext, TheMachine, while_connected
from kickstand.api.edge.replies import done, reply
from kickstand.api.operations import VCPU, Operations
from kickstand.api.shapes import values
from kickstand.api.shapes import vcpus as shapes
from kickstand.api.shapes.abi import Regs, RegsIn, Sregs, SregsIn
from kickstand.api.shapes.values import Done, VcpuId
from kickstand.core.trace import VcpuState
from kickstand.core.uapi import KVM_REGS, KVM_SREGS
from kickstand.runtime.machine import Machine

PAGE, LARGEST_PAGE = 1_000, 10_000
router = Operations("vcpus", *VCPU)
State = Annotated[VcpuState | None, Query(description="Only vCPUs in this state.")]
Limit = Annotated[int, Query(ge=1, le=LARGEST_PAGE, description="How many at most.")]
After = Annotated[int, Query(ge=-1, lt=1 << 32, description="Only ids above this one: `next` of the page before.")]
Program = Annotated[values.Program, Body()]


@router.get("", answer=shapes.Vcpus)
async def list_vcpus(machine: TheMachine, state: State = None, limit: Limit = PAGE, after: After = -1) -> Response:
    """List vCPUs by id, page by page."""
    found = [vcpu.id for vcpu in machine.vm.vcpus.values() if vcpu.id > after and state in (None, vcpu.watched.state)]
    page = sorted(found)[:limit]
    following = page[-1] if len(found) > limit else None
    return reply({"vcpus": [machine.describe_vcpu(vcpu_id) for vcpu_id in page], "next": following})


@router.post("", answer=shapes.Vcpu, status=201, ioctl=Machine.create_vcpu)
async def create_vcpu(request: Request, machine: TheMachine, body: shapes.CreateVcpu) -> Response:
    """Create a vCPU. A variant may hold the call while its window is open."""
    shape = await while_connected(request, machine.create_vcpu(body.id, body.program))
    return reply(shape, 201, {"Location": f"/vms/{machine.id}/vcpu/{body.id}"})


@router.get("/{id}", answer=shapes.Vcpu)
async def get_vcpu(machine: TheMachine, id: VcpuId) -> Response:
    """Describe a vCPU without disturbing it."""
    return reply(machine.describe_vcpu(id))


@router.get("/{id}/regs", answer=Regs, ioctl=Machine.get_regs)
async def get_regs(machine: TheMachine, id: VcpuId) -> Response:
    """Read the registers at the next instruction boundary; does not wait for KVM_RUN to end."""
    return reply(await _regs(machine, id))


@router.put("/{id}/regs", answer=Regs, ioctl=Machine.set_regs)
async def set_regs(request: Request, machine: TheMachine, id: VcpuId, body: RegsIn) -> Response:  # type: ignore[valid-type]  # made from the ABI
    """Set the named registers and leave the others; waits for KVM_RUN to end."""
    await while_connected(request, machine.set_regs(id, _named(body)))
    return reply(await _regs(machine, id))


@router.get("/{id}/sregs", answer=Sregs, ioctl=Machine.get_sregs)
async def get_sregs(machine: TheMachine, id: VcpuId) -> Response:
    """Read the special registers; does not wait for KVM_RUN to end."""
    return reply(await _sregs(machine, id))


@router.put("/{id}/sregs", answer=Sregs, ioctl=Machine.set_sregs)
async def set_sregs(request: Request, machine: TheMachine, id: VcpuId, body: SregsIn) -> Response:  # type: ignore[valid-type]  # made from the ABI
    """Set the named special registers, within segments too; waits for KVM_RUN to end."""
    await while_connected(request, machine.set_sregs(id, _named(body)))
    return reply(await _sregs(machine, id))


@router.get("/{id}/mp-state", answer=shapes.MpStateAnswer, ioctl=Machine.get_mp_state)
async def get_mp_state(machine: TheMachine, id: VcpuId) -> Response:
    """Read the multiprocessing state; does not wait for KVM_RUN to end."""
    return reply({"mp_state": (await machine.get_mp_state(id)).name})


@router.put("/{id}/mp-state", answer=shapes.MpStateAnswer, ioctl=Machine.set_mp_state)
async def set_mp_state(request: Request, machine: TheMachine, id: VcpuId, body: shapes.SetMpState) -> Response:
    """Set the multiprocessing state; waits for KVM_RUN to end."""
    await while_connected(request, machine.set_mp_state(id, body.mp_state))
    return reply({"mp_state": (await machine.get_mp_state(id)).name})


@router.post("/{id}/interrupt", answer=Done, ioctl=Machine.interrupt)
async def interrupt(request: Request, machine: TheMachine, id: VcpuId, body: shapes.Interrupt) -> Response:
    """Inject an interrupt; waits for KVM_RUN to end."""
    await while_connected(request, machine.interrupt(id, body.vector))
    return done(machine.log.seq)


@router.post("/{id}/nmi", answer=Done, ioctl=Machine.nmi)
async def nmi(request: Request, machine: TheMachine, id: VcpuId) -> Response:
    """Inject an NMI; waits for KVM_RUN to end."""
    await while_connected(request, machine.nmi(id))
    return done(machine.log.seq)


@router.post("/{id}/signal", answer=Done)
async def signal(machine: TheMachine, id: VcpuId) -> Response:
    """Send a signal to the vCPU's thread; without a KVM_RUN it stays pending for the next."""
    await machine.signal(id)
    return done(machine.log.seq)


@router.put("/{id}/program", answer=Done)
async def set_program(request: Request, machine: TheMachine, id: VcpuId, program: Program) -> Response:
    """Load a script guest's program, to start at its top; waits for KVM_RUN to end."""
    await while_connected(request, machine.set_program(id, program))
    return done(machine.log.seq)


@router.post("/{id}/start", answer=shapes.Vcpu)
async def start(context: TheContext, machine: TheMachine, id: VcpuId, body: shapes.Start | None = None) -> Response:
    """Start a VMM thread in the server that loops KVM_RUN."""
    asked = body or shapes.Start()
    await machine.start_thread(id, asked.behaviour, handle_exits=asked.handle_exits)
    context.while_watched.forget(machine, id)
    if asked.while_watched:
        context.while_watched.add(machine, id, asked.behaviour, handle_exits=asked.handle_exits)
    return reply(machine.describe_vcpu(id))


@router.post("/{id}/stop", answer=shapes.Vcpu)
async def stop(context: TheContext, machine: TheMachine, id: VcpuId) -> Response:
    """Stop the vCPU's VMM thread by a signal and wait for its end; nothing happens without one."""
    context.while_watched.forget(machine, id)
    await machine.stop_thread(id)
    return reply(machine.describe_vcpu(id))


async def _regs(machine: Machine, vcpu_id: int) -> dict[str, Any]:
    return KVM_REGS.to_json(await machine.get_regs(vcpu_id))


async def _sregs(machine: Machine, vcpu_id: int) -> dict[str, Any]:
    return KVM_SREGS.to_json(await machine.get_sregs(vcpu_id))


def _named(body: Any) -> dict[str, Any]:
    """The members that a request names."""
    named: dict[str, Any] = body.model_dump(exclude_none=True)
    return named
