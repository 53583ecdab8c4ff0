"""Host memory at another process's addresses: areas come, are cut, replaced, and go."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kickstand.core.errors import KvmError
from kickstand.guests.host_memory import ForeignMemory

PAGE = 4096


def a_view(pages: int, fill: int) -> memoryview:
    return memoryview(bytearray([fill]) * (pages * PAGE))


def test_areas_lie_at_their_own_addresses_in_any_order():
    memory = ForeignMemory()
    memory.place(9 * PAGE, a_view(1, 9), 0x9000)
    memory.place(2 * PAGE, a_view(2, 2), 0x2000)
    assert memory.read(9 * PAGE, 2) == b"\x09\x09"
    assert memory.read(2 * PAGE, 1) == b"\x02"
    with pytest.raises(KvmError) as refused:
        memory.read(4 * PAGE, 1)
    assert refused.value.errno == errno.EFAULT


def test_removing_the_middle_keeps_both_ends():
    memory = ForeignMemory()
    memory.place(0, a_view(3, 7), 0x10000)
    memory.remove(PAGE, PAGE)
    assert [(run.hva, run.size, run.address) for run in memory.runs(0, 3 * PAGE)] == [
        (0, PAGE, 0x10000),
        (PAGE, PAGE, None),
        (2 * PAGE, PAGE, 0x12000),
    ]


def test_every_change_is_a_new_version():
    memory = ForeignMemory()
    seen = {memory.version}
    memory.place(0, a_view(2, 1), 0x1000)
    seen.add(memory.version)
    memory.place(0, a_view(2, 2), 0x5000)
    seen.add(memory.version)
    memory.remove(PAGE, PAGE)
    seen.add(memory.version)
    assert len(seen) == 4


def test_its_vmm_maps_memory_itself():
    with pytest.raises(KvmError) as refused:
        ForeignMemory().allocate(PAGE)
    assert refused.value.errno == errno.EOPNOTSUPP


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 12), st.integers(1, 6))))
def test_it_is_a_map_from_pages_to_bytes(changes):
    memory, expected = ForeignMemory(), {}
    for at, (placed, page, count) in enumerate(changes):
        if placed:
            memory.place(page * PAGE, a_view(count, at % 256), (at + 1) << 20)
        else:
            memory.remove(page * PAGE, count * PAGE)
        for n in range(count):
            expected[page + n] = ((at + 1) << 20) + n * PAGE if placed else None
    for page in range(20):
        (run,) = memory.runs(page * PAGE, PAGE)
        assert run.address == expected.get(page)
        if run.address is not None:
            assert memory.read(page * PAGE, 1)[0] == ((run.address >> 20) - 1) % 256
