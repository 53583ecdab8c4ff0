"""KVM_ENABLE_CAP: what each capability takes, and what it changes."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from kickstand.core.arch.irq.routing import MAX_ROUTES
from kickstand.core.arch.kvm_arch import DISABLE_CSTATE, DISABLE_HLT, DISABLE_MWAIT, DISABLE_PAUSE, HC_MAP_GPA_RANGE
from kickstand.core.arch.msr_filter import ALL_REASONS
from kickstand.core.errors import KvmError
from kickstand.core.memslots.dirty_ring import ENTRY, MAX_ENTRIES, RESERVED
from kickstand.core.uapi import MAX_VCPU_ID, PAGE_SIZE, Cap
from kickstand.runtime.driver.tasks import perform_now

if TYPE_CHECKING:
    from kickstand.core.vm import Vm

_MANUAL_PROTECT, _INITIALLY_SET = 1, 2
Arguments = Sequence[int]


def enable(vm: Vm, capability: int, flags: int, args: Arguments) -> None:
    """KVM_ENABLE_CAP of a VM. EINVAL: flags, a capability that cannot be enabled, arguments that it does not take."""
    perform = _ENABLE.get(capability)
    if flags or perform is None:
        raise KvmError(errno.EINVAL, "KVM_ENABLE_CAP", f"capability {capability} cannot be enabled", field="cap")
    perform(vm, args)


def must(holds: bool, rule: str) -> None:
    """EINVAL: an argument breaks ``rule``."""
    if not holds:
        raise KvmError(errno.EINVAL, "KVM_ENABLE_CAP", rule, field="args")


def _manual_dirty_log(vm: Vm, args: Arguments) -> None:
    """Dirty logs are cleared by KVM_CLEAR_DIRTY_LOG only, and may start with every page set."""
    must(args[0] in (0, _MANUAL_PROTECT, _MANUAL_PROTECT | _INITIALLY_SET), f"{args[0]:#x} is not 0, 1 or 3")
    vm.memslots.log_manually(manual=bool(args[0]), initially_set=bool(args[0] & _INITIALLY_SET))


def _split_irqchip(vm: Vm, args: Arguments) -> None:
    """Local APICs in the kernel, every other controller in userspace; ``args[0]`` of its pins have routes."""
    must(args[0] <= MAX_ROUTES, f"{args[0]} routes are more than {MAX_ROUTES}")
    perform_now(vm.create_irqchip(split=True, pins=args[0]))


def _max_vcpu_id(vm: Vm, args: Arguments) -> None:
    """Once, and not below the boot vCPU's id."""
    arch, wanted = vm.arch, args[0]
    must(arch.boot_vcpu_id <= wanted <= MAX_VCPU_ID, f"{wanted} is not between the boot vcpu's id and {MAX_VCPU_ID}")
    must(not arch.max_vcpu_ids_set or arch.max_vcpu_ids == wanted, f"it is {arch.max_vcpu_ids} already")
    if wanted:
        arch.max_vcpu_ids, arch.max_vcpu_ids_set = wanted, True


def _user_space_msr(vm: Vm, args: Arguments) -> None:
    must(not args[0] & ~ALL_REASONS, f"{args[0]:#x} has reasons beyond {ALL_REASONS:#x}")
    vm.arch.user_space_msr = args[0]


def _platform_info(vm: Vm, args: Arguments) -> None:
    vm.arch.platform_info = bool(args[0])


def _emulation_failure(vm: Vm, args: Arguments) -> None:
    must(args[0] in (0, 1), f"{args[0]} is not 0 or 1")
    vm.arch.exit_on_emulation_failure = bool(args[0])


def _exit_hypercall(vm: Vm, args: Arguments) -> None:
    must(not args[0] & ~(1 << HC_MAP_GPA_RANGE), f"{args[0]:#x} names other hypercalls than {HC_MAP_GPA_RANGE}")
    vm.arch.hypercall_exits = args[0]


def _disable_exits(vm: Vm, args: Arguments) -> None:
    known = DISABLE_MWAIT | DISABLE_HLT | DISABLE_PAUSE | DISABLE_CSTATE
    must(not args[0] & ~known, f"{args[0]:#x} has bits beyond {known:#x}")
    # Linux 6.15 refuses it once there are vCPUs; up to then it is taken, and kvm_pv_test of that time relies on it.
    vm.arch.disabled_exits |= args[0] & (DISABLE_HLT | DISABLE_PAUSE)


def _disable_quirks(vm: Vm, args: Arguments) -> None:
    """What KVM does otherwise than hardware is no more done."""
    vm.arch.disable_quirks(args[0])


def _disable_known_quirks(vm: Vm, args: Arguments) -> None:
    vm.arch.check_quirks(args[0])
    _disable_quirks(vm, args)


def _x2apic_api(vm: Vm, args: Arguments) -> None:
    """APIC ids have 32 bits, and 0xff is one of them."""
    vm.arch.enable_x2apic_api(args[0])


def _apic_bus_cycle(vm: Vm, args: Arguments) -> None:
    """How many ns APIC timers count as one."""
    perform_now(vm.set_apic_bus_cycle(args[0]))


def _dirty_ring(vm: Vm, args: Arguments) -> None:
    """``args[0]``: bytes of each vCPU's ring; once, before the first vCPU."""
    size, arch = args[0], vm.arch
    least = max(PAGE_SIZE, RESERVED * ENTRY.size)
    must(size >= least and not size & size - 1, f"{size} bytes are no power of two of at least {least}")
    if size > MAX_ENTRIES * ENTRY.size:
        raise KvmError(errno.E2BIG, "KVM_ENABLE_CAP", f"{size} bytes are more than the largest ring has", field="args")
    must(not vm.vcpus and not arch.dirty_ring_entries, "it is set once, before the first vcpu")
    arch.dirty_ring_entries = size // ENTRY.size


_ENABLE: Mapping[int, Callable[[Vm, Arguments], None]] = {
    Cap.MANUAL_DIRTY_LOG_PROTECT2: _manual_dirty_log,
    Cap.SPLIT_IRQCHIP: _split_irqchip,
    Cap.MAX_VCPU_ID: _max_vcpu_id,
    Cap.X86_USER_SPACE_MSR: _user_space_msr,
    Cap.MSR_PLATFORM_INFO: _platform_info,
    Cap.EXIT_ON_EMULATION_FAILURE: _emulation_failure,
    Cap.EXIT_HYPERCALL: _exit_hypercall,
    Cap.X86_DISABLE_EXITS: _disable_exits,
    Cap.DISABLE_QUIRKS: _disable_quirks,
    Cap.DISABLE_QUIRKS2: _disable_known_quirks,
    Cap.X2APIC_API: _x2apic_api,
    Cap.DIRTY_LOG_RING: _dirty_ring,
    Cap.DIRTY_LOG_RING_ACQ_REL: _dirty_ring,
    Cap.X86_APIC_BUS_CYCLES_NS: _apic_bus_cycle,
}
