"""The dirty pages of one slot: a sparse set in order, from which nothing is lost that is added meanwhile."""

import sys
import threading

from hypothesis import given
from hypothesis import strategies as st

from kickstand.core.memslots.dirty_pages import CHUNK, DirtyPages

PAGES = st.integers(0, 4 * CHUNK)
RANGES = st.builds(lambda first, count: range(first, first + count), PAGES, st.integers(0, 3 * CHUNK))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), PAGES),
        st.tuples(st.just("update"), st.one_of(RANGES, st.sets(PAGES, max_size=9))),
        st.tuples(st.just("difference_update"), st.one_of(RANGES, st.frozensets(PAGES, max_size=9))),
    ),
    max_size=8,
)


@given(STEPS)
def test_it_is_a_set_in_order(steps):
    pages, model = DirtyPages(), set()
    for method, argument in steps:
        getattr(pages, method)(argument)
        getattr(model, method)(argument)
        assert len(pages) == len(model)
        assert bool(pages) == bool(model)
    assert list(pages) == sorted(model)
    assert pages == model == pages.copy()
    assert all((page in pages) == (page in model) for page in (0, CHUNK - 1, CHUNK, 2 * CHUNK))
    assert [page for portion in pages.portions() for page in portion] == sorted(model)


def test_a_slot_of_terabytes_that_is_all_dirty_takes_little():
    pages = DirtyPages(range(1 << 24))
    assert len(pages) == 1 << 24
    assert sum(map(sys.getsizeof, pages.chunks.values())) < 1 << 20
    pages.difference_update(range(1, 1 << 24))
    assert list(pages) == [0]


def test_what_is_added_while_others_are_taken_away_is_there_afterwards():
    pages, mine = DirtyPages(), range(1, 2 * CHUNK, 2)
    over = threading.Event()

    def clear():
        while not over.is_set():
            pages.difference_update(range(0, 2 * CHUNK, 2))

    clearing = threading.Thread(target=clear)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    clearing.start()
    try:
        for page in mine:
            pages.add(page)
    finally:
        over.set()
        clearing.join()
        sys.setswitchinterval(before)
    assert pages == set(mine)
