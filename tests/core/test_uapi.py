"""The userspace ABI: numbers as the kernel's headers have them, and layouts that survive a round trip."""

import errno
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kickstand.core import uapi
from kickstand.core.uapi import CAPABILITIES, IOCTLS, Cap, Direction, ExitReason, Fd, MemFlag, MpState, layout
from kickstand.core.uapi.layout import PADDING, U8, U16, U32, U64, Array, Bytes, Scalar, Struct, struct

HEADER = Path("/usr/include/linux/kvm.h")
needs_header = pytest.mark.skipif(not HEADER.exists(), reason="the kernel's userspace headers are not installed")

STRUCTS = [value for value in vars(uapi).values() if isinstance(value, Struct)]
ARMS = list(uapi.KVM_RUN_EXITS.values())
PROPOSED = {"KVM_KICK_ALL_RUNNING_VCPUS", "KVM_RESUME_ALL_KICKED_VCPUS"}

REQUESTS = {
    Fd.SYSTEM: {
        "GET_API_VERSION": 0xAE00,
        "CREATE_VM": 0xAE01,
        "CHECK_EXTENSION": 0xAE03,
        "GET_VCPU_MMAP_SIZE": 0xAE04,
        "GET_MSR_INDEX_LIST": 0xC004AE02,
        "GET_SUPPORTED_CPUID": 0xC008AE05,
        "GET_EMULATED_CPUID": 0xC008AE09,
        "GET_MSR_FEATURE_INDEX_LIST": 0xC004AE0A,
        "X86_GET_MCE_CAP_SUPPORTED": 0x8008AE9D,
        "GET_MSRS": 0xC008AE88,
    },
    Fd.VM: {
        "CHECK_EXTENSION": 0xAE03,
        "CREATE_VCPU": 0xAE41,
        "GET_DIRTY_LOG": 0x4010AE42,
        "SET_NR_MMU_PAGES": 0xAE44,
        "GET_NR_MMU_PAGES": 0xAE45,
        "SET_USER_MEMORY_REGION": 0x4020AE46,
        "SET_USER_MEMORY_REGION2": 0x40A0AE49,
        "SET_TSS_ADDR": 0xAE47,
        "SET_IDENTITY_MAP_ADDR": 0x4008AE48,
        "CREATE_IRQCHIP": 0xAE60,
        "IRQ_LINE": 0x4008AE61,
        "GET_IRQCHIP": 0xC208AE62,
        "SET_IRQCHIP": 0x8208AE63,
        "IRQ_LINE_STATUS": 0xC008AE67,
        "SET_GSI_ROUTING": 0x4008AE6A,
        "IRQFD": 0x4020AE76,
        "CREATE_PIT2": 0x4040AE77,
        "IOEVENTFD": 0x4040AE79,
        "GET_PIT2": 0x8070AE9F,
        "SET_PIT2": 0x4070AEA0,
        "ENABLE_CAP": 0x4068AEA3,
        "GET_TSC_KHZ": 0xAEA3,
        "SET_TSC_KHZ": 0xAEA2,
        "SET_BOOT_CPU_ID": 0xAE78,
        "SET_CLOCK": 0x4030AE7B,
        "GET_CLOCK": 0x8030AE7C,
        "REGISTER_COALESCED_MMIO": 0x4010AE67,
        "UNREGISTER_COALESCED_MMIO": 0x4010AE68,
        "X86_SET_MSR_FILTER": 0x4188AEC6,
        "SIGNAL_MSI": 0x4020AEA5,
        "CLEAR_DIRTY_LOG": 0xC018AEC0,
        "RESET_DIRTY_RINGS": 0xAEC7,
        "GET_STATS_FD": 0xAECE,
        "KICK_ALL_RUNNING_VCPUS": 0xAED2,
        "RESUME_ALL_KICKED_VCPUS": 0xAED3,
    },
    Fd.VCPU: {
        "RUN": 0xAE80,
        "GET_REGS": 0x8090AE81,
        "SET_REGS": 0x4090AE82,
        "GET_SREGS": 0x8138AE83,
        "SET_SREGS": 0x4138AE84,
        "GET_SREGS2": 0x8140AECC,
        "SET_SREGS2": 0x4140AECD,
        "TRANSLATE": 0xC018AE85,
        "INTERRUPT": 0x4004AE86,
        "GET_MSRS": 0xC008AE88,
        "SET_MSRS": 0x4008AE89,
        "SET_SIGNAL_MASK": 0x4004AE8B,
        "GET_FPU": 0x81A0AE8C,
        "SET_FPU": 0x41A0AE8D,
        "GET_LAPIC": 0x8400AE8E,
        "SET_LAPIC": 0x4400AE8F,
        "SET_CPUID2": 0x4008AE90,
        "TPR_ACCESS_REPORTING": 0xC028AE92,
        "SET_VAPIC_ADDR": 0x4008AE93,
        "GET_CPUID2": 0xC008AE91,
        "GET_MP_STATE": 0x8004AE98,
        "SET_MP_STATE": 0x4004AE99,
        "NMI": 0xAE9A,
        "GET_DEBUGREGS": 0x8080AEA1,
        "SET_DEBUGREGS": 0x4080AEA2,
        "GET_TSC_KHZ": 0xAEA3,
        "SET_TSC_KHZ": 0xAEA2,
        "ENABLE_CAP": 0x4068AEA3,
        "X86_SETUP_MCE": 0x4008AE9C,
        "X86_SET_MCE": 0x4040AE9E,
        "KVMCLOCK_CTRL": 0xAEAD,
        "SET_DEVICE_ATTR": 0x4018AEE1,
        "GET_DEVICE_ATTR": 0x4018AEE2,
        "HAS_DEVICE_ATTR": 0x4018AEE3,
        "GET_XSAVE": 0x9000AEA4,
        "SET_XSAVE": 0x5000AEA5,
        "GET_XCRS": 0x8188AEA6,
        "SET_XCRS": 0x4188AEA7,
        "GET_XSAVE2": 0x9000AECF,
        "SMI": 0xAEB7,
        "SET_GUEST_DEBUG": 0x4048AE9B,
        "GET_VCPU_EVENTS": 0x8040AE9F,
        "SET_VCPU_EVENTS": 0x4040AEA0,
        "GET_STATS_FD": 0xAECE,
    },
}

SIZES = {
    "kvm_userspace_memory_region": 32,
    "kvm_userspace_memory_region2": 160,
    "kvm_dirty_log": 16,
    "kvm_clear_dirty_log": 24,
    "kvm_regs": 144,
    "kvm_segment": 24,
    "kvm_dtable": 16,
    "kvm_sregs": 312,
    "kvm_sregs2": 320,
    "kvm_mp_state": 4,
    "kvm_interrupt": 4,
    "kvm_irq_level": 8,
    "kvm_msi": 32,
    "kvm_lapic_state": 1024,
    "kvm_irqchip": 520,
    "kvm_pit_config": 64,
    "kvm_pit_state2": 112,
    "kvm_pit_channel_state": 24,
    "kvm_irq_routing": 8,
    "kvm_irq_routing_entry": 48,
    "kvm_translation": 24,
    "kvm_enable_cap": 104,
    "kvm_vcpu_events": 64,
    "kvm_run": 2352,
}

RUN_OFFSETS = {
    "request_interrupt_window": 0,
    "immediate_exit": 1,
    "exit_reason": 8,
    "ready_for_interrupt_injection": 12,
    "if_flag": 13,
    "flags": 14,
    "cr8": 16,
    "apic_base": 24,
    "exit": 32,
    "kvm_valid_regs": 288,
    "kvm_dirty_regs": 296,
    "sync_regs": 304,
}

ARM_OFFSETS = {
    ExitReason.IO: {"direction": 32, "size": 33, "port": 34, "count": 36, "data_offset": 40},
    ExitReason.MMIO: {"phys_addr": 32, "data": 40, "len": 48, "is_write": 52},
    ExitReason.INTERNAL_ERROR: {"suberror": 32, "ndata": 36, "data": 40},
    ExitReason.SYSTEM_EVENT: {"type": 32, "ndata": 36, "data": 40},
    ExitReason.X86_RDMSR: {"error": 32, "reason": 40, "index": 44, "data": 48},
    ExitReason.X86_WRMSR: {"error": 32, "reason": 40, "index": 44, "data": 48},
    ExitReason.DEBUG: {"exception": 32, "pc": 40, "dr6": 48, "dr7": 56},
    ExitReason.HYPERCALL: {"nr": 32, "args": 40, "ret": 88, "longmode": 96},
    ExitReason.TPR_ACCESS: {"rip": 32, "is_write": 40},
    ExitReason.IOAPIC_EOI: {"vector": 32},
    ExitReason.FAIL_ENTRY: {"hardware_entry_failure_reason": 32, "cpu": 40},
}


# Ioctls


def test_every_request_code_is_the_kernels():
    ours = {fd: {i.name.removeprefix("KVM_"): i.request for i in IOCTLS if i.fd is fd} for fd in Fd}
    assert ours == REQUESTS


def test_no_descriptor_knows_one_request_twice():
    assert len({(ioctl.fd, ioctl.request) for ioctl in IOCTLS}) == len(IOCTLS)


@pytest.mark.parametrize("ioctl", IOCTLS, ids=lambda ioctl: f"{ioctl.fd.value}-{ioctl.name}")
def test_a_request_is_found_on_its_own_descriptor_and_carries_its_payload(ioctl):
    assert uapi.ioctl_by_request(ioctl.fd, ioctl.request) is ioctl
    assert (ioctl.size == 0) == (ioctl.direction is Direction.NONE)
    assert ioctl.payload is None or ioctl.payload.size == ioctl.size


def test_dispatch_takes_the_whole_request_code_not_the_number_alone():
    set_memory_attributes = 0x4020AED2  # shares its number with the kick
    assert uapi.ioctl_by_request(Fd.VM, set_memory_attributes) is None
    assert uapi.ioctl_by_request(Fd.VM, 0xAED2).name == "KVM_KICK_ALL_RUNNING_VCPUS"
    assert uapi.ioctl_by_request(Fd.VCPU, 0xAED2) is None


def test_an_unknown_request_is_enotty_on_a_vm_and_einval_elsewhere():
    assert {fd: uapi.unknown_errno(fd) for fd in Fd} == {
        Fd.SYSTEM: errno.EINVAL,
        Fd.VM: errno.ENOTTY,
        Fd.VCPU: errno.EINVAL,
    }


@pytest.mark.parametrize("name", ["RUN", "KVM_RUN"])
def test_an_ioctl_is_found_by_name_with_and_without_prefix(name):
    assert uapi.ioctl_by_name(name).request == 0xAE80


def test_an_unknown_ioctl_name_is_a_key_error():
    with pytest.raises(KeyError, match="KVM_DANCE"):
        uapi.ioctl_by_name("DANCE")


# Names


def test_exit_reasons_are_numbered_without_a_gap_and_named_as_in_the_kernel():
    assert [int(reason) for reason in ExitReason] == list(range(41))
    assert (ExitReason(2).kernel_name, ExitReason(40).kernel_name) == ("KVM_EXIT_IO", "KVM_EXIT_TDX")


@pytest.mark.parametrize("value", range(4))
def test_memory_flags_survive_the_way_through_names(value):
    assert MemFlag.from_names(MemFlag(value).names) == value


def test_memory_flags_keep_and_show_bits_without_a_name():
    assert MemFlag(0x80000003).names == ["LOG_DIRTY_PAGES", "READONLY", "0x80000000"]


def test_memory_flags_take_the_kernels_full_names():
    assert MemFlag.from_names(["KVM_MEM_READONLY"]) is MemFlag.READONLY


def test_an_unknown_memory_flag_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'SHINY' is not one of LOG_DIRTY_PAGES, READONLY"):
        MemFlag.from_names(["SHINY"])


def test_every_capability_has_an_answer():
    assert set(CAPABILITIES) == set(Cap)
    assert CAPABILITIES[Cap.NR_MEMSLOTS] == 32764
    assert CAPABILITIES[Cap.MULTI_ADDRESS_SPACE] == CAPABILITIES[Cap.X86_SMM] == 0


# Layouts


def test_structures_have_the_kernels_sizes():
    assert {each.name: each.size for each in STRUCTS} == SIZES


def test_kvm_run_has_the_kernels_offsets():
    assert {name: uapi.KVM_RUN.offset(name) for name in uapi.KVM_RUN.names} == RUN_OFFSETS
    base = uapi.KVM_RUN.offset("exit")
    arms = {reason: {name: base + arm.offset(name) for name in arm.names} for reason, arm in uapi.KVM_RUN_EXITS.items()}
    assert arms == ARM_OFFSETS


def test_a_structure_nests_in_another():
    data = uapi.KVM_SREGS.pack({"tr": {"selector": 0x28}, "interrupt_bitmap": [0, 1]})
    assert data[144 + 12 : 144 + 14] == b"\x28\0"
    assert uapi.KVM_SREGS.unpack(data)["tr"]["selector"] == 0x28
    assert uapi.KVM_SREGS.unpack(data)["interrupt_bitmap"] == [0, 1, 0, 0]


def test_an_exit_goes_into_the_shared_page():
    arm = uapi.KVM_RUN_EXITS[ExitReason.MMIO].pack({"phys_addr": 0x1000, "data": b"\xab", "len": 1, "is_write": 1})
    page = uapi.KVM_RUN.pack({"exit_reason": ExitReason.MMIO, "exit": arm})
    assert (page[8], page[32:40], page[40], page[48], page[52]) == (6, (0x1000).to_bytes(8, "little"), 0xAB, 1, 1)


def values(kind):
    """Any value that the kind can hold."""
    match kind:
        case Scalar(size=size, signed=signed):
            half = 1 << (size * 8 - 1)
            return st.integers(-half, half - 1) if signed else st.integers(0, 2 * half - 1)
        case Bytes(size=size):
            return st.binary(min_size=size, max_size=size)
        case Array(item=item, count=count):
            return st.lists(values(item), min_size=count, max_size=count)
        case Struct(fields=fields):
            return st.fixed_dictionaries({f.name: values(f.kind) for f in fields if not f.hidden})


anything = st.sampled_from([*STRUCTS, *ARMS]).flatmap(lambda kind: st.tuples(st.just(kind), values(kind)))


@settings(max_examples=50)
@given(anything)
def test_values_survive_the_way_through_bytes(case):
    kind, value = case
    data = kind.pack(value)
    assert len(data) == kind.size
    assert kind.unpack(data) == value


@settings(max_examples=50)
@given(anything)
def test_values_survive_the_way_through_json(case):
    kind, value = case
    assert kind.from_json(kind.to_json(value)) == value


def test_json_shows_addresses_and_registers_in_hex_sizes_in_decimal_and_takes_both():
    region = uapi.KVM_USERSPACE_MEMORY_REGION
    value = {"slot": 1, "guest_phys_addr": 0x1000, "memory_size": 4096}
    assert region.to_json(value) == {"slot": 1, "guest_phys_addr": "0x1000", "memory_size": 4096}
    assert region.from_json({"slot": "1", "guest_phys_addr": 4096, "memory_size": "0x1000"}) == value


def test_padding_is_zero_and_not_shown():
    one = struct("one", ("a", U8), (PADDING, Bytes(3)), ("b", U32))
    assert one.unpack(b"\1\xff\xff\xff\2\0\0\0") == {"a": 1, "b": 2}
    assert one.pack({"a": 1, "b": 2}) == b"\1\0\0\0\2\0\0\0"
    with pytest.raises(ValueError, match="one has no field 'padding'"):
        one.pack({"padding": b"\1"})


def test_members_are_aligned_as_in_c():
    one = struct("one", ("a", U8), ("b", U64), ("c", U16))
    assert ([one.offset(name) for name in "abc"], one.size, one.align) == ([0, 8, 16], 24, 8)


S32 = Scalar("s32", 4, signed=True)


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (U8, 256, "0x100 does not fit u8"),
        (U8, -1, "-0x1 does not fit u8"),
        (S32, 1 << 31, "does not fit s32"),
        (U8, "1", "is not an integer"),
        (Bytes(2), b"abc", "3 bytes do not fit 2"),
        (Bytes(2), "ab", "is not bytes"),
        (Array(U8, 2), [1, 2, 3], "3 values do not fit 2"),
        (Array(U8, 2), b"ab", "is not a list"),
        (uapi.KVM_REGS, [1], "is not a mapping"),
        (uapi.KVM_REGS, {"rxx": 1}, "kvm_regs has no field 'rxx'"),
        (uapi.KVM_SREGS, {"cs": {"dpl": 256}}, "kvm_sregs.cs: kvm_segment.dpl: 0x100 does not fit u8"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(kind, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        kind.pack(value)


@pytest.mark.parametrize(("kind", "value"), [(U8, True), (U8, None), (U8, "one"), (Bytes(1), 1), (Bytes(1), "0g")])
def test_what_json_cannot_mean_is_refused(kind, value):
    with pytest.raises(ValueError, match=r"."):
        kind.from_json(value)


def test_bytes_of_another_size_are_refused():
    with pytest.raises(ValueError, match="kvm_regs has 144 bytes, not 143"):
        uapi.KVM_REGS.unpack(bytes(143))


# Against the headers of this machine, where they are installed


def defines(prefix):
    found = re.findall(rf"^#define {prefix}(\w+)\s+(\d+)\b", HEADER.read_text(), re.MULTILINE)
    return {name: int(value) for name, value in found}


@needs_header
@pytest.mark.parametrize(
    ("prefix", "names"),
    [
        ("KVM_EXIT_", ExitReason),
        ("KVM_MP_STATE_", MpState),
        ("KVM_INTERNAL_ERROR_", uapi.InternalError),
        ("KVM_CAP_", Cap),
    ],
)
def test_names_have_the_headers_values(prefix, names):
    theirs = defines(prefix)
    known = {each.name: int(each) for each in names if each.name in theirs}
    assert known == {name: theirs[name] for name in known}
    assert len(known) > 3


@needs_header
def test_ioctls_have_the_headers_direction_number_and_payload():
    pattern = r"^#define (KVM_\w+)\s+_IO(W|R|WR)?\(KVMIO,\s*(0x[0-9a-f]+)(?:,[\s\\]*(?:struct )?(\w+))?"
    theirs = {name: rest for name, *rest in re.findall(pattern, HEADER.read_text(), re.MULTILINE)}
    letters = {Direction.NONE: "", Direction.WRITE: "W", Direction.READ: "R", Direction(3): "WR"}
    compared = 0
    for ioctl in IOCTLS:
        if ioctl.name in PROPOSED or ioctl.name not in theirs:
            continue
        direction, nr, payload = theirs[ioctl.name]
        assert (ioctl.name, letters[ioctl.direction], ioctl.nr) == (ioctl.name, direction, int(nr, 16))
        assert ioctl.payload is None or ioctl.payload.name == payload
        compared += 1
    assert compared > 40


@needs_header
@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the layouts are those of x86-64")
def test_a_c_compiler_agrees_on_every_size_and_offset(tmp_path):
    known = [each for each in STRUCTS if f"struct {each.name} {{" in HEADER.read_text()]  # some are newer than it
    expected = {f"sizeof(struct {each.name})": each.size for each in known}
    for each in known:
        for name in each.names:
            if (each.name, name) not in {("kvm_run", "exit"), ("kvm_run", "sync_regs")}:  # unions without a name
                expected[f"offsetof(struct {each.name}, {name})"] = each.offset(name)
    for reason, arm in uapi.KVM_RUN_EXITS.items():
        expected |= {f"offsetof(struct kvm_run, {arm.name}.{n})": at for n, at in ARM_OFFSETS[reason].items()}
    checks = "".join(f'_Static_assert({c} == {value}, "{c}");\n' for c, value in expected.items())
    source = tmp_path / "layout.c"
    source.write_text(f"#include <stddef.h>\n#include <linux/kvm.h>\n{checks}")
    done = subprocess.run(["cc", "-fsyntax-only", source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_layout_module_knows_nothing_of_kvm():
    assert "kvm_run" not in vars(layout)
