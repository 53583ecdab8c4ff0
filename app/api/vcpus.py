"""vCPUs: create, describe, registers, events, programs, server-side VMM threads. KVM_RUN is in ``runs``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, cast

from fastapi import Body, Query, Request
from starlette.responses import Response

from app.api import answers, schemas
from app.api.context import TheContext, TheMachine, while_connected
from app.api.operations import VCPU, Operations
from app.api.replies import done, reply
from app.api.schemas import VcpuId
from app.core.trace import VcpuState
from app.core.uapi import KVM_REGS, KVM_SREGS
from app.runtime.machine import Machine

PAGE, LARGEST_PAGE = 1_000, 10_000
router = Operations("vcpus", *VCPU)
State = Annotated[VcpuState | None, Query(description="Only vCPUs in this state.")]
Limit = Annotated[int, Query(ge=1, le=LARGEST_PAGE)]
After = Annotated[int, Query(description="Only ids above this one: `next` of the page before.")]
Program = Annotated[list[Any], Body(description="A list of steps.", examples=[[["read", 4096], ["hlt"]]])]


@router.get("", answer=answers.Vcpus)
async def list_vcpus(machine: TheMachine, state: State = None, limit: Limit = PAGE, after: After = -1) -> Response:
    """List vCPUs by id, page by page."""
    found = [vcpu.id for vcpu in machine.vm.vcpus.values() if vcpu.id > after and state in (None, vcpu.watched.state)]
    page = sorted(found)[:limit]
    following = page[-1] if len(found) > limit else None
    return reply({"vcpus": [machine.describe_vcpu(vcpu_id) for vcpu_id in page], "next": following})


@router.post("", answer=answers.VcpuShape, status=201, ioctl="KVM_CREATE_VCPU")
async def create_vcpu(request: Request, context: TheContext, machine: TheMachine, body: schemas.CreateVcpu) -> Response:
    """Create a vCPU. A variant may hold the call while its window is open."""
    context.admit_vcpu(machine)
    shape = await while_connected(request, machine.create_vcpu(body.id, body.program))
    return reply(shape, 201, {"Location": f"/vms/{machine.id}/vcpu/{body.id}"})


@router.get("/{id}", answer=answers.VcpuShape)
async def get_vcpu(machine: TheMachine, id: VcpuId) -> Response:
    """Describe a vCPU without disturbing it."""
    return reply(machine.describe_vcpu(id))


@router.get("/{id}/regs", answer=schemas.Regs, ioctl="KVM_GET_REGS")
async def get_regs(machine: TheMachine, id: VcpuId) -> Response:
    """Read the registers at the next instruction boundary; does not wait for KVM_RUN to end."""
    return reply(await _regs(machine, id))


@router.put("/{id}/regs", answer=schemas.Regs, ioctl="KVM_SET_REGS")
async def set_regs(request: Request, machine: TheMachine, id: VcpuId, body: schemas.RegsIn) -> Response:  # type: ignore[valid-type]  # made from the ABI
    """Set the named registers and leave the others; waits for KVM_RUN to end."""
    await while_connected(request, machine.set_regs(id, _named(body)))
    return reply(await _regs(machine, id))


@router.get("/{id}/sregs", answer=schemas.Sregs, ioctl="KVM_GET_SREGS")
async def get_sregs(machine: TheMachine, id: VcpuId) -> Response:
    """Read the special registers; does not wait for KVM_RUN to end."""
    return reply(await _sregs(machine, id))


@router.put("/{id}/sregs", answer=schemas.Sregs, ioctl="KVM_SET_SREGS")
async def set_sregs(request: Request, machine: TheMachine, id: VcpuId, body: schemas.SregsIn) -> Response:  # type: ignore[valid-type]  # made from the ABI
    """Set the named special registers, within segments too; waits for KVM_RUN to end."""
    now = await machine.get_sregs(id)
    merged = {name: _over(now.get(name), new) for name, new in _named(body).items()}
    await while_connected(request, machine.set_sregs(id, merged))
    return reply(await _sregs(machine, id))


@router.get("/{id}/mp-state", answer=answers.MpStateShape, ioctl="KVM_GET_MP_STATE")
async def get_mp_state(machine: TheMachine, id: VcpuId) -> Response:
    """Read the multiprocessing state; does not wait for KVM_RUN to end."""
    return reply({"mp_state": (await machine.get_mp_state(id)).name})


@router.put("/{id}/mp-state", answer=answers.MpStateShape, ioctl="KVM_SET_MP_STATE")
async def set_mp_state(request: Request, machine: TheMachine, id: VcpuId, body: schemas.SetMpState) -> Response:
    """Set the multiprocessing state; waits for KVM_RUN to end."""
    await while_connected(request, machine.set_mp_state(id, body.mp_state))
    return reply({"mp_state": (await machine.get_mp_state(id)).name})


@router.post("/{id}/interrupt", answer=answers.Done, ioctl="KVM_INTERRUPT")
async def interrupt(request: Request, machine: TheMachine, id: VcpuId, body: schemas.Interrupt) -> Response:
    """Inject an interrupt; waits for KVM_RUN to end."""
    await while_connected(request, machine.interrupt(id, body.vector))
    return done(machine.log.seq)


@router.post("/{id}/nmi", answer=answers.Done, ioctl="KVM_NMI")
async def nmi(request: Request, machine: TheMachine, id: VcpuId) -> Response:
    """Inject an NMI; waits for KVM_RUN to end."""
    await while_connected(request, machine.nmi(id))
    return done(machine.log.seq)


@router.post("/{id}/signal", answer=answers.Done)
async def signal(machine: TheMachine, id: VcpuId) -> Response:
    """Send a signal to the vCPU's thread; without a KVM_RUN it stays pending for the next."""
    machine.signal(id)
    await machine.committed(id)
    return done(machine.log.seq)


@router.put("/{id}/program", answer=answers.Done)
async def set_program(request: Request, machine: TheMachine, id: VcpuId, program: Program) -> Response:
    """Load a script guest's program, to start at its top; waits for KVM_RUN to end."""
    await while_connected(request, machine.set_program(id, program))
    return done(machine.log.seq)


@router.post("/{id}/start", answer=answers.VcpuShape)
async def start(machine: TheMachine, id: VcpuId, body: schemas.Start | None = None) -> Response:
    """Start a VMM thread in the server that loops KVM_RUN."""
    asked = body or schemas.Start()
    machine.start_thread(id, asked.behaviour, handle_exits=asked.handle_exits)
    await machine.committed(id)
    return reply(machine.describe_vcpu(id))


@router.post("/{id}/stop", answer=answers.VcpuShape)
async def stop(machine: TheMachine, id: VcpuId) -> Response:
    """Stop the vCPU's VMM thread by a signal and wait for its end; nothing happens without one."""
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


def _over(old: Any, new: Any) -> Any:
    """Overlay one member: a segment keeps what is not named."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return {**cast("Mapping[str, object]", old), **cast("Mapping[str, object]", new)}
    return new
