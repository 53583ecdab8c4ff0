"""CPUID and MSRs as a program that speaks bytes asks for them."""

import errno
from struct import Struct

import pytest

from kickstand.core.arch.cpu.cpuid import SUPPORTED, Entry
from kickstand.core.arch.cpu.msrs import INDEX_LIST
from kickstand.core.errors import KvmError
from kickstand.core.uapi import Fd, ioctl_by_name
from kickstand.runtime.registry import Registry
from kickstand.runtime.table import find

HEAD, ENTRY, MSR = Struct("<2I"), Struct("<7I12x"), Struct("<2IQ")
AT = 0x1000


class Bytes:
    """A program's memory: one page or two at AT."""

    def __init__(self, data=b""):
        self.data = bytearray(data.ljust(32_768, b"\xee"))

    def read(self, address, length):
        return bytes(self.data[address - AT : address - AT + length])

    def write(self, address, data):
        self.data[address - AT : address - AT + len(data)] = data


async def call(fd, request, target, memory, vcpu=None):
    return await find(fd, request).call(target, AT, memory, vcpu)


@pytest.fixture
async def registry():
    made = Registry()
    await made.create("vm", vcpus=1, engine="x86")
    yield made
    await made.destroy("vm")


@pytest.fixture
def vm(registry):
    return registry.get("vm")


async def test_the_supported_table_is_told_if_there_is_room(registry):
    memory = Bytes(HEAD.pack(len(SUPPORTED) - 1, 0))
    with pytest.raises(KvmError) as refused:
        await call(Fd.SYSTEM, 0xC008AE05, registry, memory)
    assert refused.value.errno == errno.E2BIG
    memory = Bytes(HEAD.pack(100, 0))
    assert await call(Fd.SYSTEM, 0xC008AE05, registry, memory) == 0
    assert HEAD.unpack_from(memory.data) == (len(SUPPORTED), 0)
    assert Entry(*ENTRY.unpack_from(memory.data, HEAD.size)) == SUPPORTED[0]


async def test_a_table_that_is_set_comes_back(registry, vm):
    table = [Entry(0, eax=1, ebx=2), Entry(7, 1, 1, 3, 4, 5, 6)]
    packed = b"".join(ENTRY.pack(e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx) for e in table)
    memory = Bytes(HEAD.pack(2, 0) + packed)
    assert await call(Fd.VCPU, 0x4008AE90, vm, memory, 0) == 0
    back = Bytes(HEAD.pack(1, 0))
    with pytest.raises(KvmError):
        await call(Fd.VCPU, 0xC008AE91, vm, back, 0)
    back = Bytes(HEAD.pack(9, 0))
    await call(Fd.VCPU, 0xC008AE91, vm, back, 0)
    assert back.data[: HEAD.size + len(packed)] == HEAD.pack(2, 0) + packed
    too_many = Bytes(HEAD.pack(257, 0))
    with pytest.raises(KvmError) as refused:
        await call(Fd.VCPU, 0x4008AE90, vm, too_many, 0)
    assert refused.value.errno == errno.E2BIG


async def test_the_list_of_msrs_tells_how_many_there_are_to_those_with_too_little_room(registry):
    for request in (0xC004AE02, 0xC004AE0A):
        memory = Bytes(bytes(4))
        with pytest.raises(KvmError) as refused:
            await call(Fd.SYSTEM, request, registry, memory)
        assert refused.value.errno == errno.E2BIG
        count = int.from_bytes(memory.data[:4], "little")
        assert memory.data[4:8] == b"\xee" * 4
        assert await call(Fd.SYSTEM, request, registry, memory) == 0
        listed = [int.from_bytes(memory.data[at : at + 4], "little") for at in range(4, 4 + 4 * count, 4)]
        values = Bytes(HEAD.pack(count, 0) + b"".join(MSR.pack(index, 0, 1) for index in listed))
        if request == 0xC004AE0A:
            assert await call(Fd.SYSTEM, 0xC008AE88, registry, values) == count
        else:
            assert listed == list(INDEX_LIST)


async def test_every_msr_that_is_listed_can_be_read_and_written_back(registry, vm):
    packed = b"".join(MSR.pack(index, 0, 0xEE) for index in INDEX_LIST)
    memory = Bytes(HEAD.pack(len(INDEX_LIST), 0) + packed)
    assert await call(Fd.VCPU, 0xC008AE88, vm, memory, 0) == len(INDEX_LIST)
    assert await call(Fd.VCPU, 0x4008AE89, vm, memory, 0) == len(INDEX_LIST)


async def test_msrs_are_taken_up_to_the_first_that_is_refused(registry, vm):
    memory = Bytes(HEAD.pack(3, 0) + MSR.pack(0xC0000081, 0, 5) + MSR.pack(0x1234, 0, 6) + MSR.pack(0xC0000082, 0, 7))
    assert await call(Fd.VCPU, ioctl_by_name("SET_MSRS").request, vm, memory, 0) == 1
    back = Bytes(HEAD.pack(3, 0) + MSR.pack(0xC0000081, 0, 0) + MSR.pack(0x1234, 0, 6) + MSR.pack(0xC0000082, 0, 7))
    assert await call(Fd.VCPU, 0xC008AE88, vm, back, 0) == 1
    assert MSR.unpack_from(back.data, HEAD.size) == (0xC0000081, 0, 5)
    many = Bytes(HEAD.pack(256, 0))
    with pytest.raises(KvmError) as refused:
        await call(Fd.VCPU, 0xC008AE88, vm, many, 0)
    assert refused.value.errno == errno.E2BIG


async def test_a_script_guest_has_no_cpuid():
    registry = Registry()
    machine = await registry.create("vm", vcpus=1, engine="script")
    with pytest.raises(KvmError) as refused:
        await machine.get_cpuid2(0)
    assert refused.value.errno == errno.ENOTTY
    await registry.destroy("vm")
