"""Memory: the VMM's own (host memory) and the guest's (slots, transactions, the dirty log)."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Query, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse

from kickstand.api.context import TheContext, TheMachine, while_connected
from kickstand.api.edge.guard import same_origin
from kickstand.api.edge.head import HEAD
from kickstand.api.edge.replies import nothing, reply, reply_list, reply_numbers
from kickstand.api.operations import BYTES, VM, Operations
from kickstand.api.shapes import memory as shapes
from kickstand.api.shapes.values import HostAddress, SlotId
from kickstand.core.errors import KvmError
from kickstand.core.memslots import SET_MEMORY
from kickstand.core.memslots import Region as CoreRegion
from kickstand.runtime.driver.tasks import to_the_end
from kickstand.runtime.machine import Machine
from kickstand.runtime.observed import views
from kickstand.scripts.play.forms import pattern

PATTERN_UNITS = 1 << 16  # the pattern repeats after so many 32-bit units
MANY = 512  # operations of a transaction
PIECE = 1 << 20  # bytes that are read or written in one turn of the loop
router = Operations("memory", *VM)
Length = Annotated[int | None, Query(ge=0, description="Bytes; by default to the end of the allocation.")]
RAW = {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}


@router.post("/host-memory", answer=shapes.HostMemory, status=201)
async def create_host_memory(machine: TheMachine, body: shapes.CreateHostMemory) -> Response:
    """Allocate host memory, as a VMM's mmap; zeroed, or filled."""
    arena = await machine.allocate_memory(body.size, body.name, _fill_unit(body.fill))
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
    if length <= PIECE:
        return Response(machine.memory.read(userspace_addr, length), 200, None, "application/octet-stream")
    machine.memory.backed(userspace_addr, length)
    headers = {"Content-Length": str(length)}
    return StreamingResponse(_pieces(machine, userspace_addr, length), 200, headers, "application/octet-stream")


async def _pieces(machine: Machine, address: int, length: int) -> AsyncIterator[bytes]:
    for offset in range(0, length, PIECE):
        yield machine.memory.read(address + offset, min(PIECE, length - offset))
        await asyncio.sleep(0)


@router.put("/host-memory/{userspace_addr}", status=204, body=RAW)
async def write_host_memory(request: Request, machine: TheMachine, userspace_addr: HostAddress) -> Response:
    """Write the body into host memory, all of it or nothing."""
    content = await request.body()
    machine.memory.backed(userspace_addr, len(content))
    await to_the_end(_write(machine, userspace_addr, content))
    return nothing()


async def _write(machine: Machine, address: int, content: bytes) -> None:
    """In pieces: a history that becomes a script has operations of this size."""
    for offset in range(0, max(1, len(content)), PIECE):
        await machine.write_memory(address + offset, content[offset : offset + PIECE])
        await asyncio.sleep(0)


@router.get("/memory-regions", answer=shapes.MemoryRegions)
async def list_memory_regions(machine: TheMachine) -> Response:
    """List the memory slots by number."""
    return await reply_list("regions", machine.each_region())


@router.put(
    "/memory-regions/{slot}",
    answer=shapes.MemoryRegion,
    others={204: "The slot is deleted: `memory_size` was 0."},
    ioctl=Machine.set_user_memory_region,
)
async def set_memory_region(request: Request, machine: TheMachine, slot: SlotId, body: shapes.RegionIn) -> Response:
    """Create, move or change a slot; `memory_size` 0 deletes it and answers 204."""
    if body.slot not in (None, slot):
        raise KvmError(
            errno.EINVAL, SET_MEMORY, f"slot is {body.slot} in the body and {slot} in the path", field="slot"
        )
    await while_connected(request, machine.set_user_memory_region(body.region(slot)))
    kept = machine.vm.memslots.slots.get(slot)
    return reply(views.region(kept)) if kept and body.memory_size else nothing()


@router.delete("/memory-regions/{slot}", status=204, ioctl=Machine.set_user_memory_region)
async def delete_memory_region(request: Request, machine: TheMachine, slot: SlotId) -> Response:
    """Delete a slot: the ioctl with size 0."""
    await while_connected(request, machine.set_user_memory_region(_deletion(machine, slot)))
    return nothing()


@router.post("/memory-transaction", answer=shapes.TransactionDone)
async def memory_transaction(
    request: Request, context: TheContext, machine: TheMachine, body: shapes.Transaction
) -> Response:
    """Apply slot changes in order, all or nothing, protected as asked or as the variant does it."""
    limit = context.settings.limits.transaction_operations
    if len(body.operations) > limit:
        detail = f"a transaction has at most {limit} operations (transaction_operations), not {len(body.operations)}"
        raise KvmError(errno.E2BIG, "memory_transaction", detail, field="operations")
    regions = [operation.region(operation.slot) for operation in body.operations]
    if len(regions) > MANY:
        await asyncio.sleep(0)  # to read them has taken a turn
    return reply(await while_connected(request, machine.memory_transaction(regions, body.protect, body.timeout_ms)))


@router.get("/dirty-log/{slot}", answer=shapes.DirtyPages, ioctl=Machine.get_dirty_log)
async def get_dirty_log(request: Request, machine: TheMachine, slot: SlotId) -> Response:
    """Return the pages written since the last call, and forget them: the one GET that changes something."""
    if not same_origin(request.scope, dict(request.scope["headers"])):
        raise HTTPException(403, "a page of another origin may not send this request")
    if HEAD in request.scope and slot in machine.vm.memslots.dirty:  # it must not forget them
        return await reply_numbers("dirty_pages", ())
    return await reply_numbers("dirty_pages", await while_connected(request, machine.get_dirty_log(slot)))


@router.post("/dirty-log/{slot}/clear", answer=shapes.DirtyPages, ioctl=Machine.clear_dirty_log)
async def clear_dirty_log(
    request: Request, machine: TheMachine, slot: SlotId, body: shapes.ClearDirtyLog | None = None
) -> Response:
    """Forget the named pages, or all of the slot; answers those that are still dirty."""
    asked = body or shapes.ClearDirtyLog()
    num_pages = machine.pages_from(slot, asked.first_page) if asked.num_pages is None else asked.num_pages
    await while_connected(request, machine.clear_dirty_log(slot, asked.first_page, num_pages, asked.bits))
    return await reply_numbers("dirty_pages", await machine.dirty_pages(slot))


def _deletion(machine: Machine, slot: int) -> CoreRegion:
    """The ioctl's argument: the slot's own addresses and size 0."""
    kept = machine.vm.memslots.slots.get(slot)
    return CoreRegion(slot, 0, 0, 0, 0) if kept is None else kept.region().gone()


def _fill_unit(fill: int | str | None) -> bytes:
    """The bytes that a fill repeats; EINVAL: neither a byte, nor hex, nor ``pattern``."""
    if fill == "pattern":
        return pattern(4 * PATTERN_UNITS)
    try:
        unit = bytes([fill]) if isinstance(fill, int) else bytes.fromhex(fill or "")
    except (ValueError, OverflowError):
        raise KvmError(
            errno.EINVAL,
            "mmap",
            f"fill {str(fill)[:40]!r} is no byte (0 to 255), no hex string and not 'pattern'",
            field="fill",
        ) from None
    return unit
