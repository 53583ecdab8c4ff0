"""What KVM_SET_USER_MEMORY_REGION checks and in which order: ``plan`` is the whole of it, a pure function."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from kickstand.core.errors import KvmError
from kickstand.core.uapi import MAX_SLOT_PAGES, NR_MEMSLOTS, PAGE_SHIFT, PAGE_SIZE, MemFlag

SET_MEMORY = "KVM_SET_USER_MEMORY_REGION"
ADDRESS_SPACES = 1  # KVM_CAP_MULTI_ADDRESS_SPACE is 0 without SMM
USER_SPACE_END = (1 << 47) - PAGE_SIZE  # where access_ok() ends on x86-64 with four-level paging
MAX_GFN = 1 << (52 - PAGE_SHIFT)
_LOGGED, _READONLY = int(MemFlag.LOG_DIRTY_PAGES), int(MemFlag.READONLY)  # asked at each first store to a page
ALL_FLAGS = int(MemFlag.LOG_DIRTY_PAGES | MemFlag.READONLY)  # as int: ~ of a flag enum drops unknown bits


@dataclass(frozen=True, slots=True)
class Region:
    """``struct kvm_userspace_memory_region``: the argument of the ioctl. Sizes and addresses in bytes."""

    slot: int
    flags: int
    guest_phys_addr: int
    memory_size: int
    userspace_addr: int

    def gone(self) -> Region:
        """The call that deletes what this one creates."""
        return replace(self, memory_size=0)


@dataclass(frozen=True, slots=True)
class Slot:
    """``struct kvm_memory_slot``."""

    id: int
    base_gfn: int
    npages: int
    flags: MemFlag
    userspace_addr: int
    invalid: bool = False  # KVM_MEMSLOT_INVALID: an update is about to remove or move it

    @property
    def end_gfn(self) -> int:
        """The first page after the slot."""
        return self.base_gfn + self.npages

    @property
    def readonly(self) -> bool:
        """Writes leave KVM_RUN as MMIO."""
        return int(self.flags) & _READONLY != 0

    @property
    def logged(self) -> bool:
        """Guest writes are recorded in the dirty bitmap."""
        return int(self.flags) & _LOGGED != 0

    def hva(self, gpa: int) -> int:
        """The host address behind a guest-physical one of this slot."""
        return self.userspace_addr + gpa - (self.base_gfn << PAGE_SHIFT)

    def region(self) -> Region:
        """The call that would create this slot."""
        return Region(
            self.id, int(self.flags), self.base_gfn << PAGE_SHIFT, self.npages << PAGE_SHIFT, self.userspace_addr
        )


class Change(Enum):
    """``enum kvm_mr_change``, and the call that changes nothing."""

    CREATE = "create"
    DELETE = "delete"
    MOVE = "move"
    FLAGS_ONLY = "flags_only"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a call that passed every check will do: ``old`` is replaced by ``new``."""

    change: Change
    old: Slot | None
    new: Slot | None


def _invalid(field: str, detail: str) -> KvmError:
    return KvmError(errno.EINVAL, SET_MEMORY, detail, field=field)


def check_arguments(region: Region) -> None:
    """The checks that need no lock and no slot, in the kernel's order; EINVAL with the field's name.

    Source: ``kvm_vm_ioctl_set_memory_region`` and the head of ``__kvm_set_memory_region``. They apply to a
    deletion too.
    """
    if region.slot & 0xFFFF >= NR_MEMSLOTS:
        raise _invalid("slot", f"slot number {region.slot & 0xFFFF} is not below {NR_MEMSLOTS}")
    if region.flags & ~ALL_FLAGS:
        raise _invalid(
            "flags", f"unknown flags {region.flags & ~ALL_FLAGS:#x}; known are 1 (log dirty pages), 2 (readonly)"
        )
    if region.memory_size % PAGE_SIZE:
        raise _invalid("memory_size", f"{region.memory_size:#x} is not a multiple of {PAGE_SIZE}")
    if region.guest_phys_addr % PAGE_SIZE:
        raise _invalid("guest_phys_addr", f"{region.guest_phys_addr:#x} is not a multiple of {PAGE_SIZE}")
    if region.userspace_addr % PAGE_SIZE:
        raise _invalid("userspace_addr", f"{region.userspace_addr:#x} is not a multiple of {PAGE_SIZE}")
    if region.userspace_addr + region.memory_size > USER_SPACE_END:
        raise _invalid("userspace_addr", f"{region.userspace_addr:#x} + {region.memory_size:#x} is not in user space")
    if region.slot >> 16 >= ADDRESS_SPACES:
        raise _invalid("slot", f"address space {region.slot >> 16} does not exist")
    if region.guest_phys_addr + region.memory_size >= 1 << 64:
        raise _invalid("guest_phys_addr", "guest_phys_addr + memory_size wraps around")
    if region.memory_size >> PAGE_SHIFT > MAX_SLOT_PAGES:
        raise _invalid("memory_size", f"more than {MAX_SLOT_PAGES} pages")


def plan(slots: Mapping[int, Slot], region: Region) -> Plan:
    """Check ``region`` against the slots that exist and say what the call does.

    Raises ``KvmError``: EINVAL (arguments; deletion of an absent slot; change of address, size or READONLY
    in place; beyond the widest guest-physical address) or EEXIST (overlap).
    """
    check_arguments(region)
    old = slots.get(region.slot)
    if not region.memory_size:
        if old is None:
            raise _invalid("slot", f"slot {region.slot} does not exist, so it cannot be deleted")
        return Plan(Change.DELETE, old, None)
    new = Slot(
        region.slot,
        region.guest_phys_addr >> PAGE_SHIFT,
        region.memory_size >> PAGE_SHIFT,
        MemFlag(region.flags),
        region.userspace_addr,
    )
    change = Change.CREATE if old is None else _change(old, new)
    if change in (Change.CREATE, Change.MOVE):
        _check_overlap(slots.values(), new)
        if new.end_gfn > MAX_GFN:
            raise _invalid(
                "guest_phys_addr", f"ends above the widest guest-physical address, {MAX_GFN << PAGE_SHIFT:#x}"
            )
    return Plan(change, old, new)


def _change(old: Slot, new: Slot) -> Change:
    if new.userspace_addr != old.userspace_addr:
        raise _invalid("userspace_addr", f"slot {old.id} exists at {old.userspace_addr:#x}; delete it first")
    if new.npages != old.npages:
        raise _invalid("memory_size", f"slot {old.id} has {old.npages} pages and cannot be resized; delete it first")
    if (new.flags ^ old.flags) & MemFlag.READONLY:
        raise _invalid("flags", f"READONLY of slot {old.id} cannot be toggled; delete it first")
    if new.base_gfn != old.base_gfn:
        return Change.MOVE
    return Change.FLAGS_ONLY if new.flags != old.flags else Change.NOTHING


def _check_overlap(slots: Iterable[Slot], new: Slot) -> None:
    for other in slots:
        if other.id != new.id and other.base_gfn < new.end_gfn and new.base_gfn < other.end_gfn:
            raise KvmError(errno.EEXIST, SET_MEMORY, f"slot {new.id} overlaps slot {other.id}", field="guest_phys_addr")


def invalidated(slot: Slot) -> Slot:
    """The INVALID copy that stands in for ``slot`` while it is removed or moved."""
    return replace(slot, invalid=True)
