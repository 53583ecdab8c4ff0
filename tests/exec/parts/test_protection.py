"""What a slot ioctl takes away, and what is left of it once it is covered."""

from hypothesis import given
from hypothesis import strategies as st

from kickstand.core.memslots import Region, Slot
from kickstand.core.uapi import MemFlag
from kickstand.exec.protection import taken_away, without

SLOT = Slot(1, 8, 4, MemFlag(0), 0x7000)
spans = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 10)).map(lambda span: (span[0], span[0] + span[1])))


def test_a_delete_takes_all_of_the_slot():
    assert taken_away(SLOT, Region(1, 0, 0, 0, 0)) == (0x8000, 0xC000)


def test_a_move_takes_where_it_was():
    assert taken_away(SLOT, Region(1, 0, 0x20000, 0x4000, 0x7000)) == (0x8000, 0xC000)


def test_flags_and_creations_take_nothing():
    assert taken_away(SLOT, Region(1, 1, 0x8000, 0x4000, 0x7000)) is None
    assert taken_away(None, Region(2, 0, 0x8000, 0x4000, 0x7000)) is None


@given(spans, st.integers(0, 60), st.integers(1, 20))
def test_what_is_left_is_what_was_not_covered(holes, start, size):
    left = {page for low, high in without(holes, start, start + size) for page in range(low, high)}
    assert left == {page for low, high in holes for page in range(low, high)} - set(range(start, start + size))
