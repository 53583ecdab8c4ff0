"""The real /dev/kvm behind the machine's methods: it stops, it is stopped, and it leaves nothing behind."""

import asyncio
import errno
import threading
from pathlib import Path

import pytest

from kickstand.core.errors import KvmError
from kickstand.core.memslots import Region
from kickstand.core.run.run_page import Cause
from kickstand.core.trace import VcpuState
from kickstand.core.uapi import Fd, ioctl_by_name
from kickstand.guests import engines
from kickstand.guests.host_memory import HostMemory
from kickstand.guests.kvm.addresses import Addresses, refused
from kickstand.guests.kvm.device import Device, unusable
from kickstand.guests.kvm.vm import userspace_variant
from kickstand.runtime.registry import Registry
from kickstand.scripts.language.presets import PRESETS

PAGE = 4096
CODE = 0x1000
SPIN = "ebfe"
HLT = "f4"
WINDOW = 0x20000


def descriptors():
    """What the kernel holds for this process's virtual machines."""
    names = [link.readlink().name for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return [name for name in names if "kvm" in name]


def vcpu_threads():
    """The threads but those of the loop's executor, which gives memory back and stays for the next time."""
    return [thread for thread in threading.enumerate() if not thread.name.startswith("asyncio_")]


@pytest.fixture
async def registry():
    before = vcpu_threads()
    registry = Registry()
    yield registry
    await registry.reset()
    assert descriptors() == []
    assert vcpu_threads() == before


async def guest(registry, code, **options):
    """A vCPU in protected mode at ``code``, with 64 KiB of memory."""
    machine = await registry.create("vm", engine="kvm", **({"variant": "accel_blocker"} | options))
    arena = machine.memory.allocate(16 * PAGE, "low")
    machine.memory.write(arena.base + CODE, bytes.fromhex(code))
    await machine.set_user_memory_region(Region(0, 0, 0, 16 * PAGE, arena.base))
    await machine.create_vcpu(0)
    await machine.set_sregs(0, PRESETS["prot32"])
    await machine.set_regs(0, {"rip": CODE, "rsp": 0x7000, "rflags": 2, "rbx": WINDOW})
    return machine


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def in_kvm_run(machine):
    await until(lambda: machine.vcpu(0).watched.state is VcpuState.GUEST)


# -- without a device ------------------------------------------------------------------------------------------


def test_an_absent_device_is_a_clear_problem(tmp_path):
    assert unusable(str(tmp_path / "kvm")) == (errno.ENODEV, f"there is no {tmp_path}/kvm on this machine")
    with pytest.raises(KvmError) as refused:
        Device(str(tmp_path / "kvm"))
    assert refused.value.errno == errno.EOPNOTSUPP
    assert "engine kvm: there is no" in refused.value.detail


def test_something_else_in_its_place_is_a_clear_problem():
    assert unusable("/dev/null") == (errno.EOPNOTSUPP, "/dev/null is no KVM of API version 12")
    assert unusable("/dev")[1] == "/dev cannot be opened: Is a directory"


async def test_a_server_without_the_device_says_so(monkeypatch):
    monkeypatch.setitem(engines._WHY_NOT, "kvm", lambda: "there is no /dev/kvm on this machine")
    assert engines.engines()["kvm"] == "there is no /dev/kvm on this machine"
    with pytest.raises(KvmError) as refused:
        await Registry().create(engine="kvm")
    assert (refused.value.errno, refused.value.field) == (errno.EOPNOTSUPP, "engine")
    assert "there is no /dev/kvm" in refused.value.detail


def test_variants_that_need_a_changed_kernel_are_done_as_qemu_does():
    assert [userspace_variant(name) for name in ("none", "signal", "accel_blocker")] == [
        "none",
        "signal",
        "accel_blocker",
    ]
    assert userspace_variant("sticky") == userspace_variant("holds") == "accel_blocker"
    with pytest.raises(KvmError):
        userspace_variant("nope")


def test_only_what_the_kernel_refuses_anyway_is_told_an_address_as_it_is():
    good = Region(0, 0, 0, PAGE, 0x7000_0000)
    assert not refused(good)
    for change in (
        {"memory_size": 0},
        {"memory_size": 5},
        {"userspace_addr": 5},
        {"userspace_addr": 1 << 63},
        {"memory_size": 1 << 62},
    ):
        region = Region(**{name: getattr(good, name) for name in good.__slots__} | change)
        assert refused(region), change


def test_addresses_of_an_arena_are_translated_and_others_reserved():
    memory = HostMemory()
    arena = memory.allocate(2 * PAGE)
    addresses = Addresses(memory)
    assert addresses.of_slot(Region(0, 0, 0, PAGE, arena.base + PAGE)) == arena.address + PAGE
    assert addresses.of_slot(Region(0, 0, 0, PAGE, arena.base + 3)) == arena.address + 3
    nowhere = Region(0, 0, 0, PAGE, 0x1000)
    reserved = addresses.of_slot(nowhere)
    assert reserved not in (0x1000, arena.address)
    assert addresses.of_slot(nowhere) == reserved
    addresses.keep_only(())
    huge = [Region(0, 0, 0, 1 << 42, at << 12) for at in range(64)]
    with pytest.raises(KvmError) as no_room:
        list(map(addresses.of_slot, huge))
    assert no_room.value.errno == errno.ENOMEM
    addresses.keep_only(())


# -- with one --------------------------------------------------------------------------------------------------


@pytest.mark.kvm
async def test_exits_and_replies_have_the_shapes_of_every_engine(registry):
    machine = await guest(registry, "e4108803f4")  # in al, 0x10; mov [ebx], al; hlt
    answer = await machine.run(0)
    assert (answer["exit_reason"], answer["io"]["direction"], answer["io"]["port"]) == ("KVM_EXIT_IO", "in", 0x10)
    with pytest.raises(KvmError) as wrong:
        machine.start_run(0, reply=b"12")
    assert wrong.value.errno == errno.EINVAL
    answer = await machine.run(0, reply=b"\x5a")
    assert answer["mmio"] == {"phys_addr": "0x20000", "len": 1, "is_write": True, "data": "5a"}
    assert (await machine.run(0))["exit_reason"] == "KVM_EXIT_HLT"
    assert (await machine.get_regs(0))["rax"] & 0xFF == 0x5A
    assert machine.describe_vcpu(0)["counters"]["mmio"] == 1
    described = machine.describe()
    assert (described["engine"], described["kicked_by"]) == ("kvm", "accel_blocker")


@pytest.mark.kvm
async def test_a_kick_ends_kvm_run_and_a_new_one_waits_for_resume(registry):
    machine = await guest(registry, SPIN, variant="sticky")
    run = machine.start_run(0)
    await in_kvm_run(machine)
    kick = await machine.kick()
    assert (kick["changed"], kick["holds"], kick["vcpus_stopped"]) == (True, 1, 1)
    assert (await run.result())["errno"] == "EINTR"
    waiting = machine.start_run(0)
    await asyncio.sleep(0.005)
    assert machine.vcpu(0).watched.state is VcpuState.USER
    assert (await machine.resume())["changed"] is True
    await in_kvm_run(machine)
    waiting.signal(Cause.SIGNAL)
    assert (await waiting.result())["cause"] == "signal"


@pytest.mark.kvm
async def test_a_signal_before_kvm_run_is_not_lost(registry):
    machine = await guest(registry, SPIN)
    for _ in range(50):
        await machine.signal(0)
        answer = await machine.run(0)
        assert (answer["errno"], answer["exit_reason"]) == ("EINTR", "KVM_EXIT_INTR")


@pytest.mark.kvm
async def test_a_signal_at_any_moment_ends_kvm_run(registry):
    machine = await guest(registry, SPIN)
    for turns in range(60):
        run = machine.start_run(0)
        for _ in range(turns % 6):
            await asyncio.sleep(0)
        run.signal(Cause.SIGNAL)
        assert (await run.result())["errno"] == "EINTR"


@pytest.mark.kvm
async def test_a_timeout_and_a_departed_client_end_kvm_run(registry):
    machine = await guest(registry, SPIN)
    assert (await machine.run(0, timeout_ms=2))["cause"] == "poll_timeout"
    client = asyncio.create_task(machine.run(0))
    await in_kvm_run(machine)
    client.cancel()
    with pytest.raises(asyncio.CancelledError):
        await client
    await until(lambda: not machine.runs)
    machine.memory.write(machine.memory.arenas[0].base + CODE, bytes.fromhex(HLT))
    assert (await machine.run(0))["exit_reason"] == "KVM_EXIT_HLT"


@pytest.mark.kvm
async def test_the_users_immediate_exit_stays_when_a_kick_is_over(registry):
    machine = await guest(registry, HLT)
    await machine.set_run_flag(0, "immediate_exit", True)
    for _ in range(2):
        assert (await machine.run(0))["cause"] == "immediate_exit"
    await machine.set_run_flag(0, "immediate_exit", False)
    assert (await machine.run(0))["exit_reason"] == "KVM_EXIT_HLT"


@pytest.mark.kvm
async def test_registers_are_asked_for_when_kvm_run_has_ended(registry):
    machine = await guest(registry, SPIN)
    run = machine.start_run(0)
    await in_kvm_run(machine)
    asking = asyncio.create_task(machine.get_regs(0))
    await asyncio.sleep(0.002)
    assert not asking.done()
    run.signal(Cause.SIGNAL)
    assert (await asking)["rip"] == CODE


@pytest.mark.kvm
async def test_destroying_a_machine_ends_its_runs_threads_and_waiters_with_eio(registry):
    machine = await guest(registry, SPIN)
    runs = [machine.start_run(0), machine.start_run(0)]
    await in_kvm_run(machine)
    waiting = asyncio.create_task(machine.set_regs(0, {}))
    await asyncio.sleep(0)
    await registry.destroy("vm")
    for result in (*(run.result() for run in runs), waiting):
        with pytest.raises(KvmError) as gone:
            await result
        assert gone.value.errno == errno.EIO


@pytest.mark.kvm
async def test_a_vmm_thread_runs_and_stops(registry):
    machine = await guest(registry, SPIN)
    await machine.start_thread(0, "careless")
    await in_kvm_run(machine)
    await machine.memory_transaction([Region(1, 0, WINDOW, PAGE, machine.memory.arenas[0].base)], "kick")
    await in_kvm_run(machine)
    await machine.stop_thread(0)
    assert machine.vcpu(0).watched.state is VcpuState.USER


@pytest.mark.kvm
async def test_a_guest_never_sees_memory_that_is_no_arena(registry):
    machine = await guest(registry, "8b03f4")  # mov eax, [ebx]
    own = machine.memory.arenas[0].address  # an address of this very process
    await machine.set_user_memory_region(Region(1, 0, WINDOW, PAGE, own))
    assert not_there(await machine.run(0), WINDOW)


def not_there(answer, gpa):
    """What KVM says of a slot without host memory: EFAULT, or MMIO where it emulates the access (nested)."""
    return answer["errno"] == "EFAULT" or answer["mmio"]["phys_addr"] == hex(gpa)


@pytest.mark.kvm
async def test_a_slot_may_reach_past_the_end_of_its_arena(registry):
    machine = await guest(registry, "8b038b8300100000f4")  # mov eax, [ebx]; mov eax, [ebx + 0x1000]
    arena = machine.memory.allocate(PAGE)
    machine.memory.write(arena.base, b"\x11\x22\x33\x44")
    await machine.set_user_memory_region(Region(1, 0, WINDOW, 2 * PAGE, arena.base))
    assert not_there(await machine.run(0), WINDOW + PAGE)
    assert (await machine.get_regs(0))["rax"] == 0x44332211


@pytest.mark.kvm
async def test_a_transaction_that_fails_midway_is_taken_back(registry):
    machine = await guest(registry, HLT)
    base = machine.memory.arenas[0].base
    before = machine.regions()
    with pytest.raises(KvmError) as refused:
        await machine.memory_transaction(
            [Region(0, 0, 0, 0, 0), Region(1, 0, 0, PAGE, base), Region(2, 0, 0, PAGE, base)], "kick"
        )
    assert (refused.value.errno, refused.value.extra["operation"]) == (errno.EEXIST, 2)
    assert machine.regions() == before
    assert (await machine.run(0))["exit_reason"] == "KVM_EXIT_HLT"
    with pytest.raises(KvmError) as unknown:
        await machine.memory_transaction([Region(1, 0, WINDOW, PAGE, base)], "list")
    assert unknown.value.errno == errno.ENOTTY


@pytest.mark.kvm
async def test_the_dirty_log_is_the_kernels(registry):
    machine = await guest(registry, "8803888300100000888300200000888300300000888300400000888300500000f4")
    arena = machine.memory.allocate(8 * PAGE)
    await machine.set_user_memory_region(Region(1, 1, WINDOW, 8 * PAGE, arena.base))
    assert (await machine.run(0))["exit_reason"] == "KVM_EXIT_HLT"
    assert await machine.get_dirty_log(1) == [0, 1, 2, 3, 4, 5]
    assert await machine.get_dirty_log(1) == []
    await machine.set_regs(0, {"rip": CODE})
    await machine.run(0)
    with pytest.raises(KvmError):  # all or nothing: the log comes back with the slot
        await machine.memory_transaction([Region(1, 0, 0, 0, 0), Region(9, 0, 0, 0, 0)], "kick")
    with pytest.raises(KvmError):
        await machine.set_user_memory_region(Region(1, 8, 0, 0, 0))
    assert await machine.get_dirty_log(1) == [0, 1, 2, 3, 4, 5]
    with pytest.raises(KvmError) as absent:
        await machine.get_dirty_log(7)
    assert absent.value.errno == errno.ENOENT
    await machine.clear_dirty_log(1, 0, 8, [1, 2, 70])


@pytest.mark.kvm
async def test_raw_ioctls_reach_the_kernel_unless_the_descriptor_knows_them(registry):
    machine = await guest(registry, HLT)
    for fd, name, expected in (
        (Fd.VM, "RUN", errno.ENOTTY), (Fd.VCPU, "CREATE_VCPU", errno.EINVAL), (Fd.SYSTEM, "RUN", errno.EINVAL),
        (Fd.VCPU, "RUN", errno.EOPNOTSUPP),
    ):  # fmt: skip
        with pytest.raises(KvmError) as refused:
            await machine.raw_ioctl(fd, ioctl_by_name(name).request, 0)
        assert refused.value.errno == expected


@pytest.mark.kvm
async def test_a_machine_that_cannot_be_finished_leaves_nothing_behind(registry):
    with pytest.raises(KvmError):
        await registry.create("vm", engine="kvm", vcpus=1, programs=[[["hlt"]]])
    assert registry.machines == {}
    machine = await registry.create("vm", engine="kvm", vcpus=1, irqchip=True)
    for vcpu_id, expected in ((0, errno.EEXIST), (1 << 40, errno.EINVAL)):
        with pytest.raises(KvmError) as refused:
            await machine.create_vcpu(vcpu_id)
        assert refused.value.errno == expected
    assert await machine.signal_msi(0xFEE00000, 0x40) in (True, False)
    await machine.irq_line(4, 1)
    await machine.nmi(0)
    with pytest.raises(KvmError) as inside:
        await machine.interrupt(0, 32)
    assert inside.value.errno == errno.ENXIO
