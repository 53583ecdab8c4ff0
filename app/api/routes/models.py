"""What is model-specific of a vCPU: its CPUID table and its MSRs."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request
from starlette.responses import Response

from kickstand.api.context import TheContext, TheMachine, while_connected
from kickstand.api.edge.replies import reply
from kickstand.api.operations import ROOT, VCPU, Operations
from kickstand.api.shapes import models as shapes
from kickstand.api.shapes.values import U32, VcpuId
from kickstand.core.arch.cpu.cpuid import Entry
from kickstand.core.arch.cpu.msrs import INDEX_LIST
from kickstand.runtime.ioctls.model import MAX_MSRS, table_of
from kickstand.runtime.machine import Machine
from kickstand.runtime.registry import Registry

router = Operations("vcpus", *VCPU)
system = Operations("system", *ROOT)
Indices = Annotated[
    list[U32], Query(max_length=MAX_MSRS - 1, description="MSRs to read; all that are worth saving without.")
]


@system.get("/kvm/cpuid", answer=shapes.CpuidTable, ioctl=Registry.get_supported_cpuid)
async def get_supported_cpuid(context: TheContext) -> Response:
    """List what an emulated vCPU can have; what is not here no guest can use."""
    return reply({"entries": table_of(await context.registry.get_supported_cpuid())})


@router.get("/{id}/cpuid", answer=shapes.CpuidTable, ioctl=Machine.get_cpuid2)
async def get_cpuid(machine: TheMachine, id: VcpuId) -> Response:
    """Read the table that the guest sees."""
    return reply({"entries": table_of(await machine.get_cpuid2(id))})


@router.put("/{id}/cpuid", answer=shapes.CpuidTable, ioctl=Machine.set_cpuid2)
async def set_cpuid(request: Request, machine: TheMachine, id: VcpuId, body: shapes.SetCpuid) -> Response:
    """Set the table, before the vCPU has been in guest mode."""
    entries = [Entry(**entry.model_dump()) for entry in body.entries]
    await while_connected(request, machine.set_cpuid2(id, entries))
    return reply({"entries": table_of(await machine.get_cpuid2(id))})


@router.get("/{id}/msrs", answer=shapes.Msrs, ioctl=Machine.get_msrs)
async def get_msrs(
    request: Request,
    machine: TheMachine,
    id: VcpuId,
    index: Indices = list(INDEX_LIST),  # noqa: B006 - never changed
) -> Response:
    """Read MSRs up to the first that there is not; waits for KVM_RUN to end."""
    return reply(await _msrs(request, machine, id, index))


@router.put("/{id}/msrs", answer=shapes.TakenMsrs, ioctl=Machine.set_msrs)
async def set_msrs(request: Request, machine: TheMachine, id: VcpuId, body: shapes.SetMsrs) -> Response:
    """Write MSRs in order, up to the first that cannot hold its value; says how many were taken."""
    msrs = [(msr.index, msr.data) for msr in body.msrs]
    return reply({"taken": await while_connected(request, machine.set_msrs(id, msrs))})


async def _msrs(request: Request, machine: Machine, id: int, indices: list[int]) -> dict[str, object]:
    values = await while_connected(request, machine.get_msrs(id, indices))
    return {"msrs": [{"index": hex(index), "data": hex(value)} for index, value in values]}
