"""The one table of ioctls: found by number, performed on bytes, kept and recorded as declared on the method."""

from __future__ import annotations

import asyncio
import errno

import pytest

from kickstand.core.arch.coalesced import Zone
from kickstand.core.arch.cpu.mce import MachineCheck
from kickstand.core.arch.kvmclock import ClockData
from kickstand.core.errors import KvmError
from kickstand.core.memslots import Region
from kickstand.core.uapi import IOCTLS, KVM_MP_STATE, KVM_REGS, KVM_SREGS, Fd, ioctl_by_name
from kickstand.runtime.calls.ioctl import ioctl
from kickstand.runtime.driver.tasks import start
from kickstand.runtime.machine import Machine
from kickstand.runtime.table import DECLARED, find

PAGE = 4096
BITMAP = 0x900


class Program:
    """A program's memory of one page."""

    def __init__(self):
        self.bytes = bytearray(PAGE)

    def _check(self, address, length):
        if address + length > PAGE:
            raise KvmError(errno.EFAULT, "memory", "not mapped")

    def read(self, address, length):
        self._check(address, length)
        return bytes(self.bytes[address : address + length])

    def write(self, address, data):
        self._check(address, len(data))
        self.bytes[address : address + len(data)] = data


@pytest.fixture
async def machine(registry):
    machine = await registry.create("vm", vcpus=1, irqchip=False)
    arena = machine.memory.allocate(16 * PAGE)
    await machine.set_user_memory_region(Region(0, 1, 0, 16 * PAGE, arena.base))
    return machine


@pytest.fixture
def memory():
    return Program()


def request(name, fd=None):
    return next(known.request for known in IOCTLS if known.name == f"KVM_{name}" and fd in (None, known.fd))


async def perform(machine, name, argument, memory, vcpu_id=None):
    fd = ioctl_by_name(name).fd
    return await find(fd, request(name, fd)).call(machine, argument, memory, vcpu_id)


def test_every_number_has_one_method_and_every_declared_name_one_declaration():
    numbered = [(found.abi.fd, found.abi.request) for found in DECLARED if found.abi]
    assert len(numbered) == len(set(numbered))
    assert len(DECLARED) == len({(found.name, found.abi) for found in DECLARED})
    for fd, number in numbered:
        assert find(fd, number).abi.fd is fd
        assert find(fd, number - (1 << 32)) is find(fd, number)  # sign-extended, as QEMU passes it


@pytest.mark.parametrize("fd", Fd)
def test_a_descriptor_does_not_know_a_request_with_another_size_or_of_another_descriptor(fd):
    unknown = errno.ENOTTY if fd is Fd.VM else errno.EINVAL
    for number in (0xAEFF, request("SET_REGS") + (1 << 16), request("RUN" if fd is not Fd.VCPU else "CREATE_VM")):
        with pytest.raises(KvmError) as caught:
            find(fd, number)
        assert caught.value.errno == unknown


async def test_registers_go_and_come_as_bytes(machine, memory):
    memory.write(0, KVM_REGS.pack({"rax": 7, "rflags": 2}))
    assert await perform(machine, "SET_REGS", 0, memory, 0) == 0
    assert (await machine.get_regs(0))["rax"] == 7
    assert await perform(machine, "GET_REGS", 0x400, memory, 0) == 0
    assert memory.read(0x400, KVM_REGS.size) == memory.read(0, KVM_REGS.size)
    await perform(machine, "GET_SREGS", 0, memory, 0)
    assert KVM_SREGS.unpack(memory.read(0, KVM_SREGS.size)) == await machine.get_sregs(0)
    await perform(machine, "GET_MP_STATE", 0, memory, 0)
    assert KVM_MP_STATE.unpack(memory.read(0, 4)) == {"mp_state": 0}


async def test_a_dirty_log_is_a_bitmap_in_the_callers_memory(machine, memory):
    log = find(Fd.VM, request("GET_DIRTY_LOG")).abi.payload
    machine.vm.memslots.dirty[0].update({0, 3, 9})
    memory.write(0, log.pack({"slot": 0, "dirty_bitmap": BITMAP}))
    assert await perform(machine, "GET_DIRTY_LOG", 0, memory) == 0
    assert memory.read(BITMAP, 8) == bytes([0b1001, 0b10, 0, 0, 0, 0, 0, 0])
    clear = find(Fd.VM, request("CLEAR_DIRTY_LOG")).abi.payload
    memory.write(0, clear.pack({"slot": 0, "num_pages": 1 << 31, "dirty_bitmap": BITMAP}))
    with pytest.raises(KvmError, match="EINVAL"):  # refused by its numbers: the bits are not read
        await perform(machine, "CLEAR_DIRTY_LOG", 0, memory)


async def test_the_system_answers_through_the_registry(registry, machine, memory):
    async def ask(fd, name, argument):
        return await find(fd, request(name, fd)).call(registry if fd is Fd.SYSTEM else machine, argument, memory)

    assert await ask(Fd.SYSTEM, "GET_API_VERSION", 0) == 12
    assert await ask(Fd.SYSTEM, "CHECK_EXTENSION", 3) == await ask(Fd.VM, "CHECK_EXTENSION", 3) == 1
    assert await ask(Fd.SYSTEM, "CHECK_EXTENSION", 1 << 40) == 0
    assert await ask(Fd.SYSTEM, "GET_VCPU_MMAP_SIZE", 0) == 3 * PAGE


async def test_an_address_that_is_not_mapped_is_efault_and_changes_nothing(machine, memory):
    with pytest.raises(KvmError, match="EFAULT"):
        await perform(machine, "SET_REGS", PAGE - 8, memory, 0)
    assert (await machine.get_regs(0))["rax"] == 0


def test_a_structure_that_a_method_is_given_or_fills_in_has_to_be_declared():
    with pytest.raises(TypeError, match="say what of it"):

        @ioctl("KVM_SET_REGS")
        async def set_regs():
            pass

    with pytest.raises(TypeError, match="say what its method gives"):

        @ioctl("KVM_GET_REGS")
        async def get_regs():
            pass


def test_a_subclass_cannot_lose_what_is_declared_of_an_ioctl():
    with pytest.raises(TypeError, match=r"Careless\.nmi"):

        class Careless(Machine):
            async def nmi(self, vcpu_id):
                pass


# -- begun without a task ------------------------------------------------------------------------------------


def without_a_task(begin):
    """Call ``begin`` from a callback of the loop, as a descriptor's reader is called."""
    begun = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(lambda: begun.set_result(begin()))
    return begun


async def test_a_call_that_never_waits_is_over_when_start_returns(machine, memory):
    memory.write(0, KVM_REGS.pack({"rax": 7}))
    call = find(Fd.VCPU, request("SET_REGS")).call
    over = await without_a_task(lambda: (done := start(call(machine, 0, memory, 0))).done() and done.result())
    assert over == 0
    assert (await machine.get_regs(0))["rax"] == 7


async def test_a_call_that_waits_is_woken_by_what_happens_right_after_it_began(machine, memory):
    vcpu = machine.vcpu(0)
    await vcpu.mutex.lock("other")

    def begin():
        waits = start(find(Fd.VCPU, request("GET_MP_STATE")).call(machine, 0, memory, 0), "vm/nmi")
        nmi = start(find(Fd.VCPU, request("NMI")).call(machine, 0, memory, 0), "vm/nmi")
        assert waits.done()  # it takes no mutex
        assert not nmi.done()
        with pytest.raises(StopIteration):
            vcpu.mutex.unlock().send(None)  # at once, before any task had a turn
        return nmi

    nmi = await without_a_task(begin)
    assert nmi.get_name() == "vm/nmi"
    assert await asyncio.wait_for(nmi, 1) == 0
    assert vcpu.mutex.owner is None


@pytest.mark.parametrize("ending", ["cancel", "destroy"])
async def test_a_call_begun_without_a_task_can_be_cancelled_and_outlives_no_vm(registry, machine, memory, ending):
    vcpu = machine.vcpu(0)
    await vcpu.mutex.lock("other")
    nmi = await without_a_task(lambda: start(find(Fd.VCPU, request("NMI")).call(machine, 0, memory, 0)))
    if ending == "cancel":
        nmi.cancel()
        with pytest.raises(asyncio.CancelledError):
            await nmi
    else:
        await registry.destroy("vm")
        with pytest.raises(KvmError, match="EIO"):
            await nmi
    assert vcpu.mutex.queue == ()


async def test_a_kick_with_a_timeout_needs_no_task_either(machine, memory):
    await machine.vm.variant.memory_transaction.read_or_queue("stuck")
    kick = await without_a_task(lambda: start(machine.kick(timeout_ms=1)))
    with pytest.raises(KvmError, match="ETIMEDOUT"):
        await kick
    assert machine.describe()["kicked"] is False


# -- a dead VM -----------------------------------------------------------------------------------------------

LOOKS = {"check_extension", "get_regs", "get_sregs", "get_mp_state"}  # what observers see to the end
CALLS = {
    "create_vcpu": (1,),
    "create_irqchip": (),
    "irq_line": (4, 1),
    "irq_line_status": (4, 1),
    "set_gsi_routing": ((),),
    "get_irqchip": (0,),
    "set_irqchip": (0, bytes(512)),
    "create_pit": (),
    "get_pit": (),
    "set_pit": (bytes(112),),
    "get_lapic": (0,),
    "set_lapic": (0, bytes(1024)),
    "report_tpr_access": (0, 1),
    "set_vapic_addr": (0, 0),
    "signal_msi": (0xFEE00000, 0x40),
    "kick": (),
    "resume": (),
    "set_user_memory_region": (Region(0, 0, 0, 0, 0),),
    "get_dirty_log": (0,),
    "clear_dirty_log": (0, 0, 16, ()),
    "set_regs": (0, {"rax": 1}),
    "set_sregs": (0, {"cr3": 0}),
    "set_mp_state": (0, 0),
    "interrupt": (0, 32),
    "nmi": (0,),
    "set_user_memory_region2": (Region(0, 0, 0, 0, 0),),
    "set_tss_addr": (0xFFFBD000,),
    "set_identity_map_addr": (0xFFFBC000,),
    "set_nr_mmu_pages": (64,),
    "get_nr_mmu_pages": (),
    "get_tsc_khz": (),
    "enable_cap": (168, 0, [0, 0, 0, 0]),
    "enable_vcpu_cap": (0, 190, 0, [1, 0, 0, 0]),
    "set_boot_cpu_id": (0,),
    "set_msr_filter": (0, ()),
    "get_clock": (),
    "set_clock": (ClockData(0),),
    "set_tsc_khz": (0,),
    "set_vcpu_tsc_khz": (0, 0),
    "kvmclock_ctrl": (0,),
    "has_vcpu_attribute": (0, 0, 0),
    "get_vcpu_attribute": (0, 0, 0),
    "set_vcpu_attribute": (0, 0, 0, 0),
    "setup_mce": (0, 32),
    "reset_dirty_rings": (),
    "register_coalesced": (Zone(0, 8, 0),),
    "unregister_coalesced": (Zone(0, 8, 0),),
    "set_guest_debug": (0, 0, (0,) * 8),
    "set_mce": (0, MachineCheck(1 << 63, 0, 0, 0, 0)),
    "get_cpuid2": (0,),
    "set_cpuid2": (0, ()),
    "get_msrs": (0, ()),
    "set_msrs": (0, ()),
    "get_vcpu_tsc_khz": (0,),
    "get_fpu": (0,),
    "set_fpu": (0, bytes(416)),
    "get_xsave": (0,),
    "get_xsave2": (0,),
    "set_xsave": (0, bytes(4096)),
    "get_xcrs": (0,),
    "set_xcrs": (0, bytes(392)),
    "get_debugregs": (0,),
    "set_debugregs": (0, bytes(128)),
    "get_vcpu_events": (0,),
    "set_vcpu_events": (0, {}),
    "get_sregs2": (0,),
    "set_sregs2": (0, {"flags": 0}),
    "translate": (0, 0),
}


def test_whatever_sets_something_is_kept():
    changes_nothing = {"KVM_SET_XCRS", "KVM_SET_TSS_ADDR", "KVM_SET_IDENTITY_MAP_ADDR"}
    by_another = {"KVM_SET_USER_MEMORY_REGION2"}
    sets = {found.name for found in DECLARED if found.abi and "_SET_" in found.name and not found.durable}
    assert sets == changes_nothing | by_another


def test_every_ioctl_of_a_machine_is_tried_on_a_dead_vm():
    of_machines = {found.method for found in DECLARED if found.abi and hasattr(Machine, found.method)}
    assert of_machines - {"start_run"} - LOOKS == set(CALLS)


@pytest.mark.parametrize("method", CALLS)
async def test_an_ioctl_that_comes_when_the_vm_has_died_is_eio_and_changes_nothing(machine, method):
    await machine.vm.destroy()
    before = machine.describe_vcpu(0), await machine.get_regs(0), machine.vcpu(0).arch.state()
    with pytest.raises(KvmError) as caught:
        await getattr(machine, method)(*CALLS[method])
    assert caught.value.errno == errno.EIO
    assert (machine.describe_vcpu(0), await machine.get_regs(0), machine.vcpu(0).arch.state()) == before
