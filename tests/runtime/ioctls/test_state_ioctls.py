"""What is saved of a vCPU beside its registers comes back, and works there."""

import errno
from struct import Struct

import pytest

from kickstand.core.errors import KvmError
from kickstand.core.memslots import Region
from kickstand.core.uapi import KVM_SREGS2, KVM_TRANSLATION, KVM_VCPU_EVENTS, Fd
from kickstand.runtime.registry import Registry
from kickstand.runtime.table import find
from kickstand.scripts.language.presets import PRESETS
from tests.runtime.ioctls.test_model_ioctls import Bytes

RAM = 0x10000
SAVED = {  # name: (get, set, size)
    "fpu": (0x81A0AE8C, 0x41A0AE8D, 416),
    "xsave": (0x9000AEA4, 0x5000AEA5, 4096),
    "debugregs": (0x8080AEA1, 0x4080AEA2, 128),
    "xcrs": (0x8188AEA6, 0x4188AEA7, 392),
    "sregs2": (0x8140AECC, 0x4140AECD, KVM_SREGS2.size),
    "events": (0x8040AE9F, 0x4040AEA0, KVM_VCPU_EVENTS.size),
}


async def call(machine, request, data=b"", vcpu=0):
    memory = Bytes(data)
    assert await find(Fd.VCPU, request).call(machine, 0x1000, memory, vcpu) == 0
    return bytes(memory.data)


@pytest.fixture
async def machine():
    registry = Registry()
    made = await registry.create("vm", vcpus=2, engine="x86")
    arena = made.memory.allocate(RAM)
    # fld1; fld1; fadd; movd xmm3, eax; mov dr0, eax; out 0x10, al
    made.memory.write(arena.base + 0x1000, bytes.fromhex("d9e8d9e8dec1" + "660f6ed8" + "0f23c0" + "e610"))
    # fistp dword [0x2000]; movd ebx, xmm3; mov ecx, dr0; hlt
    made.memory.write(arena.base + 0x1100, bytes.fromhex("db1d00200000" + "660f7edb" + "0f21c1" + "f4"))
    await made.call(made.vm.set_user_memory_region(region(arena.base), made.thread()))
    made.base = arena.base
    for vcpu in (0, 1):
        await made.set_sregs(vcpu, PRESETS["prot32"] | {"cr4": 0x600})
        await made.set_regs(vcpu, {"rip": 0x1000, "rax": 0x1234, "rflags": 2, "rsp": 0x7000})
    yield made
    await registry.destroy("vm")


def region(hva):
    return Region(0, 0, 0, RAM, hva)


@pytest.mark.parametrize("fpu", ["fpu", "xsave"])
async def test_a_state_that_moves_to_another_vcpu_goes_on_there(machine, fpu):
    await machine.run(0)
    for name in (fpu, "debugregs", "xcrs", "sregs2", "events"):
        get, put, size = SAVED[name]
        saved = (await call(machine, get))[:size]
        await call(machine, put, saved, 1)
        assert (await call(machine, get, vcpu=1))[:size] == saved
    await machine.set_regs(1, {"rip": 0x1100})
    assert (await machine.run(1))["exit_reason"] == "KVM_EXIT_HLT"
    registers = await machine.get_regs(1)
    assert (registers["rbx"], registers["rcx"]) == (0x1234, 0x1234)
    assert machine.memory.read(machine.base + 0x2000, 4) == b"\x02\0\0\0"


@pytest.mark.parametrize(
    ("name", "at", "value"),
    [
        ("xsave", 512, 4),  # AVX
        ("xsave", 24, 0x10000),  # MXCSR
        ("debugregs", 48, 1),  # flags
        ("debugregs", 36, 1),  # the upper half of DR6
        ("xcrs", 16, 7),
        ("sregs2", 280, 2),
        ("events", 20, 1 << 10),
    ],
)
async def test_what_no_cpu_has_is_refused_and_nothing_changes(machine, name, at, value):
    get, put, size = SAVED[name]
    before = (await call(machine, get))[:size]
    data = bytearray(before)
    Struct("<I").pack_into(data, at, value)
    with pytest.raises(KvmError) as refused:
        await call(machine, put, bytes(data))
    assert refused.value.errno == errno.EINVAL
    assert (await call(machine, get))[:size] == before


async def test_an_exception_that_is_set_is_delivered_and_waits_in_the_events_until_then(machine):
    events = KVM_VCPU_EVENTS.unpack((await call(machine, SAVED["events"][0]))[: KVM_VCPU_EVENTS.size])
    events["exception"] |= {"injected": 1, "nr": 3}
    await machine.set_vcpu_events(0, events)
    assert (await machine.get_vcpu_events(0))["exception"]["nr"] == 3
    await machine.set_sregs(0, PRESETS["real"])
    machine.memory.write(machine.base + 12, b"\0\x05\0\0")
    machine.memory.write(machine.base + 0x500, b"\xf4")
    assert (await machine.run(0))["exit_reason"] == "KVM_EXIT_HLT"
    assert (await machine.get_regs(0))["rip"] == 0x501
    assert not (await machine.get_vcpu_events(0))["exception"]["injected"]
    events["exception"]["nr"] = 2
    with pytest.raises(KvmError):
        await machine.set_vcpu_events(0, events)


async def test_an_nmi_that_waits_is_in_the_events_and_goes_with_them(machine):
    await machine.nmi(0)
    events = KVM_VCPU_EVENTS.unpack((await call(machine, SAVED["events"][0]))[: KVM_VCPU_EVENTS.size])
    assert events["nmi"]["pending"] == 1
    events["nmi"]["pending"] = 0
    await machine.set_vcpu_events(0, events)
    assert (await machine.get_vcpu_events(0))["nmi"]["pending"] == 0


async def test_translate_finds_the_page_or_says_that_there_is_none(machine):
    asked = KVM_TRANSLATION.pack({"linear_address": 0x3123})
    answer = KVM_TRANSLATION.unpack((await call(machine, 0xC018AE85, asked))[: KVM_TRANSLATION.size])
    assert (answer["physical_address"] | 0x123, answer["valid"]) == (0x3123, 1)
    await machine.set_sregs(0, {"cr0": 0x80000011, "cr3": 0x9000})
    answer = await machine.translate(0, 0x3000)
    assert (answer["physical_address"], answer["valid"]) == ((1 << 64) - 1, 0)
