"""Memory: the VMM's own (host memory) and the guest's (slots, transactions, the dirty log)."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator
from typing import Annotated

from fastapi import Path, Query, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app.api import answers, schemas
from app.api.context import TheContext, TheMachine, while_connected
from app.api.guard import same_origin
from app.api.operations import BYTES, VM, Operations
from app.api.replies import nothing, reply
from app.api.schemas import SlotId
from app.core.errors import KvmError
from app.core.memslots import SET_MEMORY
from app.core.memslots import Region as CoreRegion
from app.runtime import views
from app.runtime.machine import Machine
from app.scripts.player import pattern

BLOCK = 1 << 20
PATTERN_UNITS = 1 << 16  # the pattern repeats after so many 32-bit units
router = Operations("memory", *VM)
HostAddress = Annotated[schemas.U64, Path(description="A host address, `0x...` or a number.")]
Length = Annotated[int | None, Query(ge=0, description="Bytes; by default to the end of the allocation.")]
RAW = {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}


@router.post("/host-memory", answer=answers.HostMemoryShape, status=201)
async def create_host_memory(machine: TheMachine, body: schemas.CreateHostMemory) -> Response:
    """Allocate host memory, as a VMM's mmap; zeroed, or filled."""
    unit = _fill_unit(body.fill)
    machine.admit("mmap")
    arena = machine.memory.allocate(body.size, body.name)
    for offset, block in _blocks(unit, arena.size):
        machine.memory.write(arena.base + offset, block)
        await asyncio.sleep(0)
    await machine.committed()
    return reply({"userspace_addr": hex(arena.base), "size": arena.size}, 201)


@router.get("/host-memory/{userspace_addr}", answer=BYTES)
async def read_host_memory(
    context: TheContext, machine: TheMachine, userspace_addr: HostAddress, length: Length = None
) -> Response:
    """Read host memory. EFAULT: not all of it is backed; E2BIG: over the limit of one answer."""
    if length is None:
        arena = machine.memory.find(userspace_addr)
        length = arena.base + arena.size - userspace_addr if arena else 1
    if length > context.settings.limits.body:
        raise KvmError(errno.E2BIG, "read", f"length is at most {context.settings.limits.body} (body)", field="length")
    return Response(machine.memory.read(userspace_addr, length), 200, None, "application/octet-stream")


@router.put("/host-memory/{userspace_addr}", status=204, body=RAW)
async def write_host_memory(request: Request, machine: TheMachine, userspace_addr: HostAddress) -> Response:
    """Write the body into host memory, all of it or nothing."""
    content = await request.body()
    machine.admit("write")
    machine.memory.write(userspace_addr, content)
    return nothing()


@router.get("/memory-regions", answer=answers.Regions)
async def list_memory_regions(machine: TheMachine) -> Response:
    """List the memory slots by number."""
    return reply({"regions": machine.regions()})


@router.put("/memory-regions/{slot}", answer=answers.RegionShape, ioctl=SET_MEMORY)
async def set_memory_region(request: Request, machine: TheMachine, slot: SlotId, body: schemas.RegionIn) -> Response:
    """Create, move or change a slot; `memory_size` 0 deletes it and answers 204."""
    if body.slot not in (None, slot):
        raise KvmError(
            errno.EINVAL, SET_MEMORY, f"slot is {body.slot} in the body and {slot} in the path", field="slot"
        )
    await while_connected(request, machine.set_user_memory_region(body.region(slot)))
    kept = machine.vm.memslots.slots.get(slot)
    return reply(views.region(kept)) if kept and body.memory_size else nothing()


@router.delete("/memory-regions/{slot}", status=204, ioctl=SET_MEMORY)
async def delete_memory_region(request: Request, machine: TheMachine, slot: SlotId) -> Response:
    """Delete a slot: the ioctl with size 0."""
    await while_connected(request, machine.set_user_memory_region(_deletion(machine, slot)))
    return nothing()


@router.post("/memory-transaction", answer=answers.TransactionDone)
async def memory_transaction(request: Request, machine: TheMachine, body: schemas.Transaction) -> Response:
    """Apply slot changes in order, all or nothing, protected as asked or as the variant does it."""
    regions = [operation.region(operation.slot) for operation in body.operations]
    return reply(await while_connected(request, machine.memory_transaction(regions, body.protect, body.timeout_ms)))


@router.get("/dirty-log/{slot}", answer=answers.DirtyPages, ioctl="KVM_GET_DIRTY_LOG")
async def get_dirty_log(request: Request, machine: TheMachine, slot: SlotId) -> Response:
    """Return the pages written since the last call, and forget them: the one GET that changes something."""
    if not same_origin(request.scope, dict(request.scope["headers"])):
        raise HTTPException(403, "a page of another origin may not send this request")
    return reply({"dirty_pages": await while_connected(request, machine.get_dirty_log(slot))})


@router.post("/dirty-log/{slot}/clear", answer=answers.DirtyPages, ioctl="KVM_CLEAR_DIRTY_LOG")
async def clear_dirty_log(
    request: Request, machine: TheMachine, slot: SlotId, body: schemas.ClearDirtyLog | None = None
) -> Response:
    """Forget the named pages, or all of the slot; answers those that are still dirty."""
    asked = body or schemas.ClearDirtyLog()
    kept = machine.vm.memslots.slots.get(slot)
    rest = max(0, kept.npages - asked.first_page) if kept else 0
    num_pages = rest if asked.num_pages is None else asked.num_pages
    bits = range(min(num_pages, rest)) if asked.bits is None else asked.bits  # the ioctl refuses more by itself
    await while_connected(request, machine.clear_dirty_log(slot, asked.first_page, num_pages, bits))
    return reply({"dirty_pages": sorted(machine.vm.memslots.dirty.get(slot, ()))})


def _deletion(machine: Machine, slot: int) -> CoreRegion:
    """The ioctl's argument: the slot's own addresses and size 0."""
    kept = machine.vm.memslots.slots.get(slot)
    if kept is None:
        return CoreRegion(slot, 0, 0, 0, 0)
    return CoreRegion(slot, int(kept.flags), kept.region().guest_phys_addr, 0, kept.userspace_addr)


def _fill_unit(fill: int | str | None) -> bytes:
    """The bytes that a fill repeats; empty for zeros. EINVAL: neither a byte, nor hex, nor ``pattern``."""
    if fill == "pattern":
        return pattern(4 * PATTERN_UNITS)
    try:
        unit = bytes([fill]) if isinstance(fill, int) else bytes.fromhex(fill or "")
    except ValueError:
        raise KvmError(
            errno.EINVAL, "mmap", f"fill {fill!r} is no byte (0 to 255), no hex string and not 'pattern'", field="fill"
        ) from None
    return unit.strip(b"\0") and unit


def _blocks(unit: bytes, size: int) -> Iterator[tuple[int, bytes]]:
    """Cut ``size`` bytes of repeated ``unit`` into pieces, each with its offset."""
    if not unit:
        return
    block = unit * max(1, BLOCK // len(unit))
    for offset in range(0, size, len(block)):
        yield offset, block[: size - offset]
