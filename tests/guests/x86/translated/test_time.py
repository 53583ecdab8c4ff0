"""RDTSC at the translator's speed, where it reads on the host what the guest's counter follows."""

import pytest

from kickstand.core.arch.kvm_arch import KvmArch
from kickstand.core.arch.kvmclock import KvmClock
from kickstand.core.run.exits import HltExit, IoExit, ShutdownExit
from kickstand.exec.host.tsc import HostTsc
from kickstand.guests.time_source import NANOSECONDS
from kickstand.guests.x86.emulated.execution import Execution
from tests.guests.x86.machine import ENTRY, Machine, engines, modes

RDTSC, HLT = "0f31", "f4"
HIGH = 1 << 62


@pytest.fixture(scope="module")
def host():
    return HostTsc()


@pytest.fixture
def emulated(monkeypatch):
    """How many instructions have left the translator."""
    seen, dispatch = [], Execution._dispatch

    def noted(execution):
        seen.append(execution._state.rip)
        return dispatch(execution)

    monkeypatch.setattr(Execution, "_dispatch", noted)
    return seen


def machine(mode, code, engine, source, **regs):
    return Machine(mode, code, engine=engine, arch=KvmArch(clock=KvmClock(source)), **regs)


def time_read(guest):
    return guest.reg("rax") & 0xFFFFFFFF | (guest.reg("rdx") & 0xFFFFFFFF) << 32


@modes
def test_the_guests_counter_is_the_hosts_and_its_offset(engine, mode, host, emulated):
    guest = machine(mode, RDTSC + HLT, engine, host)
    guest.cpu.counter.now = HIGH
    before = guest.cpu.counter.now
    assert guest.run() == HltExit()
    assert before < time_read(guest) < guest.cpu.counter.now
    assert emulated == [ENTRY + 2]


@engines
def test_a_counter_that_the_guest_sets_goes_on_from_there(engine, host):
    """WRMSR of the counter between two reads of it."""
    guest = machine("prot32", RDTSC + "b910000000 31c0 ba00000040 0f30" + RDTSC + HLT, engine, host)
    assert guest.run() == HltExit()
    assert HIGH < time_read(guest) < guest.cpu.counter.now


@engines
@pytest.mark.parametrize("rate", [0.5, 2])
def test_at_another_rate_it_is_not_the_hosts(engine, rate, host, emulated):
    guest = machine("long64", RDTSC + HLT, engine, host)
    assert guest.run() == HltExit()
    guest.cpu.counter.set_khz(int(host.khz * rate))
    guest.cpu.set_registers({"rip": ENTRY})
    before = guest.cpu.counter.now
    emulated.clear()
    assert guest.run() == HltExit()
    assert before < time_read(guest) < guest.cpu.counter.now
    assert emulated == [ENTRY, ENTRY + 2]


@engines
def test_a_host_that_counts_nanoseconds_is_asked_each_time(engine, emulated):
    assert machine("long64", RDTSC + HLT, engine, NANOSECONDS).run() == HltExit()
    assert emulated == [ENTRY, ENTRY + 2]


@engines
@pytest.mark.parametrize("carry", ["f8", "f9"])
def test_flags_stay_what_the_last_computation_made_them(engine, carry, host):
    code = "31c0" + carry + RDTSC + "9c58 e680"  # xor eax, eax; clc or stc; rdtsc; pushf; pop rax; out 0x80, al
    exit = machine("long64", code, engine, host).run()
    assert isinstance(exit, IoExit)
    assert exit.data[0] & 0x41 == 0x40 + (carry == "f9")


@engines
def test_time_that_only_the_kernel_may_read_is_a_fault_of_the_user(engine, host):
    guest = machine("prot32", RDTSC + HLT, engine, host)
    sregs = guest.cpu.special_registers()
    user = {name: {**sregs[name], "dpl": 3} for name in ("cs", "ss")}
    guest.cpu.set_special_registers({**user, "cr4": 4, "idt": {"base": 0, "limit": 0}})
    assert guest.run() == ShutdownExit()
    assert guest.reg("rip") == ENTRY
