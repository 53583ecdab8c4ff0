"""What a CPU refuses: values of control, model-specific and debug registers, and what CPUID and quirks decide."""

import struct

import pytest

from kickstand.core.arch.cpu.cpuid import SUPPORTED, Cpuid, Entry, Feature
from kickstand.core.arch.kvm_arch import KvmArch
from kickstand.core.errors import KvmError
from kickstand.core.run.exits import HltExit, IoExit, ShutdownExit
from kickstand.core.uapi import Quirk
from tests.guests.x86.machine import ENTRY, PAE, TABLES, Machine, engines


def mov_to(register, *, debug=False):
    """MOV from RAX."""
    rex = "44" if register >= 8 else ""
    return f"{rex}0f{'23' if debug else '22'}{0xC0 | (register & 7) << 3:02x}"


def ends(mode, code, engine="precise", sregs=None, **regs):
    """The exit of the code and HLT; an exception shuts the CPU down, as there is no IDT."""
    machine = Machine(mode, code + "f4", engine=engine, **regs)
    machine.cpu.set_special_registers({"idt": {"base": 0, "limit": 0}, **(sregs or {})})
    return machine.run()


@engines
@pytest.mark.parametrize(
    ("mode", "register", "value"),
    [
        ("prot32", 0, 0x80000010),  # paging without protection
        ("prot32", 0, 0x20000011),  # NW without CD
        ("long64", 0, 1 << 32 | 0x80000011),
        ("long64", 0, 0x11),  # paging cannot go while code has 64 bits
        ("long64", 3, TABLES | 1 << 48),
        ("prot32", 4, 1 << 15),
        ("prot32", 4, 1 << 13),  # VMXE
        ("prot32", 4, 1 << 17),  # PCID outside of long mode
        ("prot32", 4, 1 << 18),  # OSXSAVE, which CPUID lacks
        ("prot32", 4, 1 << 21),  # SMAP, too
        ("long64", 4, 0),  # PAE
        ("long64", 8, 16),
    ],
)
def test_a_value_that_a_control_register_cannot_have_is_a_fault(mode, register, value, engine):
    assert ends(mode, mov_to(register), engine, rax=value) == ShutdownExit()


@engines
@pytest.mark.parametrize(
    ("mode", "register", "value"),
    [
        ("prot32", 0, 0x60000011),
        ("prot32", 4, 0x7FF),
        ("long64", 4, 0x120620),
        ("long64", 8, 15),
        ("long64", 3, TABLES),
    ],
)
def test_a_value_that_it_can_have_is_kept(mode, register, value, engine):
    back = f"{'44' if register >= 8 else ''}0f20{0xC1 | (register & 7) << 3:02x}"
    machine = Machine(mode, mov_to(register) + back + "f4", engine=engine, rax=value)
    assert machine.run() == HltExit()
    assert machine.reg("rcx") == value


@engines
@pytest.mark.parametrize("register", [1, 5, 7])
def test_a_control_register_that_does_not_exist_is_undefined(register, engine):
    machine = Machine("real", f"0f20{0xC0 | register << 3:02x}", engine=engine)
    machine.poke(6 * 4, "00050000")
    machine.poke(0x500, "f4")
    assert machine.run() == HltExit()
    assert machine.reg("rip") == 0x501


def wrmsr(index, value):
    low, high = struct.pack("<I", value & 0xFFFFFFFF).hex(), struct.pack("<I", value >> 32).hex()
    return f"b9{struct.pack('<I', index).hex()}b8{low}ba{high}0f30"


@engines
@pytest.mark.parametrize(
    ("mode", "index", "value"),
    [
        ("prot32", 0xC0000080, 2),  # EFER: reserved, FFXSR, SVME
        ("prot32", 0xC0000080, 1 << 14),
        ("prot32", 0xC0000080, 1 << 12),
        ("long64", 0xC0000080, 0x400),  # LME while paging
        ("prot32", 0x1B, 1),
        ("prot32", 0x1B, 0xFEE00400),  # x2APIC without being enabled
        ("prot32", 0x1B, 1 << 50 | 0xFEE00800),
        ("long64", 0xC0000100, 1 << 63),
        ("long64", 0xC0000082, 1 << 47),
        ("prot32", 0x277, 0x02),  # no memory type
        ("prot32", 0x250, 0x03),
        ("prot32", 0x200, 0x102),
        ("prot32", 0x2FF, 1 << 12),
        ("prot32", 0x400, 5),
        ("prot32", 0x401, 5),
        ("prot32", 0xFE, 0),
        ("prot32", 0xCE, 0),
        ("prot32", 0xC0010015, 1),
        ("prot32", 0x4B564D05, 2),
        ("prot32", 0x1234, 0),
    ],
)
def test_what_an_msr_cannot_hold_is_a_fault(mode, index, value, engine):
    assert ends(mode, wrmsr(index, value), engine) == ShutdownExit()


@engines
@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0xC0000081, 0x1234567887654321),
        (0xC0000101, 0xFFFF800000001000),
        (0x277, 0x0007040600070401),
        (0x2FF, 0xC06),
        (0x201, 0xFFFFFF000800),
        (0x402, 7),
        (0x3B, 5),
        (0xC0010015, 1 << 18),
        (0x17A, 7),
        (0xC0000103, 0x77),
    ],
)
def test_what_it_can_hold_is_kept_for_rdmsr_and_in_a_snapshot(index, value, engine):
    machine = Machine("long64", wrmsr(index, value) + "e642" + "0f32" + "f4", engine=engine)
    assert isinstance(machine.run(), IoExit)
    machine.cpu.load(machine.cpu.state())
    assert machine.run() == HltExit()
    assert machine.reg("rdx") << 32 | machine.reg("rax") == value


def test_an_apic_base_is_the_same_for_rdmsr_and_sregs():
    machine = Machine("prot32", wrmsr(0x1B, 0xFEC00900) + "f4")
    assert machine.run() == HltExit()
    assert machine.cpu.special_registers()["apic_base"] == 0xFEC00900


@engines
def test_efer_starts_long_mode_when_paging_is_switched_on(engine):
    # WRMSR EFER.LME; MOV CR0 with PG: LMA follows, and is gone when paging is
    code = wrmsr(0xC0000080, 0x100) + "b811000080" + "0f22c0" + "b911000000" + "0f22c1" + "f4"
    machine = Machine("prot32", code, engine=engine)
    machine.poke(TABLES, struct.pack("<QQ", TABLES + 0x1063, 0))
    machine.poke(TABLES + 0x1000, struct.pack("<Q", TABLES + 0x2063))
    machine.poke(TABLES + 0x2000, struct.pack("<Q", 0xE3))
    machine.cpu.set_special_registers({"cr3": TABLES, "cr4": PAE})
    seen = []
    while not seen or seen[-1] != HltExit():
        seen.append(machine.cpu.run(1 if engine == "precise" else 0))
    assert machine.cpu.special_registers()["efer"] == 0x100
    assert machine.reg("rip") == ENTRY + len(code) // 2


@engines
@pytest.mark.parametrize(
    ("index", "number", "value"), [(0, 0, 0x1234), (3, 3, 1), (6, 6, 0), (4, 6, 0), (7, 7, 0x2000)]
)
def test_debug_registers_keep_what_they_have_bits_for(index, number, value, engine):
    fixed = {6: 0xFFFF0FF0, 7: 0x400}.get(number, 0)
    machine = Machine("prot32", mov_to(index, debug=True) + "f4", engine=engine, rax=value)
    assert machine.run() == HltExit()
    assert machine.cpu.state()["debugregs"][min(number, 4) if number < 6 else number - 2] == value | fixed


@engines
def test_a_debug_register_that_is_guarded_traps(engine):
    machine = Machine("real", mov_to(7, debug=True) + "0f21c3", engine=engine, rax=0x2000)
    machine.poke(4, "00050000")
    machine.poke(0x500, "f4")
    assert machine.run() == HltExit()
    debug = machine.cpu.state()["debugregs"]
    assert debug[4] & 0x2000
    assert not debug[5] & 0x2000


@engines
def test_ltr_makes_its_segment_busy_and_takes_no_null_selector(engine):
    machine = Machine("prot32", "0f00d8" + "f4", engine=engine, rax=8)
    machine.poke(0x5008, struct.pack("<Q", 0x0000890060000067))
    tables = {"gdt": {"base": 0x5000, "limit": 23}, "idt": {"base": 0, "limit": 0}}
    machine.cpu.set_special_registers(tables)
    assert machine.run() == HltExit()
    task = machine.cpu.special_registers()["tr"]
    assert (task["type"], task["base"], task["limit"]) == (11, 0x6000, 0x67)
    assert ends("prot32", "0f00d8", engine, tables, rax=0) == ShutdownExit()


@engines
def test_int1_is_a_debug_exception_after_the_instruction(engine):
    machine = Machine("real", "f1", engine=engine)
    machine.poke(4, "00050000")
    machine.poke(0x500, "f4")
    assert machine.run() == HltExit()
    assert machine.peek(0x7000 - 6, 2) == (ENTRY + 1).to_bytes(2, "little")


@engines
@pytest.mark.parametrize(("code", "result"), [("0f01c1", 0xFFFFFC18), ("0f01d9", 0xFFFFFC18)])
def test_an_unknown_hypercall_is_not_implemented(code, result, engine):
    machine = Machine("prot32", code + "f4", engine=engine, rax=99)
    assert machine.run() == HltExit()
    assert machine.reg("rax") == result


@engines
def test_the_other_vendors_hypercall_is_made_ours_or_by_the_quirk_left_undefined(engine):
    machine = Machine("prot32", "0f01c1f4", engine=engine, rax=11)
    assert machine.run() == HltExit()
    assert machine.reg("rax") == 0
    assert machine.peek(ENTRY, 3).hex() == "0f01d9"
    without = KvmArch(disabled_quirks=Quirk.FIX_HYPERCALL_INSN)
    machine = Machine("prot32", "0f01c1f4", engine=engine, arch=without, rax=11)
    assert machine.run() == ShutdownExit()  # no handler for #UD
    assert machine.peek(ENTRY, 3).hex() == "0f01c1"


@engines
def test_monitor_does_nothing_or_without_its_quirk_is_undefined(engine):
    machine = Machine("prot32", "0f01c8f4", engine=engine)
    assert machine.run() == HltExit()
    without = KvmArch(disabled_quirks=Quirk.MWAIT_NEVER_UD_FAULTS)
    machine = Machine("prot32", "0f01c8f4", engine=engine, arch=without)
    assert machine.run() == ShutdownExit()


@engines
def test_the_guest_sees_the_cpuid_that_was_set(engine):
    machine = Machine("prot32", "0fa2f4", engine=engine, rax=0x12345, rcx=3)
    machine.cpu.set_cpuid([*SUPPORTED, Entry(0x12345, 3, 1, 1, 2, 3, 4), Entry(0x12345, 4, 1, 5, 6, 7, 8)])
    assert machine.run() == HltExit()
    assert [machine.reg(name) for name in ("rax", "rbx", "rcx", "rdx")] == [1, 2, 3, 4]
    machine = Machine("prot32", "0fa2f4", engine=engine, rax=0x12345)
    assert machine.run() == HltExit()
    assert machine.reg("rax") == 0


def test_a_feature_that_cpuid_lacks_is_reserved_for_sregs_too():
    machine = Machine("prot32", "f4")
    machine.cpu.set_special_registers({"cr4": 1 << 20})
    without = [entry for entry in SUPPORTED if entry.function != 7]
    machine.cpu.set_cpuid(without)
    assert not Cpuid(without).has(Feature.SMEP)
    with pytest.raises(KvmError, match="CR4"):
        machine.cpu.set_special_registers({"cr4": 1 << 20})


def test_sregs_take_what_the_kernel_does_not_look_at():
    machine = Machine("prot32", "f4")
    machine.cpu.set_special_registers({"efer": 2, "cr8": 16})
    special = machine.cpu.special_registers()
    assert (special["efer"], special["cr8"]) == (2, 0)
    for base in (1, 0x400, 1 << 60):
        with pytest.raises(KvmError, match="APIC"):
            machine.cpu.set_special_registers({"apic_base": base})


@engines
def test_the_time_stamp_counter_goes_on_from_what_is_written(engine):
    machine = Machine("prot32", wrmsr(0x10, 1 << 40) + "0f31" + "f4", engine=engine)
    assert machine.run() == HltExit()
    assert machine.reg("rdx") == 1 << 8
    adjusted = Machine("prot32", wrmsr(0x10, 0) + "b93b0000000f32f4", engine=engine)
    assert adjusted.run() == HltExit()
    assert adjusted.reg("rdx") >> 31  # back by as much as had passed


@engines
@pytest.mark.parametrize(("privilege", "exit"), [(0, HltExit()), (1, ShutdownExit()), (3, ShutdownExit())])
@pytest.mark.parametrize("load", ["8ed0", "0fb223"], ids=["mov", "lss"])
def test_a_null_stack_segment_has_the_privileges_of_the_code(engine, load, privilege, exit):
    machine = Machine("long64", load + "f4", engine=engine, rax=privilege, rbx=0x6000)
    machine.poke(0x6000, struct.pack("<IH", 0x7000, privilege))
    assert machine.run() == exit
    assert machine.cpu.special_registers()["ss"]["selector"] == (0 if exit == HltExit() else 16)


@engines
def test_test_is_not_locked(engine):
    assert ends("prot32", "f0f60b01", engine, rbx=0x6000) == ShutdownExit()
