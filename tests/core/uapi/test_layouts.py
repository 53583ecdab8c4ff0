"""Structures of the userspace ABI: sizes and offsets as the kernel has them, and values that survive a round trip."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kickstand.core import uapi
from kickstand.core.uapi import ExitReason, layout
from kickstand.core.uapi.layout import PADDING, U8, U16, U32, U64, Array, Bytes, Scalar, Struct, struct

STRUCTS = [value for value in vars(uapi).values() if isinstance(value, Struct)]

ARMS = list(uapi.KVM_RUN_EXITS.values())


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


def test_the_layout_module_knows_nothing_of_kvm():
    assert "kvm_run" not in vars(layout)
