"""ioctls that set a VM up: what they refuse is KVM's, and logs can be cleared by hand."""

import errno

import pytest

from kickstand.core.arch.msr_filter import Range, make_filter
from kickstand.core.errors import KvmError
from kickstand.core.memslots import Region
from kickstand.core.uapi import Cap
from kickstand.journal.records import Recorder
from kickstand.journal.restore import Saved, restore
from kickstand.runtime.events import EventLog
from kickstand.runtime.registry import Registry

MANUAL = Cap.MANUAL_DIRTY_LOG_PROTECT2


@pytest.fixture
async def machine():
    return await Registry(log=EventLog()).create("vm", vcpus=0)


@pytest.mark.parametrize(
    ("method", "args"),
    [
        ("set_tss_addr", (0xFFFFE000,)),
        ("set_nr_mmu_pages", (63,)),
        ("enable_cap", (MANUAL, 0, [2, 0, 0, 0])),
        ("enable_cap", (MANUAL, 0, [4, 0, 0, 0])),
        ("enable_cap", (MANUAL, 1, [1, 0, 0, 0])),
        ("enable_cap", (12345, 0, [0, 0, 0, 0])),
        ("enable_cap", (Cap.MAX_VCPU_ID, 0, [4097, 0, 0, 0])),
        ("enable_cap", (Cap.X86_USER_SPACE_MSR, 0, [8, 0, 0, 0])),
        ("enable_cap", (Cap.EXIT_ON_EMULATION_FAILURE, 0, [2, 0, 0, 0])),
        ("enable_cap", (Cap.EXIT_HYPERCALL, 0, [1, 0, 0, 0])),
        ("enable_cap", (Cap.X86_DISABLE_EXITS, 0, [16, 0, 0, 0])),
        ("set_boot_cpu_id", (4097,)),
    ],
)
async def test_what_kvm_refuses_is_einval(machine, method, args):
    with pytest.raises(KvmError) as refused:
        await getattr(machine, method)(*args)
    assert refused.value.errno == errno.EINVAL


async def test_the_identity_map_comes_before_the_first_vcpu(machine):
    await machine.set_identity_map_addr(0xFFFBC000)
    await machine.create_vcpu(0)
    with pytest.raises(KvmError):
        await machine.set_identity_map_addr(0xFFFBC000)


async def test_mmu_pages_are_kept(machine):
    await machine.set_nr_mmu_pages(100)
    assert await machine.get_nr_mmu_pages() == 100


async def test_a_log_that_is_cleared_by_hand_starts_full_and_keeps_what_was_read(machine):
    await machine.enable_cap(MANUAL, 0, [3, 0, 0, 0])
    arena = machine.memory.allocate(0x4000)
    await machine.set_user_memory_region2(Region(0, 1, 0, 0x4000, arena.base))
    assert await machine.get_dirty_log(0) == [0, 1, 2, 3]
    await machine.clear_dirty_log(0, 0, 4, [1, 3])
    assert await machine.get_dirty_log(0) == [0, 2]
    assert await machine.get_dirty_log(0) == [0, 2]


@pytest.mark.parametrize("cycle_ns", [0, (1 << 25) + 1])
async def test_a_bus_cycle_that_cannot_be_counted_is_einval(cycle_ns):
    machine = await Registry(log=EventLog()).create("vm", vcpus=0, irqchip=True)
    with pytest.raises(KvmError) as refused:
        await machine.enable_cap(Cap.X86_APIC_BUS_CYCLES_NS, 0, [cycle_ns, 0, 0, 0])
    assert refused.value.errno == errno.EINVAL


async def test_a_bus_cycle_needs_apics_in_the_kernel_and_comes_before_the_first_vcpu(machine):
    with pytest.raises(KvmError) as refused:
        await machine.enable_cap(Cap.X86_APIC_BUS_CYCLES_NS, 0, [40, 0, 0, 0])
    assert refused.value.errno == errno.ENXIO
    await machine.create_irqchip()
    await machine.enable_cap(Cap.X86_APIC_BUS_CYCLES_NS, 0, [40, 0, 0, 0])
    await machine.create_vcpu(0)
    with pytest.raises(KvmError) as refused:
        await machine.enable_cap(Cap.X86_APIC_BUS_CYCLES_NS, 0, [40, 0, 0, 0])
    assert refused.value.errno == errno.EINVAL


async def test_quirks_are_disabled_one_after_the_other_and_unknown_ones_ignored_or_refused(machine):
    await machine.enable_cap(Cap.DISABLE_QUIRKS2, 0, [1, 0, 0, 0])
    await machine.enable_cap(Cap.DISABLE_QUIRKS, 0, [1 << 40 | 4, 0, 0, 0])
    assert machine.vm.arch.disabled_quirks == 5
    with pytest.raises(KvmError):
        await machine.enable_cap(Cap.DISABLE_QUIRKS2, 0, [1 << 40, 0, 0, 0])


async def test_what_was_enabled_is_kept():
    registry = Registry(log=EventLog())
    machine = await registry.create("vm", vcpus=0, irqchip=True, engine="x86")
    for cap, value in ((MANUAL, 3), (Cap.X86_APIC_BUS_CYCLES_NS, 40), (Cap.DISABLE_QUIRKS2, 5), (Cap.X2APIC_API, 1)):
        await machine.enable_cap(cap, 0, [value, 0, 0, 0])
    await machine.set_boot_cpu_id(2)
    machine.vm.arch.msr_filter = make_filter(1, [Range(3, 0x10, 8, bytes(8))])
    for cap, value in ((Cap.MAX_VCPU_ID, 9), (Cap.X86_USER_SPACE_MSR, 7), (Cap.MSR_PLATFORM_INFO, 0)):
        await machine.enable_cap(cap, 0, [value, 0, 0, 0])
    for cap, value in ((Cap.EXIT_ON_EMULATION_FAILURE, 1), (Cap.EXIT_HYPERCALL, 1 << 12), (Cap.X86_DISABLE_EXITS, 2)):
        await machine.enable_cap(cap, 0, [value, 0, 0, 0])
    saved = Saved(Recorder(machine).whole())
    again = await restore(Registry(log=EventLog()), saved, _nothing)
    assert again.vm.arch == machine.vm.arch
    assert (again.vm.memslots.manual, again.vm.memslots.initially_set) == (True, True)


async def _nothing(_machine):
    """It has no memory to be filled."""


async def test_the_boot_cpu_is_named_before_the_first_vcpu(machine):
    await machine.set_boot_cpu_id(1)
    await machine.create_irqchip()
    await machine.create_vcpu(0)
    await machine.create_vcpu(1)
    assert [vcpu.arch.mp_state.name for vcpu in machine.vm.vcpus.values()] == ["UNINITIALIZED", "RUNNABLE"]
    with pytest.raises(KvmError) as refused:
        await machine.set_boot_cpu_id(0)
    assert refused.value.errno == errno.EBUSY


async def test_the_limit_of_vcpu_ids_is_set_once_and_not_below_the_boot_cpu(machine):
    await machine.set_boot_cpu_id(2)
    for limit in (1, 2, 3):
        if limit == 2:
            await machine.enable_cap(Cap.MAX_VCPU_ID, 0, [2, 0, 0, 0])
            continue
        with pytest.raises(KvmError):
            await machine.enable_cap(Cap.MAX_VCPU_ID, 0, [limit, 0, 0, 0])
    with pytest.raises(KvmError):
        await machine.create_vcpu(2)
