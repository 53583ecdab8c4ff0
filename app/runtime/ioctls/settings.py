"""ioctls that set a VM up and touch neither guest nor slots."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kickstand.core.arch.coalesced import REGISTER, UNREGISTER, Entry, Zone
from kickstand.core.arch.msr_filter import (
    DEFAULT_DENY,
    MAX_BITMAP,
    READ,
    WRITE,
    Range,
    bitmap_bytes,
    make_filter,
)
from kickstand.core.errors import KvmError
from kickstand.core.uapi import PAGE_SIZE, Fd
from kickstand.runtime.calls.arguments import Argument
from kickstand.runtime.calls.ioctl import Ioctls, ioctl
from kickstand.runtime.ioctls.capabilities import enable

if TYPE_CHECKING:
    from kickstand.core.vm import Vm

_UNSIGNED_INT = 1 << 32
_MIN_MMU_PAGES = 64  # KVM_MIN_ALLOC_MMU_PAGES


def _filter(given: Argument) -> tuple[int, Sequence[Range]]:
    """The bitmaps are elsewhere; the kernel looks at all numbers before it reads one."""
    reads = not given["flags"] & ~DEFAULT_DENY
    return given["flags"], [_range(range_, given, reads=reads) for range_ in given["ranges"] if range_["nmsrs"]]


def _range(fields: Mapping[str, int], given: Argument, *, reads: bool) -> Range:
    size = bitmap_bytes(fields["nmsrs"])
    reads = reads and size <= MAX_BITMAP and fields["flags"] in (READ, WRITE, READ | WRITE)
    data = given.memory.read(fields["bitmap"], size) if reads else b""
    return Range(fields["flags"], fields["base"], fields["nmsrs"], data)


class VmSettings(Ioctls):
    """The part of a machine that these ioctls change. They answer as KVM's; what has no effect here is only kept."""

    vm: Vm
    id: str

    def _check_alive(self, name: str) -> None:
        if self.vm.lifetime.dead:
            raise KvmError(errno.EIO, name, f"virtual machine {self.id} is dead")

    @ioctl("KVM_SET_TSS_ADDR", takes=lambda argument: (argument.number,))
    async def set_tss_addr(self, address: int) -> None:
        """KVM_SET_TSS_ADDR: where Intel's hardware needs three pages. EINVAL: not below 4 GiB as a whole."""
        self._check_alive("KVM_SET_TSS_ADDR")
        if address > _UNSIGNED_INT - 3 * PAGE_SIZE:
            raise KvmError(errno.EINVAL, "KVM_SET_TSS_ADDR", f"{address:#x} leaves no three pages below 4 GiB")

    @ioctl("KVM_SET_IDENTITY_MAP_ADDR", takes=lambda argument: (argument["address"],))
    async def set_identity_map_addr(self, address: int) -> None:
        """KVM_SET_IDENTITY_MAP_ADDR: a page for Intel's hardware. EINVAL: there is a vCPU already."""
        self._check_alive("KVM_SET_IDENTITY_MAP_ADDR")
        if self.vm.vcpus:
            raise KvmError(errno.EINVAL, "KVM_SET_IDENTITY_MAP_ADDR", "it must come before the first vcpu")

    @ioctl("KVM_SET_NR_MMU_PAGES", durable=True, recorded=True, takes=lambda argument: (argument.number,))
    async def set_nr_mmu_pages(self, count: int) -> None:
        """KVM_SET_NR_MMU_PAGES: how many shadow pages there may be; there are none here. EINVAL: below 64."""
        self._check_alive("KVM_SET_NR_MMU_PAGES")
        if count & _UNSIGNED_INT - 1 < _MIN_MMU_PAGES:
            raise KvmError(errno.EINVAL, "KVM_SET_NR_MMU_PAGES", f"{count} is below {_MIN_MMU_PAGES}")
        self.vm.arch.n_max_mmu_pages = count & _UNSIGNED_INT - 1

    @ioctl("KVM_GET_NR_MMU_PAGES", gives=int)
    async def get_nr_mmu_pages(self) -> int:
        """KVM_GET_NR_MMU_PAGES."""
        self._check_alive("KVM_GET_NR_MMU_PAGES")
        return self.vm.arch.n_max_mmu_pages

    @ioctl("KVM_SET_BOOT_CPU_ID", durable=True, recorded=True, takes=lambda argument: (argument.number,))
    async def set_boot_cpu_id(self, vcpu_id: int) -> None:
        """KVM_SET_BOOT_CPU_ID: which vCPU starts by itself. EBUSY: there is a vCPU; EINVAL: none may have that id."""
        name = "KVM_SET_BOOT_CPU_ID"
        self._check_alive(name)
        if self.vm.vcpus:
            raise KvmError(errno.EBUSY, name, "it must come before the first vcpu")
        if vcpu_id > self.vm.arch.max_vcpu_ids:
            raise KvmError(errno.EINVAL, name, f"{vcpu_id} is above {self.vm.arch.max_vcpu_ids}", field="id")
        self.vm.arch.boot_vcpu_id = vcpu_id

    @ioctl(
        "KVM_ENABLE_CAP",
        fd=Fd.VM,
        durable=True,
        recorded=True,
        takes=lambda enabled: (enabled["cap"], enabled["flags"], enabled["args"]),
    )
    async def enable_cap(self, capability: int, flags: int, args: Sequence[int]) -> None:
        """KVM_ENABLE_CAP. EINVAL: flags, a capability that cannot be enabled, or arguments that it does not take."""
        self._check_alive("KVM_ENABLE_CAP")
        enable(self.vm, capability, flags, args)

    @ioctl("KVM_X86_SET_MSR_FILTER", durable=True, recorded=True, takes=_filter)
    async def set_msr_filter(self, flags: int, ranges: Sequence[Range]) -> None:
        """KVM_X86_SET_MSR_FILTER: which MSRs the guest reaches by itself. EINVAL: as ``msr_filter.make_filter``."""
        self._check_alive("KVM_X86_SET_MSR_FILTER")
        self.vm.arch.msr_filter = make_filter(flags, ranges)

    @ioctl(REGISTER, durable=True, recorded=True, takes=lambda zone: (Zone(**zone.fields),))
    async def register_coalesced(self, zone: Zone) -> None:
        """KVM_REGISTER_COALESCED_MMIO: writes there are noted in a ring. EINVAL: ``pio`` is not 0 or 1."""
        self._check_alive(REGISTER)
        self.vm.arch.coalesced.register(zone)

    @ioctl(UNREGISTER, durable=True, recorded=True, takes=lambda zone: (Zone(**zone.fields),))
    async def unregister_coalesced(self, zone: Zone) -> None:
        """KVM_UNREGISTER_COALESCED_MMIO; errors as ``register_coalesced``."""
        self._check_alive(UNREGISTER)
        self.vm.arch.coalesced.unregister(zone)

    @ioctl("coalesced", durable=True, recorded=True)
    async def drain_coalesced(self) -> list[Entry]:
        """The writes that were noted, in order; they are forgotten. Not where a program has the ring mapped."""
        return self.vm.arch.coalesced.drain()
