"""Memory: the VMM's own, the guest's slots, transactions, the dirty log."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, WithJsonSchema, model_validator

from kickstand.api.shapes.values import (
    U32,
    U64,
    Body,
    Count,
    Errno,
    Flags,
    Hex,
    Milliseconds,
    Number,
    PageNumber,
    Ret,
)
from kickstand.core.memslots import Region as CoreRegion

Byte = Annotated[int, WithJsonSchema({"type": "integer", "minimum": 0, "maximum": 255})]  # checked where it is used


class CreateHostMemory(Body):
    """The VMM's mmap."""

    size: U64
    name: str = ""
    fill: Byte | str | None = Field(default=None, examples=[0, "cafe", "pattern"])


class HostMemory(BaseModel):
    """An allocation."""

    userspace_addr: Hex
    size: Count


class Region(Body):
    """``kvm_userspace_memory_region`` without its slot; ``memory_size`` 0 deletes, and needs nothing else."""

    flags: Flags = 0
    guest_phys_addr: U64 = 0
    memory_size: U64
    userspace_addr: U64 = 0

    @model_validator(mode="after")
    def is_complete(self) -> Self:
        """A region that is not a deletion says where it is and what backs it."""
        missing = [name for name in ("guest_phys_addr", "userspace_addr") if name not in self.model_fields_set]
        if self.memory_size and missing:
            raise ValueError(f"{' and '.join(missing)} must be given, unless memory_size is 0")
        return self

    def region(self, slot: int) -> CoreRegion:
        """The ioctl's argument."""
        return CoreRegion(slot, self.flags, self.guest_phys_addr, self.memory_size, self.userspace_addr)


class RegionIn(Region):
    """``kvm_userspace_memory_region`` for the slot in the path; ``memory_size`` 0 deletes, and needs nothing else."""

    slot: U32 | None = None


class SlottedRegion(Region):
    """``kvm_userspace_memory_region``: one operation of a transaction; ``memory_size`` 0 deletes the slot."""

    slot: U32


class Transaction(Body):
    """Slot changes in order, all or nothing."""

    operations: Annotated[list[SlottedRegion], Field(fail_fast=True)]  # the first that is wrong is told, not thousands
    protect: Literal["kick", "none", "list"] | None = None
    timeout_ms: Milliseconds | None = None


class ClearDirtyLog(Body):
    """KVM_CLEAR_DIRTY_LOG. Without fields: the whole slot."""

    first_page: U64 = 0
    num_pages: U32 | None = None
    bits: Annotated[list[PageNumber], Field(fail_fast=True, max_length=1 << 16)] | None = None


class MemoryRegion(BaseModel):
    """A memory slot."""

    slot: Number
    flags: Number
    guest_phys_addr: Hex
    memory_size: Count
    userspace_addr: Hex


class MemoryRegions(BaseModel):
    """The memory slots."""

    regions: list[MemoryRegion]


class OperationResult(BaseModel):
    """One ioctl of a list."""

    ret: Ret
    errno: Errno


class TransactionDone(BaseModel):
    """A memory transaction was applied."""

    results: list[OperationResult]
    drain_ns: Count
    window_ns: Count
    seq: Count


class DirtyPages(BaseModel):
    """Pages that the guest has written."""

    dirty_pages: list[PageNumber]
