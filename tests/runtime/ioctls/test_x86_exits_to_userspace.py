"""What userspace answers for a guest, and what KVM writes into a guest's pages, is as KVM's manual has it."""

import struct

import pytest

from kickstand.core.arch.cpu.mce import CMCI_P, CTL_P, MachineCheck, Signal, report, set_up
from kickstand.core.arch.cpu.msrs import MASK64, MC0_CTL, MC0_CTL2, Msr
from kickstand.core.arch.kvmclock import REALTIME, ClockData, KvmClock, scale
from kickstand.core.arch.msr_filter import FILTERED, INVALID, UNKNOWN, Range, make_filter
from kickstand.core.errors import KvmError
from kickstand.core.memslots import Region
from kickstand.core.run.exits import HltExit, TprExit
from kickstand.core.uapi import Cap
from kickstand.scripts.language.presets import PRESETS
from tests.guests.x86.machine import Machine

RAM, CODE, PAGE = 0x10000, 0x1000, 0x3000
RDMSR, WRMSR, HLT, VMMCALL, TO_CR8 = "0f32", "0f30", "f4", "0f01d9", "440f22c0"
NOWHERE = 0x474F4F00


async def made(registry, code, *, before=(), **regs):
    machine = await registry.create("vm", engine="x86")
    for cap, value in before:
        await machine.enable_cap(cap, 0, [value, 0, 0, 0])
    await machine.create_vcpu(0)
    machine.arena = machine.memory.allocate(RAM)
    machine.memory.write(machine.arena.base + CODE, bytes.fromhex(code))
    await machine.set_user_memory_region(Region(0, 0, 0, RAM, machine.arena.base))
    await machine.set_sregs(0, PRESETS["prot32"])
    await machine.set_regs(0, {"rip": CODE, "rflags": 2, "rsp": 0x7000, "rdx": 0} | regs)
    return machine


def reply(value=0, *, error=0):
    return bytes([error]) + value.to_bytes(8, "little")


async def test_userspace_answers_a_read_that_it_has_filtered(registry):
    machine = await made(registry, RDMSR + HLT, before=[(Cap.X86_USER_SPACE_MSR, FILTERED)], rcx=0x10)
    await machine.set_msr_filter(0, [Range(1, 0x10, 1, bytes(8))])
    exit = await machine.run(0)
    assert (exit["exit_reason"], exit["msr"]) == (
        "KVM_EXIT_X86_RDMSR", {"index": "0x10", "reason": FILTERED, "data": None},
    )  # fmt: skip
    assert (await machine.run(0, reply=reply(0x1122334455667788)))["exit_reason"] == "KVM_EXIT_HLT"
    regs = await machine.get_regs(0)
    assert (regs["rax"], regs["rdx"], regs["rip"]) == (0x55667788, 0x11223344, CODE + 3)


@pytest.mark.parametrize(("index", "value", "reason"), [(NOWHERE, 1, UNKNOWN), (Msr.PAT, 2, INVALID)])
async def test_userspace_answers_a_write_that_the_cpu_refuses(registry, index, value, reason):
    machine = await made(
        registry, WRMSR + HLT, before=[(Cap.X86_USER_SPACE_MSR, UNKNOWN | INVALID)], rcx=index, rax=value
    )
    exit = await machine.run(0)
    assert exit["msr"] == {"index": hex(index), "reason": reason, "data": hex(value)}
    assert (await machine.run(0, reply=reply()))["exit_reason"] == "KVM_EXIT_HLT"


async def test_an_error_from_userspace_is_a_fault_of_the_guest(registry):
    machine = await made(registry, RDMSR + HLT, before=[(Cap.X86_USER_SPACE_MSR, UNKNOWN)], rcx=NOWHERE)
    await machine.set_sregs(0, {"idt": {"base": 0, "limit": 0}})
    await machine.run(0)
    assert (await machine.run(0, reply=reply(error=1)))["exit_reason"] == "KVM_EXIT_SHUTDOWN"


async def test_without_the_capability_a_filtered_register_is_a_fault(registry):
    machine = await made(registry, RDMSR + HLT, rcx=0x10)
    await machine.set_sregs(0, {"idt": {"base": 0, "limit": 0}})
    await machine.set_msr_filter(1, [Range(3, 0x20, 1, b"\1" + bytes(7))])
    assert (await machine.run(0))["exit_reason"] == "KVM_EXIT_SHUTDOWN"


def test_the_first_range_that_has_a_register_decides():
    found = make_filter(1, [Range(1, 0x10, 4, b"\2" + bytes(7)), Range(3, 0x10, 4, b"\x0f" + bytes(7))])
    assert [found.allows(0x10 + at, write=False) for at in range(5)] == [False, True, False, False, False]
    assert found.allows(0x10, write=True)
    assert found.allows(0x80B, write=True)  # x2APIC registers are never filtered


@pytest.mark.parametrize(
    ("flags", "ranges"),
    [
        (2, []),
        (1, []),
        (0, [Range(0, 0, 1, bytes(8))]),
        (0, [Range(4, 0, 1, bytes(8))]),
        (0, [Range(1, 0, 12289, b"")]),
    ],
)
def test_a_filter_that_kvm_refuses(flags, ranges):
    with pytest.raises(KvmError, match="EINVAL"):
        make_filter(flags, ranges)


async def test_a_hypercall_that_userspace_wants_leaves_and_gets_its_result(registry):
    machine = await made(
        registry, VMMCALL + HLT, before=[(Cap.EXIT_HYPERCALL, 1 << 12)], rax=12, rbx=0x5000, rcx=3, rdx=1
    )
    exit = await machine.run(0)
    assert exit["exit_reason"] == "KVM_EXIT_HYPERCALL"
    assert exit["hypercall"] == {"nr": 12, "args": ["0x5000", "0x3", "0x1", "0x0", "0x0", "0x0"], "longmode": False}
    await machine.run(0, reply=(MASK64 - 4).to_bytes(8, "little"))
    assert (await machine.get_regs(0))["rax"] == 0xFFFFFFFB


def test_a_lowered_cr8_leaves_and_a_raised_one_does_not():
    guest = Machine("long64", "b005" + TO_CR8 + "b003" + TO_CR8 + HLT, rax=0)
    assert guest.run() == TprExit()
    assert guest.cpu.special_registers()["cr8"] == 3
    assert guest.run() == HltExit()


# -- time ------------------------------------------------------------------------------------------------------


class Source:
    is_tsc = False
    khz = 2_000_000

    def __init__(self):
        self.ticks, self.real = 0, 1_000_000_000_000

    def counter(self):
        return self.ticks

    def realtime_ns(self):
        return self.real


def test_kvmclock_counts_nanoseconds_whatever_the_rate():
    source = Source()
    clock = KvmClock(source)
    source.ticks += 2_000_000_000
    assert clock.get().clock == 1_000_000_000
    clock.set(ClockData(77))
    assert clock.get().clock == 77
    clock.set(ClockData(100, REALTIME, source.real - 50))
    assert clock.get().clock == 150
    clock.set(ClockData(100, REALTIME, source.real + 50))  # never back
    assert clock.get().clock == 100


@pytest.mark.parametrize("khz", [1_000, 999_999, 1_000_000, 2_445_430, 5_000_001])
def test_a_guest_that_scales_its_counter_comes_to_nanoseconds(khz):
    multiplier, shift = scale(khz)
    ticks = khz * 1_000  # of one second
    scaled = (ticks << shift if shift >= 0 else ticks >> -shift) * multiplier >> 32
    assert abs(scaled - 1_000_000_000) < 4


async def test_a_guest_reads_the_clock_in_its_page_at_once(registry):
    machine = await made(registry, WRMSR + HLT, rcx=Msr.SYSTEM_TIME_NEW, rax=PAGE | 1)
    before = (await machine.get_clock()).clock
    await machine.run(0)
    version, at, base, *_ = struct.unpack("<I4xQQIbB2x", machine.memory.read(machine.arena.base + PAGE, 32))
    tsc = (await machine.get_msrs(0, [Msr.TSC]))[0][1]
    assert version == 2
    assert base + (tsc - at & MASK64) >= before  # at 1 GHz a tick is a nanosecond
    await machine.set_clock(ClockData(10**12))
    await machine.set_regs(0, {"rip": CODE + 2})
    await machine.run(0)
    version, _, base = struct.unpack_from("<I4xQQ", machine.memory.read(machine.arena.base + PAGE, 32))
    assert (version, base) == (4, 10**12)


async def test_kvmclock_ctrl_tells_a_guest_that_has_a_clock(registry):
    machine = await made(registry, WRMSR + HLT + HLT, rcx=Msr.SYSTEM_TIME_NEW, rax=PAGE | 1)
    with pytest.raises(KvmError, match="EINVAL"):
        await machine.kvmclock_ctrl(0)
    await machine.run(0)
    await machine.kvmclock_ctrl(0)
    await machine.run(0)
    assert machine.memory.read(machine.arena.base + PAGE + 29, 1)[0] & 2


async def test_stolen_time_has_an_even_version_that_grows(registry):
    machine = await made(registry, WRMSR + HLT + HLT, rcx=Msr.STEAL_TIME, rax=PAGE | 1)
    machine.vm.vcpus[0].run_delay_ns = lambda: 5_000
    await machine.run(0)
    await machine.run(0)
    steal, version = struct.unpack_from("<QI", machine.memory.read(machine.arena.base + PAGE, 16))
    assert (steal, version) == (5_000, 4)


async def test_counters_follow_each_other_and_keep_their_offset(registry):
    machine = await registry.create("vm", engine="x86", vcpus=2)
    await machine.set_vcpu_attribute(0, 0, 0, 123)
    assert await machine.get_vcpu_attribute(0, 0, 0) == 123
    await machine.set_msrs(1, [(Msr.TSC, 0)])
    assert await machine.get_vcpu_attribute(1, 0, 0) == 123
    with pytest.raises(KvmError, match="ENXIO"):
        await machine.has_vcpu_attribute(0, 0, 1)
    await machine.set_vcpu_tsc_khz(0, 500_000)
    assert (await machine.get_vcpu_tsc_khz(0), await machine.get_vcpu_tsc_khz(1)) == (500_000, 1_000_000)


# -- machine checks --------------------------------------------------------------------------------------------

VALID, UC, OVER = 1 << 63, 1 << 61, 1 << 62


@pytest.mark.parametrize("mcg_cap", [0, 33, 32 | 1 << 27, 32 | 1 << 9])
def test_banks_that_kvm_refuses(mcg_cap):
    with pytest.raises(KvmError, match="EINVAL"):
        set_up({}, mcg_cap)


def test_an_uncorrected_error_is_an_exception_and_a_second_one_while_it_is_handled_a_shutdown():
    msrs = {}
    set_up(msrs, 4 | CTL_P)
    error = MachineCheck(VALID | UC, 0x1000, 2, 4, 1)
    assert report(msrs, error, enabled=True) is Signal.EXCEPTION
    assert (msrs[MC0_CTL + 5], msrs[MC0_CTL + 6], msrs[Msr.MCG_STATUS]) == (VALID | UC, 0x1000, 4)
    assert report(msrs, error, enabled=True) is Signal.SHUTDOWN
    msrs[Msr.MCG_STATUS] = 0
    assert report(msrs, error, enabled=True) is Signal.EXCEPTION
    assert msrs[MC0_CTL + 5] & OVER
    msrs[Msr.MCG_CTL] = 0
    assert report(msrs, error, enabled=True) is Signal.NONE


def test_an_error_that_needs_no_action_interrupts_where_its_bank_wants_it():
    msrs = {}
    set_up(msrs, 4 | CMCI_P)
    error = MachineCheck(VALID | UC, 0x1000, 2, 0, 3)
    assert report(msrs, error, enabled=True) is Signal.NONE
    msrs[MC0_CTL2 + 3] = 1 << 30
    assert report(msrs, error, enabled=True) is Signal.CMCI
    with pytest.raises(KvmError, match="EINVAL"):
        report(msrs, MachineCheck(VALID, 0, 0, 0, 4), enabled=True)


async def test_a_machine_check_reaches_the_guest(registry):
    machine = await made(registry, HLT)
    await machine.set_sregs(0, {"idt": {"base": 0, "limit": 0}, "cr4": 0x40})
    await machine.setup_mce(0, 10 | CTL_P)
    await machine.set_mce(0, MachineCheck(VALID | UC, 0, 0, 4, 0))
    assert (await machine.get_vcpu_events(0))["exception"]["nr"] == 18
    assert (await machine.run(0))["exit_reason"] == "KVM_EXIT_SHUTDOWN"
