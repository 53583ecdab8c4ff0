"""Any ioctl of the table can be an operation of a script, by its fields or its bytes, on every engine."""

import os

import pytest

from kickstand.runtime.registry import Registry
from kickstand.scripts.language.errors import ScriptError
from kickstand.scripts.play.player import play_script

SET_UP = [
    {"op": "arena", "args": {"name": "A", "size": 0x10000}},
    {"op": "set_memory_region",
     "args": {"slot": 0, "flags": 0, "gpa": 0, "size": 0x10000, "host": {"arena": "A", "offset": 0}}},
    {"op": "create_vcpu", "args": {"id": 0}},
    {"op": "set_cpuid_supported", "args": {"vcpu": 0}},
]  # fmt: skip
DATA = "0x100010000"


def ioctl(name, **args):
    return {"op": "ioctl", "args": {"name": name, **args}}


async def play(engine, *operations, before=()):
    registry = Registry()
    machine = await registry.create("vm", engine=engine)
    try:
        body = [*before, *SET_UP, *operations]
        return [result async for result in play_script(machine, body)][len(before) + len(SET_UP) :]
    finally:
        await registry.reset()


device = pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="there is no /dev/kvm")
engines = pytest.mark.parametrize("engine", ["x86", pytest.param("kvm", marks=device)])


@engines
async def test_a_structure_is_given_and_filled_in_by_the_names_of_its_fields(engine):
    put, got, raw = await play(
        engine,
        ioctl("KVM_SET_VCPU_EVENTS", vcpu=0, fields={"nmi": {"injected": 0, "pending": 1, "masked": 1}, "flags": 1}),
        ioctl("GET_VCPU_EVENTS", vcpu=0),
        ioctl("KVM_GET_FPU", vcpu=0),
    )
    assert (put["ret"], put["value"]) == (0, 0)
    assert got["fields"]["nmi"] == {"injected": 0, "pending": 1, "masked": 1}
    assert raw["hex"]


@engines
async def test_a_pointer_leads_to_the_data_beside_the_structure(engine):
    given = {"flags": 0, "ranges": [{"flags": 1, "nmsrs": 1, "base": 0x10, "bitmap": DATA}] + [{
        "flags": 0, "nmsrs": 0, "base": 0, "bitmap": 0,
    }] * 15}  # fmt: skip
    done, refused, beside = await play(
        engine,
        ioctl("KVM_X86_SET_MSR_FILTER", fields=given, data="00" * 8),
        ioctl("KVM_X86_SET_MSR_FILTER", fields={"flags": 2}),
        ioctl("KVM_SET_DEVICE_ATTR", vcpu=0, fields={"group": 0, "attr": 0, "addr": "0x10"}),
    )
    assert (done["ret"], refused["errno"], beside["errno"]) == (0, "EINVAL", "EFAULT")


@engines
async def test_the_offset_of_a_counter_that_starts_at_zero_wraps(engine):
    told, nowhere = await play(
        engine,
        ioctl("KVM_GET_DEVICE_ATTR", vcpu=0, fields={"group": 0, "attr": 0, "addr": DATA}, data="00" * 8),
        ioctl("KVM_GET_DEVICE_ATTR", vcpu=0, fields={"group": 0, "attr": 0, "addr": 0}),
    )
    assert (told["ret"], nowhere["errno"]) == (0, "EFAULT")


@engines
async def test_a_plain_argument_is_a_number(engine):
    capability, refused = await play(
        engine, ioctl("KVM_CHECK_EXTENSION", number=10), ioctl("KVM_SET_BOOT_CPU_ID", number=1)
    )
    assert (capability["value"], refused["errno"]) == (32764, "EBUSY")


@pytest.mark.parametrize(
    "operation",
    [
        ioctl("KVM_RUN", vcpu=0),
        ioctl("KVM_SET_CLOCK", vcpu=0),
        ioctl("KVM_NOTHING"),
        ioctl("KVM_SET_CLOCK", fields={"colour": 1}),
        ioctl("KVM_SET_CLOCK", fields={"clock": -1}),
        ioctl("KVM_SET_FPU", vcpu=0, fields={}),
        ioctl("KVM_NMI", vcpu=7),
        ioctl("KVM_SET_FPU", vcpu=0, hex="0"),
    ],
)
async def test_what_is_no_ioctl_is_refused_before_anything_is_done(operation):
    with pytest.raises(ScriptError):
        await play("x86", operation)


async def test_dirty_rings_and_coalesced_writes_can_be_taken_by_a_script():
    ring = ioctl("KVM_ENABLE_CAP", fields={"cap": 192, "args": [4096, 0, 0, 0]})
    results = await play(
        "x86",
        ioctl("KVM_REGISTER_COALESCED_MMIO", fields={"addr": "0x80", "size": 1, "pio": 1}),
        {"op": "write_host", "args": {"arena": "A", "offset": 0x1000, "hex": "e680f4"}},
        {"op": "set_sregs", "args": {"vcpu": 0, "preset": "prot32"}},
        {"op": "set_regs", "args": {"vcpu": 0, "regs": {"rip": 0x1000, "rflags": 2, "rax": 7}}},
        {"op": "run", "args": {"vcpu": 0}},
        {"op": "coalesced", "args": {}},
        {"op": "dirty_ring", "args": {"vcpu": 0}},
        before=[ring],
    )
    assert results[4]["exit_reason"] == "HLT"
    assert results[5]["writes"] == [{"addr": 0x80, "pio": 1, "hex": "07"}]
    assert results[6]["pages"] == []
